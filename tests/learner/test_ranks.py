"""Real DeepSpeed ranks in Ray actors: the same update however it is split, saved and restored bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from torch import nn

from actors.trajectory import BASELINE, Trajectory
from actors.weights import weights_digest
from configs.schema import (
    ClusterConfig,
    Config,
    DataConfig,
    KLConfig,
    LearnerConfig,
    LLMConfig,
    ModelConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
    SFTConfig,
)
from learner.checkpoints import RunState
from learner.group import DeepSpeedLearnerGroup, LearnerError, create_ranks, gather
from learner.restore import load_trained
from rrg.data import load_studies
from rrg.data.study import Study
from rrg.errors import UserError
from rrg.model.backbone import make_store
from rrg.model.build import load_policy
from rrg.model.precision import buffers_kept

STEPS = 3
SAMPLES = 3
KL_COEF = 0.1


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
        learner=LearnerConfig(threads=1, rl=RLConfig(minibatches=2), timeout_s=120.0),
        reward=RewardConfig(),
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
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


def start(config: Config, run_dir: Path, *, ranks: int, budget: int = 200) -> DeepSpeedLearnerGroup:
    """Started ranks, whose micro-batches hold three sequences unless `budget` says otherwise."""
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


def with_baselines(samples: list[Trajectory]) -> list[Trajectory]:
    """A greedy report before the samples of each study."""
    made: list[Trajectory] = []
    for sample in samples:
        if sample.sample_index == 0:
            made.append(dataclasses.replace(sample, sample_index=BASELINE, reward=0.25))
        made.append(sample)
    return made


def weights(group: DeepSpeedLearnerGroup) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    published = group.publish(1)
    arrays = dict(ray.get(published.tensors))
    assert published.digest == weights_digest(arrays)
    return arrays


def reinforcing(config: Config, run_dir: Path, warm_start: Path, ranks: int) -> DeepSpeedLearnerGroup:
    """Ranks at the start of RL from a copy of `warm_start`."""
    shutil.copytree(warm_start, run_dir / "warm_start")
    group = start(config, run_dir, ranks=ranks)
    group.begin_rl(None)
    return group


def shaped(config: Config, rl: RLConfig | None = None, **learner: object) -> Config:
    """`config` with another RL or learner setting."""
    changed = dataclasses.replace(config.learner, rl=rl or config.learner.rl, **learner)  # type: ignore[arg-type]
    return dataclasses.replace(config, learner=changed)


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
    by_one = [alone.rl_update(batch, step, KL_COEF) for step, batch in enumerate(batches)]
    alone.shutdown()

    by_two = [pair.rl_update(batches[0], 0, KL_COEF)]
    checkpoint = run_dir / "checkpoint"
    checkpoint.mkdir()
    pair.save(checkpoint)
    by_two += [pair.rl_update(batch, step, KL_COEF) for step, batch in enumerate(batches) if step > 0]
    for one, both in zip(by_one, by_two, strict=True):
        assert both == pytest.approx(one, rel=1e-4, abs=1e-5)
        assert one["failed"] == 1
        assert one["grad_norm"] > 0
    assert by_two[1]["kl_k2"] > 0  # the policy has moved away from the warm start

    elsewhere = tmp_path_factory.mktemp("again")
    shutil.copytree(run_dir / "warm_start", elsewhere / "warm_start")
    again = start(config, elsewhere, ranks=2, budget=200)
    again.begin_rl(checkpoint)
    assert [again.rl_update(batch, step, KL_COEF) for step, batch in enumerate(batches) if step > 0] == by_two[1:]
    restored, kept = weights(again), weights(pair)
    assert restored.keys() == kept.keys()
    assert all(np.array_equal(restored[name], kept[name]) for name in kept)
    again.shutdown()


def vector(folder: Path) -> torch.Tensor:
    """All weights of a saved policy."""
    return torch.cat([value.float().flatten() for value in load_policy(folder).state_dict().values()])


def test_ranks_and_micro_batches_do_not_change_the_warm_start(
    config: Config, cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    learner = dataclasses.replace(config.learner, sft=SFTConfig(1.5, 1.5, batch_size=4, warmup_steps=1))
    model = dataclasses.replace(config.model, dropout=0.0)
    shaped = dataclasses.replace(config, learner=learner, model=model)
    found = []
    for ranks, budget in ((1, 4096), (2, 150)):
        run_dir = tmp_path_factory.mktemp("sft")
        group = start(shaped, run_dir, ranks=ranks, budget=budget)
        steps = group.warm_start_total
        metrics = group.warm_start_steps(0, steps)
        group.end_warm_start()
        group.shutdown()
        assert [step["stage"] for step in metrics] == [0.0, 0.0, 1.0, 1.0]
        assert all(step["caption_loss"] > 0 for step in metrics)
        assert not (run_dir / "between_stages").exists()
        found.append((metrics, vector(run_dir / "initial"), vector(run_dir / "warm_start")))
    (by_one, first, last), (by_two, _, last_of_two) = found
    for one, both in zip(by_one, by_two, strict=True):
        assert both == pytest.approx(one, rel=1e-3, abs=1e-5)
    # Adam's first steps follow the sign of a gradient, however small: a few weights differ by a step.
    assert (last - last_of_two).norm() < 0.02 * (last - first).norm()


def test_lora_in_bfloat16_goes_on_bit_for_bit_from_checkpoints_that_hold_no_base(
    config: Config, studies: list[Study], cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("lora")
    llm = dataclasses.replace(config.model.llm, train="lora", broadcast="adapter")
    learner = dataclasses.replace(config.learner, sft=SFTConfig(0.5, 0.5, batch_size=4, warmup_steps=1))
    model = dataclasses.replace(config.model, llm=llm, dtype="bfloat16")
    shaped = dataclasses.replace(config, learner=learner, model=model)
    group = start(shaped, run_dir, ranks=1, budget=4096)
    group.warm_start_steps(0, group.warm_start_total)
    group.end_warm_start()
    group.begin_rl(None)
    batches = [rollouts(run_dir, studies, step) for step in range(2)]
    first = group.rl_update(batches[0], 0, KL_COEF)
    assert first["grad_norm"] > 0
    bases = [run_dir / name / "llm" / "model.safetensors" for name in ("initial", "warm_start")]
    for name in ("one", "two"):
        aside = run_dir / f"{name}.tmp"
        aside.mkdir()
        group.save(aside)
        aside.rename(run_dir / name)  # as checkpoints are
        bases.append(run_dir / name / "policy" / "llm" / "model.safetensors")
    assert len({base.stat().st_ino for base in bases}) == 1
    held = torch.load(run_dir / "one" / "deepspeed" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    assert any("lora_A" in name for name in held)
    assert not any("embed_tokens" in name or "base_layer" in name for name in held)
    expected, published = group.rl_update(batches[1], 1, KL_COEF), weights(group)
    group.shutdown()

    shutil.rmtree(run_dir / "two")
    again_dir = tmp_path_factory.mktemp("lora again")
    shutil.copytree(run_dir / "warm_start", again_dir / "warm_start")
    again = start(shaped, again_dir, ranks=1, budget=4096)
    again.begin_rl(run_dir / "one")
    assert again.rl_update(batches[1], 1, KL_COEF) == expected
    restored = weights(again)
    again.shutdown()
    assert all(np.array_equal(restored[name], published[name]) for name in published)


@pytest.mark.parametrize(
    ("zero_stage", "offload", "ranks"),
    [
        pytest.param(1, True, 1, marks=pytest.mark.slow),
        (2, False, 2),
        pytest.param(3, False, 1, marks=pytest.mark.slow),
        (3, True, 2),
    ],
)
def test_zero_stages_and_offload_do_not_change_the_update(
    config: Config,
    studies: list[Study],
    plain: tuple[Path, list[dict[str, float]]],
    tmp_path: Path,
    zero_stage: int,
    offload: bool,
    ranks: int,
) -> None:
    origin, expected = plain
    sharded = shaped(config, zero_stage=zero_stage, offload=offload)
    group = reinforcing(sharded, tmp_path, origin / "warm_start", ranks)
    batches = [rollouts(origin, studies, step) for step in range(STEPS)]
    first = group.rl_update(batches[0], 0, KL_COEF)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    group.save(checkpoint)
    found = [first, *(group.rl_update(batches[step], step, KL_COEF) for step in range(1, STEPS))]
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)
    kept = weights(group)
    group.begin_rl(checkpoint)
    assert [group.rl_update(batches[step], step, KL_COEF) for step in range(1, STEPS)] == found[1:]
    restored = weights(group)
    assert all(np.array_equal(restored[name], kept[name]) for name in kept)
    group.shutdown()


@pytest.fixture(scope="module")
def plain(
    config: Config, studies: list[Study], cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, float]]]:
    """One rank, ZeRO 1, everything in one micro-batch: a run directory with its warm start, and its updates."""
    run_dir = tmp_path_factory.mktemp("plain")
    group = start(config, run_dir, ranks=1, budget=4096)
    group.end_warm_start()
    group.begin_rl(None)
    updates = [group.rl_update(rollouts(run_dir, studies, step), step, KL_COEF) for step in range(STEPS)]
    group.shutdown()
    return run_dir, updates


@pytest.mark.parametrize(
    ("zero_stage", "before", "after"),
    [
        (1, 2, 1),
        pytest.param(2, 1, 2, marks=pytest.mark.slow),
        pytest.param(3, 2, 1, marks=pytest.mark.slow),
        (3, 1, 2),
    ],
)
def test_another_number_of_ranks_goes_on_from_a_checkpoint(
    config: Config,
    studies: list[Study],
    plain: tuple[Path, list[dict[str, float]]],
    tmp_path: Path,
    zero_stage: int,
    before: int,
    after: int,
) -> None:
    origin, _ = plain
    rl = dataclasses.replace(config.learner.rl, advantage="ppo")
    sharded = shaped(config, rl, zero_stage=zero_stage)
    group = reinforcing(sharded, tmp_path, origin / "warm_start", before)
    batches = [rollouts(origin, studies, step) for step in range(STEPS)]
    group.rl_update(batches[0], 0, KL_COEF)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    group.save(checkpoint)
    expected = [group.rl_update(batches[step], step, KL_COEF) for step in (1, 2)]
    group.shutdown()
    assert expected[0]["value_loss"] > 0

    group = start(sharded, tmp_path, ranks=after)
    group.begin_rl(checkpoint)
    for step, update in zip((1, 2), expected, strict=True):
        assert group.rl_update(batches[step], step, KL_COEF) == pytest.approx(update, rel=1e-4, abs=1e-5)
    group.shutdown()
    assert not (tmp_path / "of_other_ranks").exists()


OBJECTIVES = {
    "ppo": RLConfig(advantage="ppo", kl=KLConfig(place="reward", estimator="k1")),
    "kl in the reward, flat groups left out": RLConfig(
        advantage="rloo", kl=KLConfig(place="reward", estimator="k1"), drop_flat_groups=True
    ),
    "scst": RLConfig(advantage="scst", reduction="sequences", entropy_coef=0.1),
    "reinforce_pp": RLConfig(advantage="reinforce_pp", surrogate="cispo", reduction="constant"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "reinforce_pp" else name for name in OBJECTIVES]
)
def test_an_objective_does_not_depend_on_the_split(
    config: Config,
    studies: list[Study],
    plain: tuple[Path, list[dict[str, float]]],
    tmp_path: Path,
    name: str,
) -> None:
    origin, _ = plain
    batches = [with_baselines(rollouts(origin, studies, step)) for step in range(STEPS)]
    for trajectory in batches[0]:
        if trajectory.study_id == studies[0].id:
            trajectory.reward = 1.0
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        group = reinforcing(shaped(config, OBJECTIVES[name]), folder, origin / "warm_start", ranks)
        found.append([group.rl_update(batch, step, KL_COEF) for step, batch in enumerate(batches)])
        group.shutdown()
    for one, both in zip(*found, strict=True):
        assert both == pytest.approx(one, rel=1e-4, abs=1e-5)
        assert one["grad_norm"] > 0
    learnt_from = sum(len(t.token_ids) for t in batches[0] if t.failed is None and not t.baseline)
    flat = sum(len(t.token_ids) for t in batches[0] if t.study_id == studies[0].id and not t.baseline)
    dropped = flat if OBJECTIVES[name].drop_flat_groups else 0
    assert found[0][0]["tokens"] == learnt_from - dropped


def test_the_warm_start_goes_on_bit_for_bit_from_a_checkpoint_of_either_stage(
    config: Config, cluster: None, tmp_path: Path
) -> None:
    warm = shaped(config, sft=SFTConfig(1.5, 1.5, batch_size=4, warmup_steps=1))
    group = start(warm, tmp_path, ranks=1)
    total = group.warm_start_total
    metrics = []
    for step in range(total):
        metrics += group.warm_start_steps(step, 1)
        checkpoint = tmp_path / str(step + 1)
        checkpoint.mkdir()
        group.save(checkpoint)
        state = RunState("regions", step + 1, 0, 1, "", KL_COEF)
        (checkpoint / "state.json").write_text(json.dumps(dataclasses.asdict(state)))
    kept = weights(group)
    for done in (1, 2, 3):  # in the first stage, at its end, in the second
        group.begin_warm_start(tmp_path / str(done))
        assert group.warm_start_steps(done, total - done) == metrics[done:]
        again = weights(group)
        assert all(np.array_equal(again[name], kept[name]) for name in kept)
    group.shutdown()


def test_a_run_begins_with_the_weights_that_start_names(
    config: Config, plain: tuple[Path, list[dict[str, float]]], tmp_path: Path
) -> None:
    origin, _ = plain
    nothing = shaped(config, sft=SFTConfig(regions_epochs=0, epochs=0))
    group = start(dataclasses.replace(nothing, start=str(origin)), tmp_path, ranks=1)
    assert group.warm_start_total == 0
    group.end_warm_start()
    group.begin_rl(None)
    group.shutdown()
    assert torch.equal(vector(tmp_path / "warm_start"), vector(origin / "warm_start"))

    model = dataclasses.replace(config.model, regions=False)
    blind = dataclasses.replace(nothing, model=model, start=str(origin / "warm_start"))
    with pytest.raises(UserError, match=r"does not fit.*\n.*model.regions=False"):
        start(blind, tmp_path / "blind", ranks=1)


def test_a_checkpoint_must_hold_exactly_what_is_trained() -> None:
    trained, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    module = nn.ModuleDict({"trained": trained, "frozen": frozen})
    before = frozen.weight.clone()
    held = {name: torch.ones_like(value) for name, value in module.state_dict().items() if name.startswith("trained")}
    load_trained(held, module)
    assert torch.equal(trained.weight, torch.ones(2, 2))
    assert torch.equal(frozen.weight, before)
    with pytest.raises(UserError, match=r"lacks 1 trained tensors, the first is trained\.bias"):
        load_trained({"trained.weight": held["trained.weight"]}, module)
    with pytest.raises(UserError, match=r"has 1 tensors that the policy has not, the first is other"):
        load_trained(held | {"other": torch.ones(1)}, module)


def test_a_cast_leaves_the_buffers_that_are_kept() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module.register_buffer("frequencies", torch.tensor([0.1]), persistent=False)
    with buffers_kept(module):
        module.bfloat16()
    assert module[0].weight.dtype == torch.bfloat16
    assert module.get_buffer("frequencies").dtype == torch.float32


def test_a_dead_rank_is_named_and_does_not_hang_the_others(
    studies: list[Study], two: tuple[DeepSpeedLearnerGroup, Path]
) -> None:
    group, run_dir = two
    ray.kill(group.ranks[1])
    with pytest.raises(LearnerError, match=r"learner rank [01] died"):
        group.rl_update(rollouts(run_dir, studies, 0), 0, KL_COEF)


def test_a_rank_that_stands_still_is_named_within_the_time_out(config: Config, cluster: None, tmp_path: Path) -> None:
    timeout_s = 25.0
    group = start(shaped(config, timeout_s=timeout_s), tmp_path, ranks=2)
    pid = ray.get(group.ranks[1].__ray_call__.remote(lambda _: os.getpid()), timeout=timeout_s)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(LearnerError, match=r"learner rank 0 failed: .*; no answer from learner rank 1 within"):
        group.end_warm_start()
    assert time.monotonic() - began < timeout_s + 5
    group.shutdown()


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
