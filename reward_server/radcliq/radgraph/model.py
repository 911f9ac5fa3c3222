"""RadGraph inference: reports to graphs, many at once.

Contract: the graphs of the package `radgraph` (the word pieces of each word, windows of `max_length` pieces that know
nothing of each other, a word's vector is the mean of its pieces'), and the same bits for a report alone, in any batch
and in any order. A report without words has a graph without entities. Reports are never cut.
Memory is bounded by the longest report: others are read in groups of about `_GROUP_PIECES` word pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from reward_server.errors import RewardSetupError
from reward_server.radcliq.encoder import PackedEncoder
from reward_server.radcliq.pretrained import encoder_config
from reward_server.radcliq.radgraph.archive import ENCODER, read_archive, read_config
from reward_server.radcliq.radgraph.graph import Graph
from reward_server.radcliq.radgraph.heads import SpanHeads
from reward_server.radcliq.radgraph.tokens import SPLITTERS, WordPieces

_GROUP_PIECES = 8192


@dataclass(frozen=True)
class _Report:
    number: int
    words: tuple[str, ...]
    pieces: list[tuple[int, ...]]  # of every word

    @property
    def ids(self) -> list[int]:
        return [piece for pieces in self.pieces for piece in pieces]


class RadGraphModel:
    """One RadGraph network. Not thread-safe."""

    def __init__(self, encoder: PackedEncoder, heads: SpanHeads, pieces: WordPieces, namespace: str, window: int):
        """`window`: word pieces that the encoder sees at once, besides the first and the last token."""
        self._encoder, self._heads, self._pieces = encoder, heads, pieces
        self._split, self._window = SPLITTERS[namespace], window

    @classmethod
    def load(
        cls, folder: Path, backbone: Callable[[str], Path], device: torch.device, dtype: torch.dtype
    ) -> RadGraphModel:
        """From an unpacked archive; `backbone` gives the folder of `config.json` and tokenizer of a model on the hub.

        `dtype` is the encoder's; the heads are float32. Raises RewardSetupError for whatever does not fit together.
        """
        config = read_config(folder)
        home = backbone(config.model_name)
        file = home / "config.json"
        sizes = encoder_config(home)
        archive = read_archive(folder, config, sizes.num_hidden_layers)
        try:
            encoder = PackedEncoder.from_tensors(
                archive.tensors, sizes, prefix=ENCODER, device=str(device), dtype=dtype
            )
        except RewardSetupError as error:
            raise RewardSetupError(f"{archive.file}, read with {file}: {error}") from error
        if not 2 < config.window <= encoder.max_length:
            raise RewardSetupError(
                f"{folder / 'config.json'}: max_length {config.window}; the backbone takes 3 to"
                f" {encoder.max_length} word pieces"
            )
        heads = SpanHeads(archive, sizes.hidden_size, device)
        return cls(encoder, heads, WordPieces(home), config.namespace, config.window - 2)

    @torch.inference_mode()
    def annotate(self, reports: Sequence[str]) -> list[Graph]:
        """The graph of every report."""
        graphs = [Graph() for _ in reports]
        for group in self._groups(reports):
            counts = [len(report.words) for report in group]
            found = self._heads(self._word_vectors(group), counts)
            for report, entities in zip(group, found, strict=True):
                graphs[report.number] = Graph(report.words, entities)
        return graphs

    def _groups(self, reports: Sequence[str]) -> Iterator[list[_Report]]:
        """The reports that have words, in groups that are read together."""
        group: list[_Report] = []
        total = 0
        for number, text in enumerate(reports):
            words = self._split(text)
            if not words:
                continue
            report = _Report(number, words, self._pieces(words))
            size = sum(map(len, report.pieces))
            if group and total + size > _GROUP_PIECES:
                yield group
                group, total = [], 0
            group.append(report)
            total += size
        if group:
            yield group

    def _word_vectors(self, group: Sequence[_Report]) -> Tensor:
        """The vectors of all words, [words, hidden]: means of their pieces'; zeros for a word without pieces."""
        windows = []
        for report in group:
            ids = report.ids
            for start in range(0, max(len(ids), 1), self._window):
                windows.append([self._pieces.first, *ids[start : start + self._window], self._pieces.last])
        sizes = torch.tensor([len(pieces) for report in group for pieces in report.pieces])
        states = torch.cat([state[1:-1] for state in self._encoder.encode(windows)]).float()
        begins = (sizes.cumsum(0) - sizes).to(states.device)
        return F.embedding_bag(torch.arange(len(states), device=states.device), states, begins, mode="mean")
