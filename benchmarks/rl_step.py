"""A whole RL step, ours against TRL's GRPOTrainer: samples/s, split by phase, beside the cores' matrix speed.

    python -m benchmarks.rl_step [--policy RUN_DIR/warm_start [--natural]] [--json FILE] [GROUP.FIELD=VALUE ...]

Contract: both start from the same language model and take turns, one step each, in one run; the one whose turn it is
not sleeps. Prompts have the same length (TRL's are text, as long as ours with their visual tokens), reports end after
`rollout.max_new_tokens` tokens (the end token is the padding token, which few or none of them hit on) or, with
`--natural`, where the model ends them: then the table tells how long each side's are. The reward comes from the same
server, whose references are known, and a rollout has the same optimizer steps. Both have the same threads
and compute in float32. Ours does more: it reads images (row "images", and the extractor below the table), for which
TRL's trainer of a plain language model has no place. Nothing else should run meanwhile; where the ratio of CPU times
differs, something did.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import rl_own, trl_peer
from benchmarks.reward_load import Server
from benchmarks.rl_sides import PHASES, Prompt, Setup, Shape, Side, Step, needed_flops
from configs.load import compose_config
from configs.schema import Config
from learner.environment import process_environment
from reward_server.client import RewardClient

WARM_UP = 2
# Phases whose operations are counted.
COUNTED = ("generate", "constants", "forward_backward")


@dataclass(frozen=True)
class Found:
    """All timed steps of both sides, the matrix products of each before and after, FLOP/s."""

    own: list[Step]
    peer: list[Step]
    own_gemm: list[float]
    peer_gemm: list[float]
    setup: Setup
    load_before: float


def prepare(
    config: Config, run_dir: Path, policy_dir: Path | None, steps: int, address: str, peer_batch: int, natural: bool
) -> Setup:
    """Writes the policy (that of `policy_dir`, or a random one) and features of the studies; makes their references
    known to the reward server."""
    from learner.rank import WARM_START
    from learner.sampler import studies_for_step
    from rrg.data import load_studies
    from rrg.model.backbone import make_store
    from rrg.model.build import build_policy, load_policy, save_policy

    studies = load_studies(config.data)
    train, rl = studies.split("train"), config.learner.rl
    chosen = [
        studies_for_step(
            train, seed=config.seed, step=step, count=rl.studies_per_step, abnormal_fraction=rl.abnormal_fraction
        )
        for step in range(steps)
    ]
    store = make_store(config.data, config.model)
    store.prepare([studies[name] for name in dict.fromkeys(name for names in chosen for name in names)])
    policy = load_policy(policy_dir) if policy_dir else build_policy(
        config.model, [study.target for study in train], config.seed, grid=store.grid, channels=store.channels,
        target=config.data.target, cache_dir=config.data.cache_dir,
    )  # fmt: skip
    if not natural:
        policy.tokenizer.eos_token = policy.tokenizer.pad_token
        for settings in (policy.llm.config, policy.llm.generation_config):
            settings.eos_token_id = policy.tokenizer.pad_token_id
    save_policy(policy, run_dir / WARM_START)
    prompts = tuple(
        tuple(
            _prompt(policy.tokenizer, name, studies[name].target, len(policy.prompt_tokens(studies[name])))
            for name in names
        )
        for names in chosen
    )
    with RewardClient([address]) as client:
        client.score([(prompt.reference, prompt.reference) for step in prompts for prompt in step])
    return Setup(config, run_dir, run_dir / WARM_START, address, prompts, peer_batch)


def _prompt(tokenizer: Any, study_id: str, reference: str, length: int) -> Prompt:
    """A text of exactly so many tokens, from the reference."""
    ids = tokenizer(f"{reference} " * (1 + length // 4))["input_ids"]
    for cut in range(length, 2 * length):
        text = tokenizer.decode(ids[:cut])
        if len(tokenizer(text)["input_ids"]) == length:
            return Prompt(study_id, text, length, reference)
    raise ValueError(f"no text of {length} tokens could be made for the study {study_id}")


def measure(setup: Setup, server: int) -> Found:
    """Runs both sides in turns; the first `WARM_UP` steps are not kept. `server`: the reward server's process."""
    load = os.getloadavg()[0]
    config = setup.config
    environment = process_environment(config.learner)
    with _side(rl_own.run, setup, environment) as own, _side(trl_peer.run, setup, environment) as peer:
        turns = [(own.step(server), peer.step(server)) for _ in setup.prompts]
        own.close()
        peer.close()
    return Found(
        own=[own for own, _ in turns[WARM_UP:]],
        peer=[peer for _, peer in turns[WARM_UP:]],
        own_gemm=own.gemm,
        peer_gemm=peer.gemm,
        setup=setup,
        load_before=load,
    )


@contextmanager
def _side(work: Callable[..., None], setup: Setup, environment: Mapping[str, str]) -> Iterator[Side]:
    side = Side(work, setup, environment)
    try:
        side.wait()
        yield side
    finally:
        side.kill()


def summarize(found: Found) -> dict[str, Any]:
    """Medians over the steps. A share is of the best matrix product of that side's learner."""
    sides = {"own": (found.own, found.own_gemm), "trl": (found.peer, found.peer_gemm)}
    summary: dict[str, Any] = {
        name: _side_summary(steps, max(gemm), found.setup) | {"gemm_gflops": [speed / 1e9 for speed in gemm]}
        for name, (steps, gemm) in sides.items()
    }
    ratios = [peer.seconds / own.seconds for own, peer in zip(found.own, found.peer, strict=True)]
    return summary | {
        "ratio": median(ratios),
        "ratios": ratios,
        "ratio_of_cpu_time": summary["trl"]["cpu_seconds"] / summary["own"]["cpu_seconds"],
        "load_before": found.load_before,
    }


