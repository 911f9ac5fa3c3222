"""What both sides of `benchmarks.rl_step` share: what to do, where the time went, the operations that it takes.

Contract: a side is a process of its own that does one RL step at a time when it is told to, so that two sides can take
turns; it is started with its environment variables, which torch reads when it is loaded.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from configs.schema import Config

PHASES = ("weights", "images", "generate", "reward", "constants", "forward_backward", "optimizer", "other")


@dataclass(frozen=True)
class Prompt:
    """One study: `text` has `tokens` tokens under the policy's tokenizer, as many as the study's own prompt."""

    study_id: str
    text: str
    tokens: int
    reference: str


@dataclass(frozen=True)
class Setup:
    """One comparison. `run_dir`/policy is what both sides start from; `prompts` are those of every step in turn."""

    config: Config
    run_dir: Path
    policy: Path
    address: str
    prompts: tuple[tuple[Prompt, ...], ...]
    peer_batch: int


@dataclass(frozen=True)
class Step:
    """One RL step: seconds of every phase (they add up to `seconds`), sampled `tokens`, mean `words` of the reports.

    `parts`: seconds inside the phases that are told apart. `cpu_seconds`: of all processes, the reward
    server's among them.
    """

    seconds: float
    phases: Mapping[str, float]
    parts: Mapping[str, float]
    samples: int
    tokens: int
    words: float
    cpu_seconds: float = 0.0


class Side:
    """`work(pipe, setup)` in a process of its own: it sends its FLOP/s when it is ready, then a `Step` for every True
    it gets, and its FLOP/s again for False, at which it ends."""

    def __init__(self, work: Callable[[Connection, Setup], None], setup: Setup, environment: Mapping[str, str]) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        before = dict(os.environ)
        os.environ.update(environment)
        self._process = context.Process(target=work, args=(theirs, setup))
        self._process.start()
        os.environ.clear()
        os.environ.update(before)
        theirs.close()
        self.gemm: list[float] = []

    def wait(self) -> None:
        """Until it is ready; it has the machine for itself then, for it measures its matrix products."""
        self.gemm.append(self._answer())

    def step(self, server: int) -> Step:
        """`server`: the process of the reward server."""
        before = self._cpu_seconds(server)
        self._pipe.send(True)
        step: Step = self._answer()
        return replace(step, cpu_seconds=self._cpu_seconds(server) - before)

    def close(self) -> None:
        self._pipe.send(False)
        self.gemm.append(self._answer())
        self._process.join(60)

    def kill(self) -> None:
        """Ends it in whatever state it is."""
        self._process.kill()
        self._process.join(60)

    def _cpu_seconds(self, server: int) -> float:
        own = psutil.Process(self._process.pid)
        spent = [process.cpu_times() for process in (own, *own.children(recursive=True), psutil.Process(server))]
        return sum(times.user + times.system for times in spent)

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError as error:
            self._process.join(60)
            raise RuntimeError(f"a side ended with status {self._process.exitcode}; see its output above") from error


class Stopwatch:
    """Adds up the seconds that are spent in watched functions."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def watch(self, owner: Any, function: str, name: str | Callable[[], str]) -> None:
        """From now on the calls of `owner.function` count for `name`; calls within such a call count for both."""
        watched = getattr(owner, function)

        @functools.wraps(watched)
        def timed(*args: Any, **kwargs: Any) -> Any:
            phase = name if isinstance(name, str) else name()
            started = time.perf_counter()
            try:
                return watched(*args, **kwargs)
            finally:
                self.seconds[phase] += time.perf_counter() - started

        setattr(owner, function, timed)

    def take(self) -> dict[str, float]:
        """The seconds since the last time."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken


@dataclass(frozen=True)
class Shape:
    """A Llama with as many key-value heads as heads."""

    layers: int
    hidden: int
    wide: int
    vocabulary: int

    @staticmethod
    def of(folder: Path) -> Shape:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["num_key_value_heads"] != config["num_attention_heads"]:
            raise ValueError(f"{folder}: operations are counted for models whose every head has its keys and values")
        return Shape(
            config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        )

    def forward(self, start: int, end: int, predicted: int) -> int:
        """Floating-point operations of the tokens [start, end) of a sequence, `predicted` of which go through the
        output layer; 2 for a multiply-add, causal attention, matrix products only."""
        linear = 2 * (4 * self.hidden**2 + 3 * self.hidden * self.wide)
        seen = (end * (end + 1) - start * (start + 1)) // 2
        per_layer = (end - start) * linear + 2 * 2 * self.hidden * seen
        return self.layers * per_layer + 2 * self.hidden * self.vocabulary * predicted


def needed_flops(shape: Shape, prompts: Sequence[int], samples: int, tokens: int, minibatches: int) -> dict[str, int]:
    """Operations of one step, by phase, that no implementation can do without: a study's prompt is read once for all
    its samples, padding is not counted. `tokens`: of every sample.

    The learner reads prompts and samples: once for the reference, once for the policy before the update (from the
    second mini-batch on), and once, three times the operations, for the gradient.
    """
    generate = sum(
        shape.forward(0, prompt, 1) + samples * shape.forward(prompt, prompt + tokens - 1, tokens - 1)
        for prompt in prompts
    )
    read = sum(
        shape.forward(0, prompt, 0) + samples * shape.forward(prompt, prompt + tokens - 1, tokens) for prompt in prompts
    )
    constants = read + round(read * (minibatches - 1) / minibatches)
    return {"generate": generate, "constants": constants, "forward_backward": 3 * read}
