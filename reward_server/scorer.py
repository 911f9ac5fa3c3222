"""What a backend is: anything that scores pairs of reports and explains that, labels reports and describes itself.

Contract: one module a backend in `reward_server.backends`; a backend knows nothing of gRPC, batching or processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from reward_server.explanation import Explanation

Pair = tuple[str, str]  # (reference, hypothesis)
Labels = tuple[int, ...]  # a class for each of `reward_server.text.labels.LABELS`: blank, positive, negative, uncertain


@dataclass(frozen=True)
class ScorerOptions:
    """Which backend, and how it is loaded; the fields after `backend` are for those that read `weights`."""

    backend: str = "embedded"
    weights: str | None = None  # folder, laid out as `reward_server.radcliq.weights` says
    radgraph: str = "radgraph"  # archive or folder in `weights`: radgraph or radgraph-xl
    device: str = "cpu"  # a torch device: cpu, cuda, cuda:1
    dtype: str = "float32"  # float32, bfloat16 or float16; the last two on GPUs only
    idf: str | None = None  # corpus file of BERTScore's idf, one report a line; None: no idf (canonical)


@dataclass(frozen=True)
class ModelFile:
    """A model that a backend runs, and the SHA-256 of its weights file."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Description:
    """What a backend computes: `definition` is the composite's name and version, `components` all names of `score`."""

    backend: str
    definition: str
    formula: str
    components: tuple[str, ...]
    models: tuple[ModelFile, ...]
    versions: Mapping[str, str]


class Scorer(Protocol):
    """A backend. It is called from one thread at a time."""

    @property
    def description(self) -> Description: ...

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """All components of every pair, in order. A pair's values must not depend on the other pairs."""
        ...

    def label(self, texts: Sequence[str]) -> list[Labels]:
        """The 14 labels of every text, in order. A text's labels must not depend on the other texts."""
        ...

    def explain(self, pairs: Sequence[Pair]) -> list[Explanation]:
        """The graphs that `score` compares and what they share, of every pair, in order, whatever the other pairs."""
        ...

    def statistics(self) -> Mapping[str, float]:
        """Counters since the start, for monitoring: cache hits, seconds of each model; may be empty."""
        ...
