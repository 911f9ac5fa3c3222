"""The simulation of a run gives what is known in closed form, loses nothing, and learns nothing too old."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest

from benchmarks.scale import Split, best_split, row, table, with_split
from benchmarks.scale_clock import Clock, Mailbox, Process
from benchmarks.scale_hardware import GPUS, LLMS, Assumed, costs, fits, operations
from benchmarks.scale_pipeline import Costs, _Reports, simulate
from benchmarks.scale_validate import Usage, calibrated, cpu_seconds
from configs.schema import (
    BackboneConfig,
    Config,
    LearnerConfig,
    LLMConfig,
    ModelConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
)

# All reports have 10 tokens: nothing is left to chance.
EVEN = Costs(
    prompt_tokens=30, report_tokens=10, report_sigma=0.0, iteration_s=0.1, pair_s=0.01, update_s=1.0, publish_s=0.25,
    sync_s=0.125,
)  # fmt: skip
UNEVEN = replace(EVEN, report_tokens=30, report_sigma=0.6, sequence_s=0.001, prefill_token_s=0.0005)


def config(actors: int = 1, workers: int = 1, staleness: int = 0, studies: int = 16, samples: int = 4) -> Config:
    return Config(
        rollout=RolloutConfig(num_actors=actors, max_staleness=staleness, samples_per_study=samples),
        reward=RewardConfig(num_workers=workers),
        learner=LearnerConfig(rl=RLConfig(studies_per_step=studies)),
    )


def ends(cores: float, tasks: list[tuple[float, float]]) -> list[float]:
    """When tasks of (seconds, threads) end that start together."""
    clock = Clock(cores)
    found: dict[int, float] = {}
    all_done = clock.event()

    def task(index: int, seconds: float, threads: float) -> Process:
        yield clock.compute(seconds, threads)
        found[index] = clock.now
        if len(found) == len(tasks):
            all_done.happen()

    for index, (seconds, threads) in enumerate(tasks):
        clock.start(task(index, seconds, threads))
    clock.run(all_done)
    return [found[index] for index in range(len(tasks))]


def test_two_tasks_on_one_core_take_the_sum_of_their_times() -> None:
    assert ends(1, [(3, 1), (5, 1)]) == pytest.approx([6, 8])


def test_tasks_slow_each_other_down_only_where_they_have_more_threads_than_there_are_cores() -> None:
    assert ends(2, [(3, 1), (5, 1)]) == pytest.approx([3, 5])
    assert ends(2, [(4, 2), (2, 2)]) == pytest.approx([6, 4])
    assert ends(2, [(6, 1.5), (3, 1)]) == pytest.approx([6.75, 3.75])


def test_who_sleeps_takes_no_core() -> None:
    clock = Clock(cores=1)
    done = clock.event()

    def sleeper() -> Process:
        yield clock.sleep(2)
        assert clock.now == 2

    def worker() -> Process:
        yield clock.compute(3, 1)
        done.happen()

    clock.start(sleeper())
    clock.start(worker())
    clock.run(done)
    assert clock.now == pytest.approx(3)


def test_a_simulation_in_which_nothing_can_happen_any_more_says_so() -> None:
    clock = Clock()

    def reader() -> Process:
        yield from Mailbox[int](clock).take()

    clock.start(reader())
    with pytest.raises(RuntimeError, match="waits"):
        clock.run(clock.event())


def test_a_free_place_in_the_engine_is_taken_at_once() -> None:
    reports = _Reports(np.array([[2, 5], [4, 1]]), read=0, costs=replace(EVEN, sequences=2))
    # The places: 2, then 4 (0..2..6); 5, then 1 (0..5..6).
    assert [iteration for _, iteration, _ in reports.finishes] == [5, 6]
    assert reports.written(5).tolist() == [[2, 5], [3, 0]]


def test_a_synchronous_step_is_the_sum_of_its_phases() -> None:
    found = simulate(config(), EVEN)
    # All reports end at the same time: then the one worker scores all 64.
    assert found.step_s == pytest.approx(0.125 + 10 * 0.1 + 64 * 0.01 + 1.0 + 0.25)
    busy = {"rollout": 1.125, "reward": 0.64, "learner": 1.25}
    assert found.idle == pytest.approx({role: 1 - seconds / found.step_s for role, seconds in busy.items()})


@pytest.mark.parametrize("staleness", [1, 2])
def test_the_learner_sets_the_pace_where_it_is_the_slowest(staleness: int) -> None:
    found = simulate(config(staleness=staleness), replace(EVEN, update_s=30.0))
    assert found.samples_per_s == pytest.approx(64 / 30.25)
    assert found.idle["learner"] == pytest.approx(0, abs=1e-9)


def test_the_reward_sets_the_pace_where_it_is_the_slowest() -> None:
    slow = replace(EVEN, pair_s=0.5, update_s=0.1)
    for workers in (1, 2, 4):
        found = simulate(config(workers=workers, staleness=2, studies=160), slow, steps=44, warm_up=4)
        assert found.samples_per_s == pytest.approx(workers / 0.5, rel=0.02)


def test_the_actors_set_the_pace_where_they_are_the_slowest() -> None:
    slow = replace(EVEN, iteration_s=2.0, sync_s=0.0)
    found = simulate(config(actors=4, workers=4, staleness=2), slow)
    assert found.samples_per_s == pytest.approx(64 / 20, rel=0.01), "each writes a quarter, as long as a whole step"
    assert found.idle["rollout"] == pytest.approx(0, abs=0.01)


def test_more_reward_workers_help_only_where_the_reward_is_what_is_waited_for() -> None:
    fast, slow = replace(EVEN, update_s=30.0), replace(EVEN, pair_s=0.5)
    gains = {
        name: simulate(config(workers=3, staleness=1), costs).samples_per_s
        / simulate(config(workers=1, staleness=1), costs).samples_per_s
        for name, costs in {"learner": fast, "reward": slow}.items()
    }
    assert gains["learner"] == pytest.approx(1)
    assert gains["reward"] > 2


@pytest.mark.parametrize(("actors", "workers", "staleness"), product((1, 3), (1, 2), (0, 1, 3)))
def test_every_sample_is_learnt_from_once_and_none_is_too_old(actors: int, workers: int, staleness: int) -> None:
    found = simulate(config(actors, workers, staleness, studies=10), UNEVEN, steps=9)
    assert found.learnt == 9 * 10 * 4
    assert found.stalest <= staleness
    assert 0 <= found.staleness <= staleness


def test_the_bound_of_the_staleness_is_made_use_of() -> None:
    found = simulate(config(staleness=3), replace(EVEN, update_s=30.0))
    assert found.stalest == 3
    assert simulate(config(), EVEN).staleness == 0


@pytest.mark.parametrize("cores", [1.0, 2.0, math.inf])
def test_asynchronous_is_never_slower_than_synchronous(cores: float) -> None:
    for actors, workers, update_s in product((1, 3), (1, 3), (0.2, 2.0, 20.0)):
        # Without what is read anew after an interruption: that is the price of fresher weights.
        priced = replace(UNEVEN, update_s=update_s, sync_s=0.0, prefill_token_s=0.0, cores=cores)
        speeds = [simulate(config(actors, workers, k), priced).samples_per_s for k in (0, 1, 2)]
        assert speeds[1] >= 0.999 * speeds[0]
        assert speeds[2] >= 0.999 * speeds[0]


def test_a_simulation_gives_the_same_numbers_every_time() -> None:
    assert simulate(config(3, 2, 1), UNEVEN) == simulate(config(3, 2, 1), UNEVEN)


def test_the_search_finds_the_split_that_trying_all_finds() -> None:
    gpus = 16
    cfg = config(staleness=1, studies=48)
    work = replace(UNEVEN, pair_s=0.05, update_s=0.0)

    def speed(split: Split) -> float:
        return simulate(
            with_split(replace(cfg, rollout=replace(cfg.rollout, gpus_per_actor=1)), split),
            replace(work, update_token_s=0.002),
            steps=5, warm_up=2,
        ).samples_per_s  # fmt: skip

    every = [
        Split(gpus - learner - reward, learner, reward)
        for reward in range(1, gpus - 1)
        for learner in range(1, gpus - reward)
    ]
    found, best = best_split(gpus, speed)
    assert best >= 0.98 * max(map(speed, every))
    assert speed(found) == best
    assert found.rollout + found.learner + found.reward == gpus


def gpu_config(train: str = "lora") -> Config:
    cfg = config(staleness=1, studies=64, samples=16)
    llm = LLMConfig(path="meta-llama/Llama-2-7b-hf", train=train, broadcast="adapter" if train == "lora" else "merged")
    return replace(
        cfg,
        model=ModelConfig(llm=replace(llm, gradient_checkpointing=True), backbone=BackboneConfig()),
        rollout=replace(cfg.rollout, gpus_per_actor=1.0, max_num_seqs=256, kv_cache_mib=16384, max_new_tokens=160),
        learner=replace(cfg.learner, micro_batch_tokens=32768),
    )


def test_the_costs_are_those_of_the_data_sheet() -> None:
    gpu, llm = GPUS["h100"], LLMS["meta-llama/Llama-2-7b-hf"]
    assumed = Assumed(decode_mbu=1.0, decode_mfu=1.0, training_mfu=1.0)
    found = costs(gpu_config(), gpu, llm, assumed)
    assert found.weights_s == pytest.approx(2 * 6.738e9 / 3.35e12), "the weights are read once an iteration"
    assert found.sequence_s == pytest.approx(2 * 6.738e9 / 989.5e12)
    assert found.prompt_tokens == 29 + 4 + 40
    assert found.sequences == int(16384 * 2**20 / (524288 * (73 + 80))), "the KV cache holds no more"
    # LoRA: 4, recomputation 2, reference 2, proximal log-probs of the second of two mini-batches: 1 a token.
    assert operations(gpu_config(), llm) == pytest.approx(9 * 6.738e9)
    assert operations(gpu_config("full"), llm) == pytest.approx(11 * 6.738e9)
    assert found.update_token_s == pytest.approx(9 * 6.738e9 / 989.5e12)


def test_full_training_of_7b_fits_from_three_gpus_of_80_gb_and_adapters_fit_one() -> None:
    gpu, llm = GPUS["h100"], LLMS["meta-llama/Llama-2-7b-hf"]
    for ranks in (1, 2, 3, 4):
        assert fits(with_split(gpu_config("full"), Split(1, ranks, 1)), gpu, llm) == (ranks >= 3)
        assert fits(with_split(gpu_config("lora"), Split(1, ranks, 1)), gpu, llm)


def test_a_table_tells_what_does_not_fit_and_what_an_epoch_costs() -> None:
    assumed = Assumed(studies=6400)
    gpu, llm = GPUS["h100"], LLMS["meta-llama/Llama-2-7b-hf"]
    rows = [row(gpu_config("full"), gpu, llm, assumed, gpus) for gpus in (4, 6)]
    header, (small, large) = table(rows, assumed, price=2.0)
    assert "does not fit" in small
    found = rows[1].outcome
    assert found is not None
    assert rows[1].split is not None
    epoch_h = 100 * found.step_s / 3600
    assert float(large[header.index("an epoch at 2 a GPU-hour")]) == pytest.approx(6 * 2 * epoch_h, abs=0.5)
    assert found.samples_per_s == pytest.approx(64 * 16 / found.step_s)


def test_calibration_gives_back_the_costs_of_the_run_that_it_sees() -> None:
    cfg = replace(config(studies=16, samples=8), model=ModelConfig())
    sleeping = 0.05
    true = replace(
        UNEVEN, prompt_tokens=35, report_tokens=20, report_sigma=0.5, iteration_s=0, sequences=128, update_s=0,
        sync_s=0.2, sequence_s=0.003, prefill_token_s=0.001, pair_sleep_s=sleeping, pair_s=0.02, update_token_s=0.002,
        rollout_threads=1.0, reward_threads=0.9, learner_threads=1.5, cores=1.875,
    )  # fmt: skip
    found = simulate(cfg, true, steps=8, warm_up=2)
    busy = {role: (1 - idle) * found.step_s for role, idle in found.idle.items()}
    step = {
        "seconds_step": found.step_s,
        "samples": 128.0,
        "length_mean": 20.0,
        "seconds_update": busy["learner"] - true.publish_s,
        "seconds_sync": true.publish_s + true.sync_s,
        **{f"idle_{role}": idle for role, idle in found.idle.items()},
    }
    cpu = {
        "rollout": busy["rollout"] * true.rollout_threads,
        "reward": (busy["reward"] - 128 * sleeping) * true.reward_threads,
        "learner": busy["learner"] * true.learner_threads,
        "other": 0.125 * found.step_s,
    }
    usage = Usage({role: 6 * seconds for role, seconds in cpu.items()}, wall_s=6 * found.step_s)
    seen = calibrated(cfg, [step], usage, cores=2)
    assert asdict(seen) == pytest.approx(asdict(true), rel=0.03)
    faster = replace(cfg, rollout=replace(cfg.rollout, num_actors=2, max_staleness=1))
    assert simulate(faster, seen).samples_per_s == pytest.approx(simulate(faster, true).samples_per_s, rel=0.03)


def test_cpu_time_is_told_apart_by_what_a_process_is_called() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    before = cpu_seconds()["reward"]
    command = [sys.executable, "-c", burn, "slow_reward"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        spent = cpu_seconds()["reward"] - before
        child.communicate(b"\n", timeout=60)
    assert 0.15 < spent < 2
