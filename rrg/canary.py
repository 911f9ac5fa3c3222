"""What weights give on fixed inputs, so that a receiver can tell whether it got the publisher's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Canary:
    """What the learner's weights give on fixed inputs; an actor compares before it serves a new version.

    `logprobs[i]` is the learner's log-probability of `token_ids[i + 1]` given the tokens before it (LLM alone);
    `embeds` the visual tokens of `rrg.model.canary.canary_images` (extractor alone), shape [k, hidden].
    """

    token_ids: tuple[int, ...]
    logprobs: npt.NDArray[np.float32]
    embeds: npt.NDArray[np.float32]