def _side_summary(steps: Sequence[Step], peak: float, setup: Setup) -> dict[str, Any]:
    phases = {name: median(step.phases[name] for step in steps) for name in PHASES}
    seconds = median(step.seconds for step in steps)
    tokens = sum(step.tokens for step in steps) / len(steps)
    lengths = [prompt.tokens for prompt in setup.prompts[-1]]
    samples, minibatches = setup.config.rollout.samples_per_study, setup.config.learner.rl.minibatches
    report = round(tokens / steps[0].samples)
    needed = needed_flops(Shape.of(setup.policy / "llm"), lengths, samples, report, minibatches)
    return {
        "seconds": seconds,
        "steps": [step.seconds for step in steps],
        "samples_per_second": steps[0].samples / seconds,
        "phases": phases,
        "parts": {name: median(step.parts[name] for step in steps) for name in steps[0].parts},
        "share_of_peak": {name: needed[name] / phases[name] / peak for name in COUNTED}
        | {"step": sum(needed.values()) / seconds / peak},
        "tokens": tokens / steps[0].samples,
        "tokens_per_second": tokens / seconds,
        "sampled_tokens_per_second": tokens / phases["generate"],
        "learned_tokens_per_second": (samples * sum(lengths) + tokens) / phases["forward_backward"],
        "words": median(step.words for step in steps),
        "cpu_seconds": median(step.cpu_seconds for step in steps),
    }


def show(summary: Mapping[str, Any]) -> str:
    """The summary as text."""
    own, trl = summary["own"], summary["trl"]
    lines = [f"{'phase':18} {'ours, s':>9} {'TRL, s':>9} {'TRL/ours':>9} {'of peak: ours':>14} {'TRL':>6}"]
    for name in PHASES:
        mine, theirs = own["phases"][name], trl["phases"][name]
        ratio = f"{theirs / mine:9.2f}" if min(mine, theirs) > 1e-3 else f"{'-':>9}"
        shares = [f"{side['share_of_peak'][name]:.0%}" if name in COUNTED else "-" for side in (own, trl)]
        lines.append(f"{name:18} {mine:9.3f} {theirs:9.3f} {ratio} {shares[0]:>14} {shares[1]:>6}")
    shares = [f"{side['share_of_peak']['step']:.0%}" for side in (own, trl)]
    seconds = f"{own['seconds']:9.3f} {trl['seconds']:9.3f} {summary['ratio']:9.2f}"
    lines.append(f"{'step':18} {seconds} {shares[0]:>14} {shares[1]:>6}")
    for title, field in (
        ("samples/s", "samples_per_second"),
        ("tokens a report", "tokens"),
        ("tokens/s", "tokens_per_second"),
        ("sampled tokens/s", "sampled_tokens_per_second"),
        ("learned tokens/s", "learned_tokens_per_second"),
        ("words a report", "words"),
        ("CPU seconds", "cpu_seconds"),
    ):
        lines.append(f"{title:18} {own[field]:9.1f} {trl[field]:9.1f}")
    ratios = ", ".join(f"{ratio:.2f}" for ratio in summary["ratios"])
    peaks = [f"{min(side['gemm_gflops']):.0f}-{max(side['gemm_gflops']):.0f}" for side in (own, trl)]
    extractor = ", ".join(f"{name.removeprefix('extractor_')} {value:.3f}" for name, value in own["parts"].items())
    return "\n".join(
        [
            *lines,
            f"ratio of every pair of steps: {ratios}; of CPU time: {summary['ratio_of_cpu_time']:.2f}",
            f"matrix products, GFLOP/s: ours {peaks[0]}, TRL {peaks[1]}",
            f"load average before: {summary['load_before']:.1f}",
            f"the extractor in our learner (within the phases above), s: {extractor}",
        ]
    )


def run(
    overrides: Sequence[str], threads: int, steps: int, policy: Path | None, peer_batch: int, natural: bool
) -> dict[str, Any]:
    """The whole comparison."""
    given = [f"rollout.threads={threads}", f"learner.threads={threads}", *overrides]
    config = compose_config(given)
    with tempfile.TemporaryDirectory(prefix="rl-step-") as folder:
        server = Server(("--backend", config.reward.backend, "--threads", str(threads)), Path(folder) / "reward.log")
        try:
            server.wait()
            setup = prepare(config, Path(folder), policy, WARM_UP + steps, server.address, peer_batch, natural)
            summary = summarize(measure(setup, server.pid))
        finally:
            server.kill()
    about = {
        "threads": threads,
        "overrides": list(overrides),
        "policy": str(policy),
        "peer_batch": peer_batch,
        "natural": natural,
    }
    return summary | about


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rl_step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=5, help=f"timed ones, after {WARM_UP} others (%(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--policy", type=Path, metavar="DIR", help="a saved policy, as RUN_DIR/warm_start (random)")
    parser.add_argument("--natural", action="store_true", help="reports end where the model ends them")
    parser.add_argument("--peer-batch", type=int, default=32, metavar="N", help="TRL's micro-batch (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", help="of the config, as model=tiny rollout.max_new_tokens=32")
    args = parser.parse_intermixed_args(arguments)
    summary = run(args.overrides, args.threads, args.steps, args.policy, args.peer_batch, args.natural)
    print(show(summary))
    if args.json:
        args.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
