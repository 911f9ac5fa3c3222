"""Rules for the RL part of a configuration (`configs.check`): which parts of an objective go together.

Contract: each broken rule is a line that names the field, says why, and what to do. The parts are in
learner/objectives (docs/algorithms.md).
"""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import Config, RLConfig, ValueConfig

# Advantages that compare the reports of one study with each other, ones against its greedy report, and ones of tokens.
GROUP_ADVANTAGES = ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline")
TOKEN_ADVANTAGES = ("reinforce_pp", "ppo")
ADVANTAGES = (*GROUP_ADVANTAGES, "scst", *TOKEN_ADVANTAGES)
SURROGATES = ("ppo_clip", "gspo", "cispo", "reinforce")
REDUCTIONS = ("tokens", "sequences", "constant")
# The proportional error by which kl.coef is adapted is cut to this (Ziegler et al. 2019, arXiv:1909.08593).
KL_ERROR_LIMIT = 0.2
# What the evaluations on validation studies measure: what may stop a run, and what may choose the best checkpoint.
STOP_MEASURES = ("finding_f1", "abnormal_reward", "unique", "shuffle_gap")
BEST_MEASURES = ("reward", *STOP_MEASURES, "bleu4")


def check_rl(cfg: Config) -> Iterator[str]:
    """The broken rules of `cfg.learner.rl` and of what must fit it, each as a line that says what to do."""
    rl = cfg.learner.rl
    unknown = [*_choices(rl)]
    yield from unknown
    yield from _ranges(rl)
    if unknown:  # How parts go together cannot be told of parts that do not exist.
        return
    yield from _advantage(cfg)
    yield from _surrogate(rl)
    yield from _kl(cfg)
    yield from _correction(cfg)


def _choices(rl: RLConfig) -> Iterator[str]:
    for name, value, known in (
        ("advantage", rl.advantage, ADVANTAGES),
        ("surrogate", rl.surrogate, SURROGATES),
        ("reduction", rl.reduction, REDUCTIONS),
        ("kl.place", rl.kl.place, ("loss", "reward", "off")),
        ("kl.estimator", rl.kl.estimator, ("k1", "k2", "k3")),
        ("correction.mode", rl.correction.mode, ("truncate", "mask", "off")),
        ("correction.level", rl.correction.level, ("token", "sequence")),
        *(("stop.measures", measure, STOP_MEASURES) for measure in rl.stop.measures),
    ):
        if value not in known:
            quotes = ' (a bare off in YAML is false: write "off")' if value == "False" else ""
            yield f"learner.rl.{name}={value}: one of {', '.join(known)}{quotes}"
    if rl.keep_best is not None and rl.keep_best not in BEST_MEASURES:
        yield f"learner.rl.keep_best={rl.keep_best}: one of {', '.join(BEST_MEASURES)}, or null"


def _ranges(rl: RLConfig) -> Iterator[str]:
    above: dict[str, float | None] = {
        "studies_per_step": rl.studies_per_step,
        "minibatches": rl.minibatches,
        "lr": rl.lr,
        "clip_low": rl.clip_low,
        "clip_high": rl.clip_high,
        "kl.target": rl.kl.target,
        "kl.horizon": rl.kl.horizon,
        "value.clip": rl.value.clip,
        "value.lr_scale": rl.value.lr_scale,
        "evaluate_studies": rl.evaluate_studies,
        "stop.max_kl": rl.stop.max_kl,
        "stop.max_logprob_gap": rl.stop.max_logprob_gap,
        "stop.window": rl.stop.window,
        "stop.collapse": rl.stop.collapse,
        "stop.patience": rl.stop.patience,
        "checkpoint_every": rl.checkpoint_every,
        "keep_checkpoints": rl.keep_checkpoints,
    }
    for name, value in above.items():
        if value is not None and value <= 0:
            yield f"learner.rl.{name}={value}: must be above 0"
    for name, value in {
        "steps": rl.steps,
        "warmup_steps": rl.warmup_steps,
        "kl.coef": rl.kl.coef,
        "value.coef": rl.value.coef,
        "entropy_coef": rl.entropy_coef,
        "region_weight": rl.region_weight,
        "evaluate_every": rl.evaluate_every,
    }.items():
        if value < 0:
            yield f"learner.rl.{name}={value:g}: must not be below 0 (0 leaves it out)"
    for name, share in {
        "abnormal_fraction": rl.abnormal_fraction,
        "value.gamma": rl.value.gamma,
        "value.gae_lambda": rl.value.gae_lambda,
    }.items():
        if not 0 <= share <= 1:
            yield f"learner.rl.{name}={share}: must be a share between 0 and 1"
    if rl.correction.cap < 1:
        yield f"learner.rl.correction.cap={rl.correction.cap:g}: below 1 it would cut tokens that need no correction"


