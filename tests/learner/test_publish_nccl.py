"""A DeepSpeed rank that sends its weights while it trains. There is no GPU here: gloo stands in for NCCL."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from actors.env import rollout_env
from actors.errors import WeightsError
from actors.nccl import Arrival, Transfer
from configs.schema import Config
from learner.group import DeepSpeedLearnerGroup, create_ranks
from learner.rank import DeepSpeedRank
from rrg.data.study import Study
from rrg.model.build import load_policy
from tests.actors.gloo import GlooCommunicator, use_gloo
from tests.learner.test_ranks import KL_COEF, cluster, config, rollouts, studies

__all__ = ["cluster", "config", "studies"]  # fixtures


class GlooRank(DeepSpeedRank):
    def open_transfer(self, version: int, receiver: str, workers: int, timeout_s: float) -> Transfer:
        from vllm.distributed.device_communicators import pynccl

        pynccl.PyNcclCommunicator = GlooCommunicator
        return super().open_transfer(version, receiver, workers, timeout_s)


def taken(transfer: Transfer) -> dict[str, torch.Tensor]:
    arrival = Arrival(transfer, 1, torch.device("cpu"))
    tensors = dict(arrival)
    arrival.finish()
    return tensors


@pytest.mark.usefixtures("cluster")
def test_the_weights_before_an_update_can_be_taken_while_it_runs(
    config: Config, studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.environ.update(rollout_env(config.rollout))
    use_gloo(monkeypatch)
    rollout = dataclasses.replace(config.rollout, weights="nccl")
    cfg = dataclasses.replace(config, rollout=rollout)
    group = DeepSpeedLearnerGroup(cfg, create_ranks(cfg, tmp_path, GlooRank))
    group.wait()
    group.end_warm_start()
    group.begin_rl(None)
    before = group.publish(0)
    taken(before.llm.ask(0, "an actor", 1, 60.0))  # rank 0 has imported vLLM now
    update = group.rl_update_async(rollouts(tmp_path, studies, 0), 0, KL_COEF)
    transfer = before.llm.ask(0, "a late actor", 1, 60.0)
    assert not update.done(), "it was answered beside the update"
    came = taken(transfer)
    expected = load_policy(tmp_path / "warm_start").llm.state_dict()
    assert came.keys() == expected.keys()
    assert all(torch.equal(came[name], tensor) for name, tensor in expected.items())
    update.result()
    after = group.publish(1)
    assert any(not torch.equal(came[name], tensor) for name, tensor in taken(after.llm.ask(1, "x", 1, 60.0)).items())
    with pytest.raises(WeightsError, match=r"weights version 7: learner rank 0 opened no transfer.*has 0, 1"):
        after.llm.ask(7, "x", 1, 60.0)
    group.shutdown()
