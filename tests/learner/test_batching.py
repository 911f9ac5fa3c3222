"""Batching: every report is in one micro-batch within the budget, and studies stay together."""

from __future__ import annotations

import numpy as np

from learner.batching import micro_batch_rounds, split_groups


def test_every_sequence_is_in_exactly_one_micro_batch_whatever_the_ranks() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 37).tolist()
    for world_size in (1, 2, 3):
        rounds = micro_batch_rounds(
            [39 + length for length in lengths], token_budget=600, most=5, world_size=world_size
        )
        flat = [index for shares in rounds for share in shares for index in share]
        assert sorted(flat) == list(range(37))
        for share in (share for shares in rounds for share in shares if share):
            assert len(share) * (39 + max(lengths[i] for i in share)) <= 600
            assert len(share) <= 5


def test_mini_batches_keep_the_samples_of_a_study_together() -> None:
    groups = ["a", "a", "b", "b", "c", "c"]
    assert split_groups(groups, 2) == [[0, 1, 4, 5], [2, 3]]
