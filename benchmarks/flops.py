"""Floating-point operations that RadCliQ's three encoders need for a report.

Contract: counted from the architecture and the true number of word pieces, 2 for a multiply-add, matrix products only.
What need not be computed is not counted: padding, BERTScore's layers above the fifth, and everything but `[CLS]` in
CheXbert's last layer. Tokenizers, normalisation, RadGraph's heads (about 1 %) and the comparison of reports are left
out, so a share of the peak is rather too low than too high.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reward_server.radcliq.radgraph.archive import read_config
from reward_server.radcliq.radgraph.tokens import SPLITTERS, WordPieces
from reward_server.radcliq.weights import WeightsFolder

BERTSCORE_LAYERS = 5


@dataclass(frozen=True)
class Encoder:
    """The sizes of a BERT or RoBERTa. `wide`: of the feed-forward layers."""

    layers: int
    hidden: int
    wide: int

    def flops(self, length: int, *, first_only: bool = False) -> int:
        """Of a sequence of `length` tokens; `first_only`: only the first token's last state is wanted."""
        layer = self._layer(length, length)
        return (self.layers - 1) * layer + (self._layer(length, 1) if first_only else layer)

    def _layer(self, length: int, wanted: int) -> int:
        """A layer that reads `length` states and gives `wanted`."""
        keys_values = 2 * 2 * length * self.hidden**2
        query_output = 2 * 2 * wanted * self.hidden**2
        attention = 2 * 2 * wanted * length * self.hidden
        forward = 2 * 2 * wanted * self.hidden * self.wide
        return keys_values + query_output + attention + forward


class FlopCounter:
    """Counts for the models of a weights folder."""

    def __init__(self, weights: Path) -> None:
        folder = WeightsFolder(weights)
        archive = read_config(folder.radgraph)
        self._bert, self._roberta = _tokenizer(folder.bert), _tokenizer(folder.roberta)
        self._split = SPLITTERS[archive.namespace]
        self._pieces = WordPieces(folder.backbone(archive.model_name))
        self._window = archive.window - 2
        self._chexbert = _encoder(folder.bert)
        self._bertscore = _encoder(folder.roberta, BERTSCORE_LAYERS)
        self._radgraph = _encoder(folder.backbone(archive.model_name))

    def count(self, reports: Iterable[str]) -> int:
        """Of all reports together, each read once."""
        return sum(map(self._report, reports))

    def _report(self, report: str) -> int:
        text = " ".join(report.split())
        pieces = sum(len(found) for found in self._pieces(self._split(report)))
        windows = [min(self._window, pieces - start) for start in range(0, pieces, self._window)]
        return (
            self._chexbert.flops(_length(self._bert, text), first_only=True)
            + self._bertscore.flops(_length(self._roberta, re.sub(" +", " ", report).strip()))
            + sum(self._radgraph.flops(window + 2) for window in windows)
        )


def _length(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, truncation=True, max_length=512).input_ids)


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def _encoder(folder: Path, layers: int | None = None) -> Encoder:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Encoder(layers or config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"])
