"""A learner rank that stands still: the others' collective call ends, and the rank is named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from configs.schema import (
    ClusterConfig,
    Config,
    DataConfig,
    LearnerConfig,
    LLMConfig,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
)
from learner.group import DeepSpeedLearnerGroup, LearnerError, create_ranks
from rrg.data import load_studies
from rrg.model.backbone import make_store

TIMEOUT_S = 25.0


@pytest.fixture
def group(tmp_path: Path) -> Iterator[DeepSpeedLearnerGroup]:
    """Two ranks that are ready."""
    llm = LLMConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128, vocab_size=400)
    config = Config(
        data=DataConfig("rendered_openi", limit_train=5, limit_val=0, limit_test=0, workers=1),
        model=ModelConfig(llm=llm, extractor_size=64),
        learner=LearnerConfig(threads=1, num_ranks=2, timeout_s=TIMEOUT_S),
        reward=RewardConfig(),
        cluster=ClusterConfig(),
        rollout=RolloutConfig(samples_per_study=3, max_new_tokens=24),
    )
    make_store(config.data, config.model).prepare(list(load_studies(config.data)))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    group = DeepSpeedLearnerGroup(config, create_ranks(config, tmp_path))
    group.wait()
    yield group
    group.shutdown()
    ray.shutdown()


def test_a_rank_that_stands_still_is_named_within_the_time_out(group: DeepSpeedLearnerGroup) -> None:
    pid = ray.get(group.ranks[1].__ray_call__.remote(lambda _: os.getpid()), timeout=TIMEOUT_S)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(LearnerError, match=r"learner rank 0 failed: .*; no answer from learner rank 1 within"):
        group.end_warm_start()
    assert time.monotonic() - began < TIMEOUT_S + 5
