"""What goes into the rollout engine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prompt:
    """Embeds [P, hidden] float32 and the seed of the one sample to draw after them; None: the most likely tokens.

    Of a sample that goes on after an interruption, the last `written` embeds are those of its tokens so far.
    """

    embeds: npt.NDArray[np.float32]
    seed: int | None
    written: int = 0


@dataclass(frozen=True)
class Sampling:
    """How to draw: at most `max_new_tokens`, the end-of-sequence token `eos` included; greedy ignores all seeds."""

    max_new_tokens: int
    eos: int
    temperature: float = 1.0
    greedy: bool = False


@dataclass(frozen=True)
class Sample:
    """The new tokens of `prompts[index]`; a failed sample has the reason and no tokens to rely on.

    An interrupted one has no end yet, and maybe no token.
    """

    index: int
    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    finish_reason: Literal["stop", "length", "interrupted"]
    failed: str | None = None


def read_sample(output: Any) -> Sample:
    """What vLLM gave for a request, whose id is the prompt's index, as a Sample."""
    completion = output.outputs[0]
    reason: Any = completion.finish_reason if output.finished else "interrupted"
    logprobs = np.asarray(completion.logprobs.logprobs, dtype=np.float32)
    failed = None
    if reason not in ("stop", "length", "interrupted"):
        failed = f"vLLM ended the sample with {reason!r}"
    elif len(logprobs) != len(completion.token_ids) or not np.isfinite(logprobs).all():
        failed = "the engine gave a NaN log-probability"
    return Sample(
        index=int(output.request_id),
        token_ids=np.asarray(completion.token_ids, dtype=np.int32),
        logprobs=logprobs,
        finish_reason=reason if failed is None else "length",
        failed=failed,
    )


def not_begun(index: int) -> Sample:
    """A sample that was interrupted before its first token."""
    return Sample(index, np.zeros(0, np.int32), np.zeros(0, np.float32), "interrupted")
