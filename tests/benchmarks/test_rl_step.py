"""The comparison of a whole RL step with TRL's, with a tiny model: both sides run, and what is told adds up."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.rl_sides import PHASES, Shape, needed_flops
from benchmarks.rl_step import run, show

TINY = ("model=tiny", "learner.rl.studies_per_step=2", "rollout.samples_per_study=4", "rollout.max_new_tokens=16")


def test_the_operations_of_a_forward_pass_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    length, shape = 24, Shape(layers=3, hidden=32, wide=88, vocabulary=120)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=120, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=88,
            attn_implementation="eager",
        )
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, length, dtype=torch.long))
    # torch counts the whole square of attention, of which a causal model needs the lower triangle.
    upper = 3 * 2 * 2 * 32 * (length**2 - length * (length + 1) // 2)
    assert shape.forward(0, length, length) == pytest.approx(counter.get_total_flops() - upper, rel=0.01)
    assert shape.forward(0, 10, 1) + shape.forward(10, length, length - 1) == shape.forward(0, length, length)


def test_a_second_minibatch_costs_log_probs_of_the_policy_before_it() -> None:
    shape = Shape(layers=3, hidden=32, wide=88, vocabulary=120)
    one, two = (needed_flops(shape, [10, 12], 4, 16, minibatches) for minibatches in (1, 2))
    assert two["constants"] == 1.5 * one["constants"]
    assert one["forward_backward"] == two["forward_backward"] == 3 * one["constants"]
    predicted = 2 * 32 * 120 * (2 * 4 - 2)  # of every sample's first token, where generation has one for all
    assert one["constants"] - one["generate"] == predicted, "samples of a study share its prompt"


@pytest.mark.slow
def test_both_sides_take_the_same_step_in_turns_and_every_second_is_told() -> None:
    found = run(TINY, threads=1, steps=2, policy=None, peer_batch=4, natural=False)
    for side in (found["own"], found["trl"]):
        assert set(side["phases"]) == set(PHASES)
        assert sum(side["phases"].values()) == pytest.approx(side["seconds"], rel=0.5)
        assert all(side["phases"][name] > 0 for name in ("generate", "constants", "forward_backward", "optimizer"))
        assert 0 < side["share_of_peak"]["step"] < 1
    assert len(found["ratios"]) == 2
    assert "samples/s" in show(found)