def _advantage(cfg: Config) -> Iterator[str]:
    rl = cfg.learner.rl
    compares = rl.advantage in GROUP_ADVANTAGES
    if compares and cfg.rollout.samples_per_study < 2:
        yield (
            f"rollout.samples_per_study < 2: learner.rl.advantage={rl.advantage} compares reports of one study, so it "
            "needs at least 2 (scst, reinforce_pp and ppo do with 1)"
        )
    if not compares and rl.drop_flat_groups:
        yield (
            f"learner.rl.drop_flat_groups with learner.rl.advantage={rl.advantage}: reports with the same reward teach "
            f"here too, leave it out (it is for {', '.join(GROUP_ADVANTAGES)})"
        )
    if cfg.reward.relative_to_constant and rl.advantage not in TOKEN_ADVANTAGES:
        yield (
            f"reward.relative_to_constant with learner.rl.advantage={rl.advantage} changes nothing: the reports of a "
            f"study are compared with each other already; leave it out, or use {' or '.join(TOKEN_ADVANTAGES)}"
        )
    if rl.advantage == "ppo" and rl.value.coef == 0:
        yield (
            "learner.rl.value.coef=0 with learner.rl.advantage=ppo: the value head would learn nothing; set it above "
            "0, or advantage=reinforce_pp, which does without"
        )
    if rl.advantage != "ppo" and rl.value != ValueConfig():
        yield (
            f"learner.rl.value with learner.rl.advantage={rl.advantage}: only ppo has a value head; leave it out, or "
            "set learner.rl.advantage=ppo"
        )


def _surrogate(rl: RLConfig) -> Iterator[str]:
    if rl.clip_low >= 1 and rl.surrogate != "cispo":
        yield f"learner.rl.clip_low={rl.clip_low:g}: must be below 1 (only cispo can do without a lower end)"
    if rl.dual_clip is not None and rl.dual_clip <= 1:
        yield f"learner.rl.dual_clip={rl.dual_clip:g}: must be above 1 (3 is usual), or null"
    if rl.dual_clip is not None and rl.surrogate not in ("ppo_clip", "gspo"):
        yield f"learner.rl.dual_clip with learner.rl.surrogate={rl.surrogate}: it is for ppo_clip and gspo, set null"
    if rl.surrogate == "reinforce" and rl.minibatches > 1:
        yield (
            f"learner.rl.surrogate=reinforce with learner.rl.minibatches={rl.minibatches}: from the second on the "
            "reports are not the policy's own and nothing corrects for that; set minibatches=1, or surrogate=cispo"
        )
    if rl.surrogate == "gspo" and rl.advantage in TOKEN_ADVANTAGES:
        yield (
            f"learner.rl.surrogate=gspo with learner.rl.advantage={rl.advantage}: one ratio a report needs one "
            "advantage a report; set surrogate=ppo_clip, or another advantage"
        )
    if rl.surrogate == "gspo" and rl.correction.mode != "off" and rl.correction.level != "sequence":
        yield (
            f"learner.rl.surrogate=gspo with learner.rl.correction.level={rl.correction.level}: one ratio a report "
            "needs one correction a report; set learner.rl.correction.level=sequence"
        )


def _kl(cfg: Config) -> Iterator[str]:
    rl, kl = cfg.learner.rl, cfg.learner.rl.kl
    if kl.place == "loss" and kl.estimator == "k1":
        yield (
            "learner.rl.kl.estimator=k1 with kl.place=loss: its gradient is zero on average and would hold nothing; "
            "set kl.estimator=k2 or k3, or kl.place=reward"
        )
    if kl.place == "reward" and kl.estimator != "k1":
        yield (
            f"learner.rl.kl.estimator={kl.estimator} with kl.place=reward: only k1 gives the gradient of the KL there; "
            "set kl.estimator=k1"
        )
    if kl.place == "reward" and rl.advantage == "grpo":
        yield (
            "learner.rl.kl.place=reward with learner.rl.advantage=grpo: where a study's rewards are all alike, its "
            "spread is the noise of the KL, and divided by it that noise is as large as any advantage; set "
            "advantage=dr_grpo, rloo or reinforce_pp_baseline, or kl.place=loss"
        )
    if kl.target is not None and kl.place == "off":
        yield "learner.rl.kl.target with kl.place=off: there is no coefficient to adapt; set kl.place, or target=null"
    if kl.target is not None and kl.place != "off" and kl.coef == 0:
        yield "learner.rl.kl.target with kl.coef=0: it is adapted by factors and would stay 0; set kl.coef above 0"
    episodes = rl.studies_per_step * cfg.rollout.samples_per_study
    if kl.target is not None and kl.horizon <= KL_ERROR_LIMIT * episodes:
        yield (
            f"learner.rl.kl.horizon={kl.horizon} with {episodes} reports a step: must be above a fifth of them, or one "
            "step could take the coefficient below 0; set it to what a few steps sample, at least"
        )


def _correction(cfg: Config) -> Iterator[str]:
    staleness = cfg.rollout.max_staleness
    if staleness < 0:
        yield f"rollout.max_staleness={staleness}: must not be below 0 (0: synchronous)"
    if staleness > 0 and cfg.learner.rl.correction.mode == "off":
        yield (
            f"rollout.max_staleness={staleness} with learner.rl.correction.mode=off: reports of older weights need the "
            "correction; set correction.mode=truncate or mask, or max_staleness=0"
        )
