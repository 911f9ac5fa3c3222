"""What an update tells of the ages of the weights that sampled its tokens."""

from __future__ import annotations

import numpy as np

from actors.trajectory import Trajectory
from learner.update import fresh_tokens, staleness


def sampled_by(*versions: int) -> Trajectory:
    count = len(versions)
    return Trajectory(
        study_id="s",
        sample_index=0,
        seed=0,
        prompt_length=3,
        token_ids=np.zeros(count, dtype=np.int32),
        logprobs=np.zeros(count, dtype=np.float32),
        versions=np.array(versions, dtype=np.int32),
        finish_reason="stop",
        text="",
    )


def test_only_tokens_by_the_weights_that_the_step_begins_with_are_fresh() -> None:
    fresh = fresh_tokens([sampled_by(2, 2, 3), sampled_by(), sampled_by(3)], step=3)
    assert fresh.tolist() == [[False, False, True], [False, False, False], [True, False, False]]


def test_the_shares_of_ages_are_told_by_token() -> None:
    told = staleness([sampled_by(2, 2, 3), sampled_by(3)], step=3, most=1)
    assert (told["staleness_0"], told["staleness_1"], told["staleness_max"]) == (0.5, 0.5, 1.0)
