"""Real DeepSpeed ranks in Ray actors: the same update with one rank or two, saved and restored bit for bit."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.trajectory import Trajectory
from configs.schema import (
    ClusterConfig,
    Config,
    DataConfig,
    LearnerConfig,
    LLMConfig,
    ModelConfig,
    RLConfig,
    RolloutConfig,
)
from learner.group import DeepSpeedLearnerGroup, LearnerError, create_ranks, gather
from rrg.data import load_studies
from rrg.data.study import Study
from rrg.model.backbone import make_store
from rrg.model.build import load_policy

STEPS = 3
SAMPLES = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    llm = LLMConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128, vocab_size=400)
    return Config(
        data=DataConfig(
            "rendered_openi",
            cache_dir=str(tmp_path_factory.mktemp("cache")),
            limit_train=5,
            limit_val=0,
            limit_test=0,
            workers=1,
        ),
        model=ModelConfig(llm=llm, extractor_size=64),
        learner=LearnerConfig(threads=1, rl=RLConfig(minibatches=2, kl_coef=0.1), timeout_s=120.0),
        cluster=ClusterConfig(),
        rollout=RolloutConfig(samples_per_study=SAMPLES, max_new_tokens=24),
    )


@pytest.fixture(scope="module")
def studies(config: Config) -> list[Study]:
    loaded = list(load_studies(config.data))
    make_store(config.data, config.model).prepare(loaded)
    return loaded


@pytest.fixture(scope="module")
def cluster(studies: list[Study]) -> Iterator[None]:
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


def start(config: Config, run_dir: Path, *, ranks: int, budget: int) -> DeepSpeedLearnerGroup:
    learner = dataclasses.replace(config.learner, num_ranks=ranks, micro_batch_tokens=budget)
    shaped = dataclasses.replace(config, learner=learner)
    group = DeepSpeedLearnerGroup(shaped, create_ranks(shaped, run_dir))
    group.wait()
    return group


def rollouts(run_dir: Path, studies: list[Study], step: int) -> list[Trajectory]:
    """Reports of the studies as if sampled: cut at random places, rewards at random, one failed."""
    policy = load_policy(run_dir / "warm_start")
    rng = np.random.default_rng(step)
    made: list[Trajectory] = []
    for study in studies:
        ids, mask = policy.tokenize([study.target], 24)
        tokens = ids[0][mask[0]].numpy().astype(np.int32)
        for sample in range(SAMPLES):
            kept = tokens[: int(rng.integers(2, len(tokens) + 1))]
            made.append(
                Trajectory(
                    study_id=study.id,
                    sample_index=sample,
                    seed=0,
                    prompt_length=len(policy.prompt_tokens(study)),
                    token_ids=kept,
                    logprobs=(-np.log(policy.vocab_size) + 0.2 * rng.standard_normal(len(kept))).astype(np.float32),
                    versions=np.full(len(kept), step, dtype=np.int32),
                    finish_reason="stop",
                    text="",
                    components={"embedded": 1.0},
                    reward=float(rng.standard_normal()),
                )
            )
    made[4].failed = "no reward"
    made[4].reward = float("nan")
    return made


def weights(group: DeepSpeedLearnerGroup) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return dict(ray.get(group.publish(1).tensors))


@pytest.fixture(scope="module")
def two(config: Config, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[DeepSpeedLearnerGroup, Path]:
    """Two ranks whose micro-batches hold three sequences, at the start of RL."""
    run_dir = tmp_path_factory.mktemp("two")
    group = start(config, run_dir, ranks=2, budget=200)
    group.end_warm_start()
    group.begin_rl(None)
    return group, run_dir


def test_ranks_and_micro_batches_do_not_change_the_update_and_a_checkpoint_goes_on_bit_for_bit(
    config: Config,
    studies: list[Study],
    two: tuple[DeepSpeedLearnerGroup, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pair, run_dir = two
    batches = [rollouts(run_dir, studies, step) for step in range(STEPS)]

    alone = start(config, tmp_path_factory.mktemp("one"), ranks=1, budget=4096)
    alone.end_warm_start()
    alone.begin_rl(None)
    by_one = [alone.rl_update(batch, step) for step, batch in enumerate(batches)]
    alone.shutdown()

    by_two = [pair.rl_update(batches[0], 0)]
    checkpoint = run_dir / "checkpoint"
    checkpoint.mkdir()
    pair.save(checkpoint)
    by_two += [pair.rl_update(batch, step) for step, batch in enumerate(batches) if step > 0]
    for one, both in zip(by_one, by_two, strict=True):
        assert both == pytest.approx(one, rel=1e-4, abs=1e-5)
        assert one["failed"] == 1
        assert one["grad_norm"] > 0
    assert by_two[1]["kl_k2"] > 0  # the policy has moved away from the warm start

    elsewhere = tmp_path_factory.mktemp("again")
    shutil.copytree(run_dir / "warm_start", elsewhere / "warm_start")
    again = start(config, elsewhere, ranks=2, budget=200)
    again.begin_rl(checkpoint)
    assert [again.rl_update(batch, step) for step, batch in enumerate(batches) if step > 0] == by_two[1:]
    restored, kept = weights(again), weights(pair)
    assert restored.keys() == kept.keys()
    assert all(np.array_equal(restored[name], kept[name]) for name in kept)
    again.shutdown()


def test_a_dead_rank_is_named_and_does_not_hang_the_others(
    studies: list[Study], two: tuple[DeepSpeedLearnerGroup, Path]
) -> None:
    group, run_dir = two
    ray.kill(group.ranks[1])
    with pytest.raises(LearnerError, match=r"learner rank [01] died"):
        group.rl_update(rollouts(run_dir, studies, 0), 0)


def test_a_silent_rank_is_named_when_the_time_is_over(cluster: None) -> None:
    @ray.remote(num_cpus=0)
    def answer() -> int:
        return 1

    @ray.remote(num_cpus=0)
    def sleep() -> None:
        import time

        time.sleep(60)

    silent = sleep.remote()
    with pytest.raises(LearnerError, match=r"update: no answer from learner rank 1 within"):
        gather([answer.remote(), silent], "update", 5.0)
    ray.cancel(silent, force=True)
