"""Batching: every report is in one micro-batch within the budget, and studies stay together."""

from __future__ import annotations

import numpy as np

from learner.batching import Round, micro_batch_rounds, split_groups, study_rounds


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


def rounds_of(counts: list[int], *, budget: int = 10**6, most: int = 10**6, ranks: int = 1) -> list[Round]:
    """Studies with so many sequences; prompts of 37 tokens, sequences of 20."""
    studies = [name for name, count in enumerate(counts) for _ in range(count)]
    return study_rounds(
        [str(name) for name in studies], [37] * len(studies), [20] * len(studies),
        token_budget=budget, most=most, world_size=ranks,
    )  # fmt: skip


def test_sequences_with_shared_prompts_are_each_in_one_micro_batch_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    for ranks in (1, 2, 3):
        counts = rng.integers(1, 9, 12).tolist()
        studies = np.repeat(np.arange(12), counts)
        lengths = rng.integers(1, 60, len(studies)).tolist()
        prompts = (30 + studies).tolist()
        rounds = study_rounds(
            studies.astype(str).tolist(), prompts, lengths, token_budget=300, most=9, world_size=ranks
        )
        assert sorted(i for shares in rounds for share in shares for i in share) == list(range(len(studies)))
        for share in (share for shares in rounds for share in shares if share):
            read = {studies[i]: prompts[i] for i in share}
            assert sum(read.values()) + sum(lengths[i] for i in share) <= 300
            assert len(share) <= 9
            assert list(share) == sorted(share), "the samples of a study stand in a row"
        assert all(shares[0] for shares in rounds)


def test_a_study_is_divided_only_where_it_must_be() -> None:
    whole = [set(range(8 * k, 8 * k + 8)) for k in range(4)]
    shares = [set(share) for shares in rounds_of([8] * 4, budget=450, ranks=2) for share in shares]
    assert all(any(study <= share for share in shares) for study in whole)
    assert len(shares) == 2, "no more micro-batches than the budget needs"
    assert [len(share) for shares in rounds_of([8], budget=117) for share in shares] == [4, 4]
    assert [len(share) for shares in rounds_of([8], ranks=2) for share in shares] == [4, 4], "no rank is idle"
    assert rounds_of([1], budget=1) == [((0,),)], "a sequence over the budget is alone"
    assert rounds_of([1], ranks=2) == [((0,), ())]


def test_mini_batches_keep_the_samples_of_a_study_together() -> None:
    groups = ["a", "a", "b", "b", "c", "c"]
    assert split_groups(groups, 2) == [[0, 1, 4, 5], [2, 3]]
