"""Scorers in processes of their own, so that speed and memory are each one's: ours, and RadEval.

Contract: a worker does one thing at a time and uses as many threads as it is told; the others wait meanwhile. RadEval's
code is not changed; what it is given is an alias (its vendored modules import `RadEval`, the package is `radeval`), the
weights where its cache would have them, and no network.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from benchmarks.reports import Pair
from reward_server.threads import set_threads

_REVISION = "0" * 40
_GEMM_SIZE, _GEMM_TRIES = 4096, 5


@dataclass(frozen=True)
class Setup:
    """`threads`: of torch; `packages`: the folder where RadEval is installed (benchmarks/setup.sh)."""

    weights: Path
    threads: int
    packages: Path


@dataclass(frozen=True)
class Timed:
    """What a call gave, how long it took, also in CPU time, and the most memory that was resident meanwhile."""

    scores: list[dict[str, float]]
    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Loaded:
    seconds: float
    peak_bytes: int
    resident_bytes: int


class Scorer(Protocol):
    """What a worker runs. `prepare` is not timed."""

    def prepare(self, pairs: Sequence[Pair]) -> None: ...

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]: ...


class Worker:
    """A scorer in a new process."""

    def __init__(self, make: Callable[[Setup], Scorer], setup: Setup) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make, setup))
        self._process.start()
        theirs.close()
        self.loaded: Loaded = self._pipe.recv()

    def score(self, pairs: Sequence[Pair]) -> Timed:
        """Scores in one call."""
        self._pipe.send(list(pairs))
        answer: Timed = self._pipe.recv()
        return answer

    def gemm_flops_per_second(self) -> float:
        """The fastest of a few large square fp32 matrix products, with the worker's threads."""
        self._pipe.send(None)
        answer: float = self._pipe.recv()
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(30)


class Ours:
    """The `published` backend."""

    def __init__(self, setup: Setup) -> None:
        from reward_server.backends import create_scorer
        from reward_server.scorer import ScorerOptions

        self._scorer = create_scorer(ScorerOptions("published", weights=str(setup.weights)))

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """Nothing: all is loaded."""

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        return self._scorer.score(pairs)


class RadEval:
    """RadCliQ-v1 of the package radeval."""

    def __init__(self, setup: Setup) -> None:
        cache = Path(tempfile.mkdtemp(prefix="radeval-"))
        _link_cache(cache, setup.weights)
        alias = cache / "alias"
        alias.mkdir()
        (alias / "RadEval").symlink_to(setup.packages / "radeval")
        sys.path += [str(setup.packages), str(alias)]
        os.environ |= {"XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
        os.chdir(setup.weights)  # models of the hub are folders here
        from radeval.metrics.RadCliQv1.radcliq import CompositeMetric  # type: ignore[import-not-found]

        self._metric = CompositeMetric()
        self._lists: tuple[list[str], list[str]] = ([], [])

    def prepare(self, pairs: Sequence[Pair]) -> None:
        """Loads BERTScore's model and counts its idf, which it would do anew in every call."""
        self._lists = [reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs]
        self._metric._get_bert_scorer(self._lists[0])

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        found = self._metric._compute_sub_metrics(*self._lists)
        return [{name: float(values[i]) for name, values in found.items()} for i in range(len(pairs))]


def _link_cache(cache: Path, weights: Path) -> None:
    """The weights as in the caches of CheXbert and RadGraph."""
    model = cache / "chexbert" / "models--StanfordAIMI--RRG_scorers"
    snapshot = model / "snapshots" / _REVISION
    for folder in (snapshot, model / "refs", cache / "radgraph" / "0.1.18"):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text(_REVISION)
    (snapshot / "chexbert.pth").symlink_to(weights / "chexbert.pth")
    (cache / "radgraph" / "0.1.18" / "radgraph").symlink_to(weights / "radgraph")


def _work(pipe: Connection, make: Callable[[Setup], Scorer], setup: Setup) -> None:
    """The worker's process: a list of pairs is scored; None asks for the speed of matrix products."""
    set_threads(setup.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.stdout = sys.stderr  # RadEval prints
    started = time.perf_counter()
    scorer = make(setup)
    pipe.send(Loaded(time.perf_counter() - started, _memory("VmHWM"), _memory("VmRSS")))
    while True:
        try:
            pairs = pipe.recv()
        except EOFError:
            return
        pipe.send(_gemm() if pairs is None else _score(scorer, pairs))


def _score(scorer: Scorer, pairs: Sequence[Pair]) -> Timed:
    scorer.prepare(pairs)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    started, cpu_started = time.perf_counter(), time.process_time()
    scores = scorer.score(pairs)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return Timed(scores, seconds, cpu_seconds, _memory("VmHWM"))


def _gemm() -> float:
    import torch

    a, b = torch.rand(2, _GEMM_SIZE, _GEMM_SIZE).unbind()
    out = torch.empty_like(a)
    seconds = []
    for _ in range(_GEMM_TRIES):
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - started)
    return float(2 * _GEMM_SIZE**3 / min(seconds))


def _memory(field: str) -> int:
    """Of this process, in bytes: VmRSS what is resident, VmHWM the most that was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
