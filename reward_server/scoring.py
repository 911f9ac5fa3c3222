"""Scores whole files: rows in, rows with components and reward out, a summary at the end.

Contract: streams a batch at a time, order kept, each batch flushed when it is written. A pair that can't be scored is a
row with its error, never a made-up score. Loads neither torch nor gRPC by itself.
"""

from __future__ import annotations

import statistics
import time
from array import array
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Protocol

from configs.schema import RewardConfig
from reward_server.errors import PairError, RewardSetupError
from reward_server.explanation import Explanation
from reward_server.pairs import Answer, explain_each, score_each, size_or_error
from reward_server.scorer import Description, Pair, Scorer
from reward_server.spec import BEST_COMPOSITE, COMPOSITES, reward_from_components
from reward_server.tables import Row, ScoreWriter

_BATCH = 64


class Source(Protocol):
    """What scores: a scorer in this process or a client of servers."""

    def describe(self) -> Description: ...

    def submit_each(self, pairs: Sequence[Pair]) -> Future[list[Answer]]: ...

    def explain(self, pairs: Sequence[Pair]) -> list[Explanation]: ...


class LocalSource:
    """A scorer in this process. A batch that fails is halved until the pairs that fail are alone."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def describe(self) -> Description:
        """What the scorer computes."""
        return self._scorer.description

    def submit_each(self, pairs: Sequence[Pair]) -> Future[list[Answer]]:
        """Scores at once."""
        sizes = [size_or_error(pair) for pair in pairs]
        sound = [pair for pair, size in zip(pairs, sizes, strict=True) if isinstance(size, int)]
        scored = iter(score_each(self._scorer.score, sound))
        result: Future[list[Answer]] = Future()
        result.set_result([next(scored) if isinstance(size, int) else size for size in sizes])
        return result

    def explain(self, pairs: Sequence[Pair]) -> list[Explanation]:
        """Explains at once; PairError for a pair that can't be."""
        for pair in pairs:
            if isinstance(error := size_or_error(pair), PairError):
                raise error
        explained = explain_each(self._scorer.explain, pairs)
        for one in explained:
            if isinstance(one, PairError):
                raise one
        return [one for one in explained if not isinstance(one, PairError)]


def check_reward(
    backend: str, components: Collection[str], clip: float | None, weights: Mapping[str, float] | None
) -> None:
    """RewardSetupError where `plain_reward` could not be had from these components of the backend."""
    unknown = [name for name in weights or () if name not in components]
    if unknown:
        raise RewardSetupError(
            f"no component `{unknown[0]}` in a reward of the backend {backend}: it has {', '.join(components)}"
        )
    if not weights and backend not in COMPOSITES:
        raise RewardSetupError(
            f"the backend {backend!r} has no composite that is known here: give weights of its components"
        )
    if weights and clip is not None:
        raise RewardSetupError("a clip is for the composite: give either it or weights of components")
    if clip is not None and not clip > BEST_COMPOSITE:
        raise RewardSetupError(
            f"--clip {clip:g} would cut every pair to one reward: the composite of a copy of the reference is "
            f"{BEST_COMPOSITE:.2f}, lower is better, and what is above the clip is cut; 3 is usual"
        )


def plain_reward(
    description: Description, *, clip: float | None = None, weights: Mapping[str, float] | None = None
) -> RewardConfig:
    """The reward without penalties: -composite, cut at `clip`; or with `weights`, the sum of weight times component."""
    check_reward(description.backend, description.components, clip, weights)
    return RewardConfig(
        backend=description.backend,
        clip=clip,
        repetition_weight=0.0,
        length_weight=0.0,
        positive_f1_weight=0.0,
        component_weights=dict(weights or {}),
    )


def score_rows(
    rows: Iterable[Row], source: Source, cfg: RewardConfig, writer: ScoreWriter, *, in_flight: int
) -> Iterator[list[tuple[Row, Answer]]]:
    """Writes all rows; yields each batch, with the reward among its scores, when it is written."""
    for batch, answers in _answered(rows, source, in_flight):
        done = [(row, _with_reward(answer, cfg)) for row, answer in zip(batch, answers, strict=True)]
        for row, answer in done:
            if isinstance(answer, PairError):
                writer.write(row, None, str(answer))
            else:
                writer.write(row, answer)
        writer.flush()
        yield done


def _with_reward(answer: Answer, cfg: RewardConfig) -> Answer:
    if isinstance(answer, PairError):
        return answer
    return {**answer, "reward": reward_from_components(answer, cfg)}


def _answered(rows: Iterable[Row], source: Source, in_flight: int) -> Iterator[tuple[list[Row], list[Answer]]]:
    """Batches in order, with up to `in_flight` of them asked for at the same time."""
    rows = iter(rows)
    asked: deque[tuple[list[Row], Future[list[Answer]]]] = deque()
    while True:
        while len(asked) < in_flight and (batch := list(islice(rows, _BATCH))):
            pairs = [(row.reference, row.hypothesis) for row in batch if row.problem is None]
            asked.append((batch, source.submit_each(pairs)))
        if not asked:
            return
        batch, future = asked.popleft()
        answers = iter(future.result())
        yield batch, [next(answers) if row.problem is None else PairError(row.problem) for row in batch]


class Summary:
    """Counts, time, and the mean and median of every score."""

    def __init__(self, description: Description, cfg: RewardConfig) -> None:
        self._about, self._cfg = description, cfg
        self._values = {name: array("d") for name in (*description.components, "reward")}
        self._start = time.monotonic()
        self.pairs = self.failed = self._cut = 0

    def add(self, batch: Sequence[tuple[Row, Answer]]) -> None:
        """Counts a batch."""
        self.pairs += len(batch)
        for _, answer in batch:
            if isinstance(answer, PairError):
                self.failed += 1
            else:
                for name, values in self._values.items():
                    values.append(answer[name])
                clip = self._cfg.clip
                self._cut += clip is not None and answer[COMPOSITES[self._about.backend]] > clip

    @property
    def pairs_per_s(self) -> float:
        """Since this object was made."""
        return self.pairs / max(time.monotonic() - self._start, 1e-9)

    def __str__(self) -> str:
        seconds = time.monotonic() - self._start
        lines = [
            f"{self.pairs} pairs in {seconds:.1f} s ({self.pairs_per_s:.1f} pairs/s), {self.failed} failed",
            f"backend {self._about.backend}, definition {self._about.definition}: {self._about.formula}",
            *(f"  {model.name}: sha256 {model.sha256}" for model in self._about.models),
        ]
        if self._cfg.clip is not None:
            lines.append(
                f"the clip {self._cfg.clip:g} cut {self._cut} of {self.pairs - self.failed} pairs to the same reward"
            )
        if self.pairs > self.failed:
            lines.append(f"{'':20}{'mean':>10}{'median':>10}")
            for name, values in self._values.items():
                lines.append(f"{name:20}{statistics.fmean(values):10.4f}{statistics.median(values):10.4f}")
        return "\n".join(lines)
