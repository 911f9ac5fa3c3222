"""Rules that no single field's type can tell: each refuses a combination and says why and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import Config
from rrg.errors import UserError


def check(cfg: Config) -> None:
    """Raises UserError with every broken rule, one a line."""
    broken = [*_ranges(cfg), *_combinations(cfg)]
    if broken:
        raise UserError("this configuration cannot run:\n" + "\n".join(f"  - {rule}" for rule in broken))


def _ranges(cfg: Config) -> Iterator[str]:
    positive = {
        "data.image_size": cfg.data.image_size,
        "data.workers": cfg.data.workers,
        "rollout.num_actors": cfg.rollout.num_actors,
        "rollout.threads": cfg.rollout.threads,
        "rollout.temperature": cfg.rollout.temperature,
        "rollout.max_new_tokens": cfg.rollout.max_new_tokens,
        "rollout.timeout_s": cfg.rollout.timeout_s,
        "reward.num_workers": cfg.reward.num_workers,
        "reward.timeout_s": cfg.reward.timeout_s,
        "learner.num_ranks": cfg.learner.num_ranks,
        "learner.threads": cfg.learner.threads,
        "learner.grad_clip": cfg.learner.grad_clip,
        "learner.sft.batch_size": cfg.learner.sft.batch_size,
        "learner.sft.lr": cfg.learner.sft.lr,
        "learner.rl.studies_per_step": cfg.learner.rl.studies_per_step,
        "learner.rl.minibatches": cfg.learner.rl.minibatches,
        "learner.rl.lr": cfg.learner.rl.lr,
        "learner.rl.importance_cap": cfg.learner.rl.importance_cap,
        "learner.rl.checkpoint_every": cfg.learner.rl.checkpoint_every,
        "learner.rl.keep_checkpoints": cfg.learner.rl.keep_checkpoints,
        "evaluation.permutations": cfg.evaluation.permutations,
        "evaluation.bootstrap": cfg.evaluation.bootstrap,
    }
    for name, value in positive.items():
        if value <= 0:
            yield f"{name}={value}: must be above 0"
    for name, share in {
        "learner.sft.abnormal_fraction": cfg.learner.sft.abnormal_fraction,
        "learner.rl.abnormal_fraction": cfg.learner.rl.abnormal_fraction,
        "model.dropout": cfg.model.dropout,
    }.items():
        if not 0 <= share <= 1:
            yield f"{name}={share}: must be a share between 0 and 1"
    if cfg.learner.zero_stage not in (0, 1, 2):
        yield (
            f"learner.zero_stage={cfg.learner.zero_stage}: use 0, 1 or 2 (stage 3 slices the parameters, and the "
            "extractor reads some outside of their module's forward pass)"
        )
    if cfg.model.dtype not in ("float32", "bfloat16"):
        yield f"model.dtype={cfg.model.dtype}: float32 or bfloat16"
    if cfg.reward.backend != "embedded":
        yield f"reward.backend={cfg.reward.backend}: this version has the backend 'embedded' only"
    if cfg.data.name not in ("rendered_openi", "r2gen"):
        yield f"data.name={cfg.data.name}: rendered_openi or r2gen"


def _combinations(cfg: Config) -> Iterator[str]:
    rollout, learner = cfg.rollout, cfg.learner
    if rollout.samples_per_study < 2:
        yield "rollout.samples_per_study < 2: GRPO compares samples of one study, so it needs at least 2"
    if rollout.max_staleness != 0:
        yield "rollout.max_staleness > 0: this version is synchronous; set it to 0"
    if cfg.data.name == "r2gen" and cfg.data.root is None:
        yield "data.root is not set: give the folder that holds annotation.json and images/, data.root=DIR"
    if learner.rl.studies_per_step < rollout.num_actors:
        yield "learner.rl.studies_per_step < rollout.num_actors: some actors would never get work"
    if learner.rl.studies_per_step % learner.rl.minibatches:
        yield "learner.rl.studies_per_step must be a multiple of learner.rl.minibatches"
    if learner.sft.batch_size % learner.num_ranks:
        yield "learner.sft.batch_size must be a multiple of learner.num_ranks"
    if rollout.max_new_tokens >= rollout.max_model_len:
        yield "rollout.max_new_tokens >= rollout.max_model_len: no room for the prompt"
    head_size = cfg.model.llm.hidden_size // cfg.model.llm.num_heads
    if cfg.model.llm.path is None and head_size % 32:
        yield f"model.llm.hidden_size / num_heads = {head_size}: vLLM's attention on CPUs needs a multiple of 32"
    if cfg.data.limit_test is not None and cfg.data.limit_test <= cfg.evaluation.permutations:
        yield "data.limit_test must be above evaluation.permutations (the shuffle gap needs other studies)"
    if cfg.model.dtype == "bfloat16" and (learner.gpus_per_rank == 0 or rollout.gpus_per_actor == 0):
        yield "model.dtype=bfloat16 on CPUs is several times slower and less exact: set model.dtype=float32"
    if learner.zero_stage == 0 and cfg.model.dtype == "bfloat16":
        yield "learner.zero_stage=0 with bfloat16 differs from the other stages in DeepSpeed: use stage 1 or 2"
    if (learner.gpus_per_rank > 0) != (rollout.gpus_per_actor > 0):
        yield "learner.gpus_per_rank and rollout.gpus_per_actor: both on GPUs or both on CPUs"
