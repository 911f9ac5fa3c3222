"""What scores: a backend in this process or reward servers, asked for every different pair and text once.

Contract: a pair that can't be scored is a `PairError` in its place, a text that can't be labelled is None in its place;
never a made-up number. torch and gRPC are loaded
only when they are needed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reward_server.errors import PairError, RewardError, RewardSetupError
from reward_server.pairs import Answer, label_each
from reward_server.scorer import Description, Pair, Scorer, ScorerOptions
from reward_server.threads import set_threads

if TYPE_CHECKING:
    from reward_server.client import RewardClient

NO_BACKEND: Final = "none"
_BATCH = 128

Label = Callable[[Sequence[str]], list[tuple[int, ...]]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ScoringOptions:
    """`backend` in this process, or `address` of servers ("host:port", several with commas)."""

    scorer: ScorerOptions
    threads: int | None = None
    address: str | None = None
    wait_s: float = 10.0
    timeout_s: float = 600.0
    tls_ca: str | None = None
    tls_server_name: str | None = None
    token_file: str | None = None


class Scoring:
    """Scores and labels by text, kept: a report that several systems share is asked for once."""

    def __init__(
        self, description: Description, score_each: Callable[[Sequence[Pair]], list[Answer]], label: Label | None
    ) -> None:
        self.description = description
        self._score_each = score_each
        self._label = label
        self._scores: dict[Pair, Answer] = {}
        self._labels: dict[str, tuple[int, ...] | None] = {}

    @property
    def labels_texts(self) -> bool:
        """Whether the backend labels reports at all."""
        return self._label is not None

    def scores(self, pairs: Sequence[Pair], progress: Progress) -> list[Answer]:
        """The answer to every pair, in order."""
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._scores]
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            self._scores.update(zip(batch, self._score_each(batch), strict=True))
            progress("pairs", start + len(batch), len(missing))
        return [self._scores[pair] for pair in pairs]

    def labels(self, texts: Sequence[str], progress: Progress) -> list[tuple[int, ...] | None]:
        """The label classes of every text, in order, None for one that fails; the backend must label."""
        if self._label is None:
            raise ValueError("the backend does not label reports")
        missing = [text for text in dict.fromkeys(texts) if text not in self._labels]
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            self._labels.update(zip(batch, _labelled(self._label, batch), strict=True))
            progress("reports labelled", start + len(batch), len(missing))
        return [self._labels[text] for text in texts]


def _labelled(label: Label, texts: Sequence[str]) -> list[tuple[int, ...] | None]:
    """The labels of a batch; one by one where a text of it fails."""
    try:
        return [*label(texts)]
    except PairError:
        return [None] if len(texts) == 1 else [found for text in texts for found in _labelled(label, [text])]


def require(options: ScoringOptions) -> None:
    """Before anything long starts: raises RewardSetupError for options that do not fit together, or where nothing
    serves at their address."""
    _check(options)
    if options.address is not None:
        with _client(options, options.address):
            pass


@contextmanager
def _client(options: ScoringOptions, address: str) -> Iterator[RewardClient]:
    from reward_server.client import RewardClient
    from reward_server.security import ClientSecurity

    security = ClientSecurity.from_files(
        ca=options.tls_ca, token=options.token_file, server_name=options.tls_server_name
    )
    with RewardClient(address.split(","), options.timeout_s, security) as client:
        try:
            client.wait_until_serving(options.wait_s)
        except RewardError as error:
            raise RewardSetupError(f"--reward-address {address} (or the run's reward.address): {error}") from error
        yield client


@contextmanager
def opened(options: ScoringOptions) -> Iterator[Scoring | None]:
    """What scores by `options`; None for the backend "none". Raises RewardSetupError or RewardError."""
    _check(options)
    if options.address is not None:
        with _client(options, options.address) as client:
            yield Scoring(client.describe(), client.score_each, client.label)
    elif options.scorer.backend == NO_BACKEND:
        yield None
    else:
        yield local(_scorer(options))


def local(scorer: Scorer) -> Scoring:
    """Scores with a scorer of this process."""
    from reward_server.scoring import LocalSource

    source = LocalSource(scorer)

    def label(texts: Sequence[str]) -> list[tuple[int, ...]]:
        answers = label_each(scorer.label, texts)
        for answer in answers:
            if isinstance(answer, PairError):
                raise answer
        return [answer for answer in answers if not isinstance(answer, PairError)]

    return Scoring(scorer.description, lambda pairs: source.submit_each(pairs).result(), label)


def _scorer(options: ScoringOptions) -> Scorer:
    from reward_server.backends import create_scorer

    if "torch" not in sys.modules:  # torch reads it once, when it is loaded
        set_threads(options.threads or len(os.sched_getaffinity(0)))
    return create_scorer(options.scorer)


def _check(options: ScoringOptions) -> None:
    """What would be ignored is refused: the numbers would not be those that were asked for."""
    given = options.scorer
    plain = ScorerOptions(given.backend)
    if options.address is not None and (given.weights, given.device) != (plain.weights, plain.device):
        raise RewardSetupError("--weights and --device are for --backend; the servers at --reward-address have theirs")
    if given.backend in ("embedded", NO_BACKEND) and given != plain:
        raise RewardSetupError(f"--weights, --radgraph, --device and --dtype mean nothing to --backend {given.backend}")
    if given.backend not in ("embedded", NO_BACKEND) and options.address is None:
        if given.weights is None:
            raise RewardSetupError(f"--backend {given.backend} needs --weights DIR (python -m reward_server weights)")
        if not Path(given.weights).is_dir():
            raise RewardSetupError(f"--weights {given.weights} is no folder")
