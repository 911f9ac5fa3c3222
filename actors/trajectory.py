"""What passes between the driver, the rollout actors and the learner: plain records, no framework types.

Contract: a `Trajectory` never carries a NaN. A sample whose generation or reward failed has `failed` set to
the reason, is masked by the learner and counted; it is never given a reward of zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rrg.canary import Canary
from rrg.model.evidence import Evidence

# The `sample_index` of a study's greedy report among its samples.
BASELINE = -1


@dataclass(frozen=True)
class WeightsRef:
    """A published version of the weights: where to get it and how to check it.

    `tensors` is a `ray.ObjectRef` of `dict[str, ndarray]` with the keys of `ReportPolicy.export_tensors()`, or that
    mapping itself within one process. `digest` is `actors.weights.weights_digest` of the arrays; only a mapping may
    come without. Where the language model comes another way (`rollout.weights`), `llm` says how (an
    `actors.nccl.WeightsSource`), and `tensors` has of it the token embeddings alone.
    """

    version: int
    tensors: Any
    canary: Canary
    digest: str | None = None
    llm: Any = None


@dataclass(frozen=True)
class SampleRequest:
    """One piece of rollout work: which studies, how to sample, and with which weights.

    The seed of sample i of a study is `sample_seed(seed, step, study_id, i)`, so the answer does not depend on
    which actor serves it. `greedy` decodes the single most likely report instead of sampling; `greedy_baseline` adds it
    to the samples of every study. `evidence` asks for what was seen in the studies' regions too. A `live` request takes
    newer weights that are offered to the actor, even in the middle of a report; any other keeps to `weights`.
    """

    step: int
    seed: int
    study_ids: tuple[str, ...]
    samples_per_study: int
    weights: WeightsRef
    greedy: bool = False
    greedy_baseline: bool = False
    score: bool = True
    evidence: bool = False
    live: bool = False


@dataclass
class Trajectory:
    """One sampled report with everything that the learner needs of it.

    `token_ids`, `logprobs` and `versions` have one entry a generated token, the end-of-sequence token included:
    the token, its log-probability under the sampling distribution, and the version of the weights that gave it.
    A greedy `baseline` (its `sample_index` is `BASELINE`) has a reward to compare with and is not learnt from.
    `evidence` is there where it was asked for and the study's prompt could be made.
    """

    study_id: str
    sample_index: int
    seed: int
    prompt_length: int
    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int32]
    finish_reason: Literal["stop", "length"]
    text: str = field(repr=False)
    components: Mapping[str, float] = field(default_factory=dict)
    reward: float = 0.0
    failed: str | None = None
    evidence: Evidence | None = field(default=None, repr=False)

    @property
    def baseline(self) -> bool:
        """Whether this is the greedy report that the study's samples are compared with."""
        return self.sample_index == BASELINE
