"""DyGIE++'s heads: which spans of words are entities, and which pairs of them are related.

Contract: exact (but for rounding), in bounded memory, and the same bits for a report whatever reports stand beside it:
as in the encoder every matrix product has one fixed shape, and the rows of all reports go through it in blocks.

Two things make it cheap. A span is [first word; last word; width], so the first layer's product is taken once a word
and once a width, and a span adds three rows. For a pair of spans (a, b) the first layer sees [a; b; a*b]; its parts of
a and b are taken in the same way, and only pairs of spans that are entities and that the pruner kept are scored at all:
no other relation gets into a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from reward_server.errors import RewardSetupError
from reward_server.radcliq.radgraph.archive import WIDTHS, Archive, entity_names, mention_names, relation_names
from reward_server.radcliq.radgraph.graph import Entity


@dataclass(frozen=True)
class _Blocks:
    """Rows of a matrix product: of words, of spans, of pairs of spans."""

    words: int
    spans: int
    pairs: int


_CPU, _GPU = _Blocks(128, 1024, 256), _Blocks(4096, 32768, 16384)


@dataclass(frozen=True)
class _Linear:
    weight: Tensor  # [inputs, outputs]
    bias: Tensor


class SpanHeads:
    """Finds entities and relations in word vectors. Always in float32, on the device that it is given."""

    def __init__(self, archive: Archive, hidden: int, device: torch.device) -> None:
        """`hidden`: numbers in a word's vector. RewardSetupError where a tensor has not the shape that it must have."""
        self._config = config = archive.config
        self._device = device
        self._blocks = _CPU if self._device.type == "cpu" else _GPU
        take = _Taker(archive, self._device)
        span = 2 * hidden + config.feature_size
        self._widths = take.tensor(WIDTHS, config.span_width, config.feature_size)
        entity = take.network(entity_names(config), span, len(config.entity_labels))
        mention = take.network(mention_names(config), span, 1)
        relation = take.network(relation_names(config), 3 * span, len(config.relation_labels))
        # The scorers of entities and of mentions have the same sizes: they run as one network, side by side.
        scorer = [_beside(a, b) for a, b in zip(entity[1:], mention[1:], strict=True)]
        self._span_network = _Network(torch.cat([entity[0].bias, mention[0].bias]), scorer)
        self._pair_network = _Network(relation[0].bias, relation[1:])
        source, target, self._of_product = torch.split(relation[0].weight, span)
        first_layers = [torch.cat([entity[0].weight, mention[0].weight], 1), source, target]
        self._sizes = [layer.shape[1] for layer in first_layers]
        of_first, of_last, of_width = torch.split(torch.cat(first_layers, 1), [hidden, hidden, config.feature_size])
        self._of_word = torch.cat([of_first, of_last], 1)
        self._width_parts = torch.split(self._widths @ of_width, self._sizes, 1)

    @torch.inference_mode()
    def __call__(self, words: Tensor, counts: Sequence[int]) -> list[tuple[Entity, ...]]:
        """The entities, with their relations, of reports of `counts` words (1 at least) whose vectors are `words`."""
        spans, span_counts = self._enumerate(counts)
        products = _through(words, self._blocks.words, lambda rows: rows @ self._of_word)
        parts = torch.split(products, self._sizes * 2, 1)
        scores = self._score_spans(parts, spans)
        mentions, labels = scores[:, -1].cpu(), _best(scores[:, :-1]).cpu()
        candidates = self._prune(mentions, labels, counts, span_counts)
        related = self._relate(words, parts, spans, mentions, candidates) if any(map(len, candidates)) else []
        return self._name(spans.cpu(), labels, counts, span_counts, related)

    def _enumerate(self, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
        """All spans that stay in their report, in the order of the text: rows of their first and last word, [spans, 2];
        and how many of them every report has."""
        left = torch.cat([torch.arange(count, 0, -1) for count in counts])  # words up to the end of the report
        inside = torch.arange(self._config.span_width) < left[:, None]
        first, width = inside.nonzero(as_tuple=True)
        span_counts = [int(part.sum()) for part in torch.split(inside.sum(1), list(counts))]
        return torch.stack([first, first + width], 1).to(self._device), span_counts

    def _first_layer(self, parts: Sequence[Tensor], layer: int, spans: Tensor) -> Tensor:
        """What one of the three first layers gives for spans, without its bias."""
        first, last = spans.unbind(1)
        of_first, of_last, of_width = parts[layer], parts[layer + len(self._sizes)], self._width_parts[layer]
        return of_first[first] + of_last[last] + of_width[last - first]

    def _score_spans(self, parts: Sequence[Tensor], spans: Tensor) -> Tensor:
        """[spans, entity labels + 1]: the labels' scores, and the score of being kept for relations."""
        return _through(spans, self._blocks.spans, lambda block: self._span_network(self._first_layer(parts, 0, block)))

    def _prune(
        self, mentions: Tensor, labels: Tensor, counts: Sequence[int], span_counts: Sequence[int]
    ) -> list[Tensor]:
        """Every report's entities that the pruner keeps, as rows among all spans."""
        kept, start = [], 0
        for count, own in zip(counts, span_counts, strict=True):
            most = torch.tensor(count, dtype=torch.float32) * self._config.spans_per_word  # rounds as the original does
            top = mentions[start : start + own].topk(min(max(int(most.ceil()), 1), own)).indices
            rows = top.sort().values + start
            kept.append(rows[labels[rows] >= 0])
            start += own
        return kept

    def _relate(
        self, words: Tensor, parts: Sequence[Tensor], spans: Tensor, mentions: Tensor, candidates: Sequence[Tensor]
    ) -> list[tuple[int, int, int]]:
        """(source, target, label) of the related candidates of every report, as rows among all spans, in order."""
        chosen = torch.cat(list(candidates))
        ends = spans[chosen.to(self._device)]
        first, last = ends.unbind(1)
        vectors = torch.cat([words[first], words[last], self._widths[last - first]], 1)
        sources, targets = self._first_layer(parts, 1, ends), self._first_layer(parts, 2, ends)
        kept = mentions[chosen].to(self._device)
        found = []
        for one, other, real in _pairs([len(own) for own in candidates], self._blocks.pairs, self._device):
            shared = (vectors[one] * vectors[other]) @ self._of_product  # the same in both directions
            for source, target in ((one, other), (other, one)):
                scores = self._pair_network(shared + sources[source] + targets[target])
                labels = _best(scores + (kept[source] + kept[target])[:, None])[:real]
                at = (labels >= 0).nonzero()[:, 0]
                found.append(torch.stack([source[at], target[at], labels[at]], 1))
        rows = chosen.tolist()
        # A span with itself was scored twice.
        return sorted({(rows[source], rows[target], label) for source, target, label in torch.cat(found).tolist()})

    def _name(
        self,
        spans: Tensor,
        labels: Tensor,
        counts: Sequence[int],
        span_counts: Sequence[int],
        related: Sequence[tuple[int, int, int]],
    ) -> list[tuple[Entity, ...]]:
        """The entities of every report, counted in its own words and entities."""
        relations: dict[int, list[tuple[int, str]]] = {}
        for source, target, label in related:
            relations.setdefault(source, []).append((target, self._config.relation_labels[label]))
        found, word, row = [], 0, 0
        for count, own in zip(counts, span_counts, strict=True):
            rows = ((labels[row : row + own] >= 0).nonzero()[:, 0] + row).tolist()
            numbers = {entity: number for number, entity in enumerate(rows)}
            entities = []
            for entity in rows:
                first, last = spans[entity].tolist()
                linked = tuple((kind, numbers[target]) for target, kind in relations.get(entity, ()))
                name = self._config.entity_labels[int(labels[entity])]
                entities.append(Entity(first - word, last - word, name, linked))
            found.append(tuple(entities))
            word, row = word + count, row + own
        return found


class _Network:
    """What follows a first layer's product: its bias, ReLU, and the other layers."""

    def __init__(self, bias: Tensor, layers: Sequence[_Linear]) -> None:
        self._bias, self._layers = bias, layers

    def __call__(self, product: Tensor) -> Tensor:
        rows: Tensor = product + self._bias
        for layer in self._layers:
            rows = torch.addmm(layer.bias, rows.relu(), layer.weight)
        return rows


class _Taker:
    """Takes tensors of an archive, with their shape checked."""

    def __init__(self, archive: Archive, device: torch.device) -> None:
        self._archive, self._device = archive, device

    def tensor(self, name: str, *shape: int) -> Tensor:
        tensor = self._archive.tensors[name]
        if tuple(tensor.shape) != shape:
            raise RewardSetupError(
                f"{self._archive.file}: {name} has the shape {list(tensor.shape)}, config.json asks for {list(shape)}"
            )
        return tensor.to(self._device, torch.float32, copy=True)

    def network(self, names: tuple[str, str], inputs: int, outputs: int) -> list[_Linear]:
        """The layers of a feed-forward network and of the linear scorer behind it."""
        forward, scorer = names
        sizes = [inputs, *self._archive.config.hidden_sizes, outputs]
        layers = [f"{forward}_linear_layers.{i}." for i in range(len(sizes) - 2)] + [scorer]
        return [
            _Linear(
                self.tensor(f"{layer}weight", sizes[i + 1], sizes[i]).T.contiguous(),
                self.tensor(f"{layer}bias", sizes[i + 1]),
            )
            for i, layer in enumerate(layers)
        ]


def _beside(a: _Linear, b: _Linear) -> _Linear:
    """Two layers as one: its inputs and outputs are those of `a`, then those of `b`."""
    weight = F.pad(a.weight, (0, b.weight.shape[1], 0, b.weight.shape[0]))
    weight[a.weight.shape[0] :, a.weight.shape[1] :] = b.weight
    return _Linear(weight, torch.cat([a.bias, b.bias]))


def _best(scores: Tensor) -> Tensor:
    """The label with the highest score in every row; -1, for none, if no score is above 0."""
    highest, label = scores.max(1)
    return label.where(highest > 0, -1)


def _through(rows: Tensor, block: int, product: Callable[[Tensor], Tensor]) -> Tensor:
    """`product` of all rows, in blocks of one size; the last one is filled up with zeros."""
    parts = []
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        parts.append(product(F.pad(part, (0, 0, 0, block - len(part))))[: len(part)])
    return torch.cat(parts)


def _pairs(sizes: Sequence[int], block: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, int]]:
    """All pairs within groups of such sizes, in one direction, as rows among all members, in blocks of one size; and
    how many of a block are real, as the last one is filled up."""
    starts = accumulate(sizes, initial=0)
    pairs = [torch.triu_indices(size, size) + start for size, start in zip(sizes, starts, strict=False)]
    for part in torch.split(torch.cat(pairs, 1), block, 1):
        one, other = F.pad(part, (0, block - part.shape[1])).to(device)
        yield one, other, part.shape[1]
