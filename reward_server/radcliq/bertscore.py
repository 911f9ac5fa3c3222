"""BERTScore F1 on distilroberta-base, as RadCliQ uses it: layer 5, rescaled by the packaged baseline, no idf.

Contract: the text is prepared as `CXR-Report-Metric` does (runs of spaces become one) and cut at the tokenizer's
length. `<s>` and `</s>` may be matched but weigh nothing, wherever they stand. A report without words has a raw score
of 0, which rescales to -5.55. Sources: Zhang et al. 2020 (arXiv:1904.09675) and its package `bert-score`, which also
gives the baseline table; idf after its `get_idf_dict`, over a fixed corpus and never over the batch.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from reward_server.errors import RewardSetupError
from reward_server.radcliq.encoder import PackedEncoder
from reward_server.radcliq.pretrained import encoder_config, load_tokenizer
from reward_server.radcliq.weights import load_tensors, weights_file

LAYER = 5


@dataclass(frozen=True)
class Pieces:
    """A report's word pieces. `states`: [pieces, hidden] of length 1, float32; `weights`: [pieces], sum 1; None where
    there is nothing to weigh."""

    states: Tensor
    weights: Tensor | None


class BertScore:
    """Encodes reports for `bertscore`. `folder`: `distilroberta-base`; `idf`: a corpus, one report a line."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype, idf: Path | None = None) -> None:
        """Raises RewardSetupError where a file or a tensor is missing or has another shape."""
        # The prefix space makes a report's first word the piece that it would be in the middle.
        self._tokenizer = load_tokenizer(folder, add_prefix_space=True)
        config = encoder_config(folder)
        weights = weights_file(folder)
        tensors = load_tensors(weights)
        prefix = "roberta." if any(name.startswith("roberta.") for name in tensors) else ""
        try:
            self._encoder = PackedEncoder.from_tensors(
                tensors, config, layers=LAYER, prefix=prefix, device=device, dtype=dtype
            )
        except RewardSetupError as error:
            raise RewardSetupError(f"{weights}: {error}") from error
        self._baseline = packaged_baseline()
        self._idf = None if idf is None else self._count(idf)

    def encode(self, reports: Sequence[str]) -> list[Pieces]:
        """The word pieces of every report."""
        ids = [self._ids(report) for report in reports]
        states = self._encoder.encode(ids)
        return [self._pieces(found, state.float().cpu()) for found, state in zip(ids, states, strict=True)]

    def score(self, reference: Pieces, hypothesis: Pieces) -> float:
        """F1 of the best matches, rescaled: 1 for a copy, 0 for unrelated English, -5.55 for an empty report."""
        return (_raw_f1(reference, hypothesis) - self._baseline) / (1 - self._baseline)

    def _ids(self, report: str) -> list[int]:
        text = re.sub(" +", " ", report).strip()
        if not text:
            return [self._tokenizer.cls_token_id, self._tokenizer.sep_token_id]
        longest = min(self._encoder.max_length, self._tokenizer.model_max_length)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=True, truncation=True, max_length=longest)
        return ids

    def _pieces(self, ids: Sequence[int], states: Tensor) -> Pieces:
        states = states / states.norm(dim=-1, keepdim=True)
        if self._idf is None:
            outside = (self._tokenizer.cls_token_id, self._tokenizer.sep_token_id)
            weights = torch.tensor([0.0 if token in outside else 1.0 for token in ids])
        else:
            weights = torch.tensor([self._idf.get(token, self._idf[-1]) for token in ids])
        total = weights.sum()
        return Pieces(states, weights / total if len(ids) > 2 and total > 0 else None)

    def _count(self, corpus: Path) -> Mapping[int, float]:
        """idf of every token id of the corpus; under -1 that of tokens that never occur."""
        try:
            reports = [line for line in corpus.read_text(encoding="utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise RewardSetupError(f"the idf corpus {corpus}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RewardSetupError(f"the idf corpus {corpus}: not UTF-8 text") from error
        if len(reports) < 2:
            raise RewardSetupError(f"the idf corpus {corpus} has {len(reports)} reports; one report a line, at least 2")
        counts = Counter(token for report in reports for token in set(self._ids(report)))
        table = {token: math.log((len(reports) + 1) / (count + 1)) for token, count in counts.items()}
        return {**table, -1: math.log(len(reports) + 1)}


def packaged_baseline() -> float:
    """The baseline F1 of distilroberta-base's layer 5, from the table in the package `bert-score`."""
    package = find_spec("bert_score")  # imports nothing: the package itself takes seconds
    if package is None or not package.submodule_search_locations:
        raise RewardSetupError("the package bert-score, whose baseline table is needed, is not installed")
    table = Path(package.submodule_search_locations[0]) / "rescale_baseline/en/distilroberta-base.tsv"
    with table.open(encoding="utf-8") as lines:
        return next(float(row["F"]) for row in csv.DictReader(lines) if int(row["LAYER"]) == LAYER)


def _raw_f1(reference: Pieces, hypothesis: Pieces) -> float:
    if reference.weights is None or hypothesis.weights is None:
        return 0.0
    similar = hypothesis.states @ reference.states.T
    precision = float(similar.max(dim=1).values @ hypothesis.weights)
    recall = float(similar.max(dim=0).values @ reference.weights)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
