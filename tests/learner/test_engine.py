"""The learner's optimizer: what is trained, and how fast. DeepSpeed with one rank, in a child process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from configs.schema import LearnerConfig
from learner.environment import process_environment

SETUP = """
import sys
import torch
from torch import nn
from configs.schema import LearnerConfig
from learner.engine import ParameterGroup, backward_sum, join_process_group, make_engine, optimizer_step

learner = LearnerConfig(zero_stage=int(sys.argv[2]))
join_process_group(learner, ("127.0.0.1", int(sys.argv[1])), rank=0, world_size=1)
module = nn.ModuleDict({name: nn.Linear(3, 1, bias=False) for name in ("fast", "slow", "frozen")})
module.forward = lambda x: sum(part(x).sum() for part in module.values())
before = {name: part.weight.detach().clone() for name, part in module.items()}
groups = [ParameterGroup(list(module["fast"].parameters())), ParameterGroup(list(module["slow"].parameters()), 0.1)]
engine = make_engine(module, groups, learner, weight_decay=0.0, bf16=False)
"""
ONE_STEP = """
backward_sum(engine, engine(torch.ones(1, 3)))
optimizer_step(engine, 0.01)
print(*((part.weight.detach() - before[name]).abs().mean().item() for name, part in module.items()))
"""


# The loss is finite, 0, and its gradient is not.
BROKEN_STEP = """
from rrg.errors import RunStoppedError
backward_sum(engine, (0.0 * engine(torch.ones(1, 3))).square().sqrt())
try:
    optimizer_step(engine, 0.01)
except RunStoppedError as error:
    print(error)
"""


def run(script: str, stage: int) -> str:
    """The last line that the script prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = subprocess.run(
        [sys.executable, "-c", SETUP + script, str(port), str(stage)],
        env=os.environ | process_environment(LearnerConfig(threads=1)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert out.returncode == 0, out.stderr
    return out.stdout.splitlines()[-1]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_group_moves_by_its_share_of_the_learning_rate_and_what_is_in_none_stays(stage: int) -> None:
    fast, slow, frozen = map(float, run(ONE_STEP, stage).split())
    assert fast == pytest.approx(0.01, rel=1e-3)  # Adam's first step is the learning rate
    assert slow == pytest.approx(0.001, rel=1e-3)
    assert frozen == 0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_stops_the_run_at_any_zero_stage(stage: int) -> None:
    assert "the gradient is not finite" in run(BROKEN_STEP, stage)
