"""Rules that no single field's type can tell: each refuses a combination and says why and what to do.

Those of the model are in `configs.check_model`, those of RL in `configs.check_rl`.
"""

from __future__ import annotations

from collections.abc import Iterator

from configs.check_model import check_model
from configs.check_rl import check_rl
from configs.schema import Config, RewardConfig, TrackingConfig
from rrg.errors import UserError

_PENALTIES = ("repetition", "length", "positive_f1")
_RADGRAPH = (
    "radgraph",
    "radgraph_entity",
    "radgraph_relation",
    "radgraph_simple",
    "radgraph_partial",
    "radgraph_complete",
)
_RADCLIQ = (*_RADGRAPH, "bertscore", "semb", "bleu2", "radcliq_v1", "radcliq_v0")
# What each backend of the reward server computes, and which of it may be the composite.
COMPONENTS = {
    "embedded": ("bleu2", "bertscore", "graph_f1", "label_similarity", "embedded", *_PENALTIES),
    "published": (*_RADCLIQ, *_PENALTIES),
    "reference": (*_RADCLIQ, *_PENALTIES),
}
DATA_FORMATS = ("rendered_openi", "r2gen", "mimic_cxr", "openi", "kaggle", "rexrank", "jsonl", "csv")
_COMPOSITES = ("embedded", "radcliq_v1", "radcliq_v0")
_WANDB = ("off", "online", "offline")
# Below it sampling is greedy in all but name.
MIN_TEMPERATURE = 0.05


def check(cfg: Config) -> None:
    """Raises UserError with every broken rule, one a line."""
    broken = [
        *_ranges(cfg),
        *_combinations(cfg),
        *_warm_start(cfg),
        *check_model(cfg),
        *check_rl(cfg),
        *_reward(cfg.reward),
        *_tracking(cfg.tracking),
    ]
    if broken:
        raise UserError("this configuration cannot run:\n" + "\n".join(f"  - {rule}" for rule in broken))


def _ranges(cfg: Config) -> Iterator[str]:
    positive = {
        "data.image_size": 1 if cfg.data.image_size is None else cfg.data.image_size,
        "data.workers": cfg.data.workers,
        "rollout.num_actors": cfg.rollout.num_actors,
        "rollout.samples_per_study": cfg.rollout.samples_per_study,
        "rollout.threads": cfg.rollout.threads,
        "rollout.temperature": cfg.rollout.temperature,
        "rollout.tensor_parallel": cfg.rollout.tensor_parallel,
        "rollout.max_new_tokens": cfg.rollout.max_new_tokens,
        "rollout.timeout_s": cfg.rollout.timeout_s,
        "reward.num_workers": cfg.reward.num_workers,
        "reward.threads": cfg.reward.threads,
        "reward.timeout_s": cfg.reward.timeout_s,
        "learner.num_ranks": cfg.learner.num_ranks,
        "learner.threads": cfg.learner.threads,
        "learner.micro_batch_sequences": cfg.learner.micro_batch_sequences,
        "learner.grad_clip": cfg.learner.grad_clip,
        "learner.sft.captions_per_study": cfg.learner.sft.captions_per_study,
        "learner.sft.batch_size": cfg.learner.sft.batch_size,
        "learner.sft.llm_lr_scale": cfg.learner.sft.llm_lr_scale,
        "learner.sft.lr": cfg.learner.sft.lr,
        "learner.sft.regions_lr": cfg.learner.sft.regions_lr,
        "evaluation.permutations": cfg.evaluation.permutations,
        "evaluation.bootstrap": cfg.evaluation.bootstrap,
    }
    for name, value in positive.items():
        if value <= 0:
            yield f"{name}={value}: must be above 0"
    if 0 < cfg.rollout.temperature < MIN_TEMPERATURE:
        yield (
            f"rollout.temperature={cfg.rollout.temperature}: must be at least {MIN_TEMPERATURE}, or the reports of a "
            "study are all alike and log-probs, divided by it, tell rounding; the evaluations are greedy whatever it is"
        )
    for name, share in {
        "learner.sft.abnormal_fraction": cfg.learner.sft.abnormal_fraction,
        "model.dropout": cfg.model.dropout,
    }.items():
        if not 0 <= share <= 1:
            yield f"{name}={share}: must be a share between 0 and 1"
    if cfg.learner.zero_stage not in (0, 1, 2, 3):
        yield f"learner.zero_stage={cfg.learner.zero_stage}: 0, 1, 2 or 3"
    if cfg.model.dtype not in ("float32", "bfloat16"):
        yield f"model.dtype={cfg.model.dtype}: float32 or bfloat16"
    if cfg.stage not in ("regions", "warm_start", "all"):
        yield f"stage={cfg.stage}: regions, warm_start or all"
    if cfg.data.name not in DATA_FORMATS:
        yield f"data.name={cfg.data.name}: one of {', '.join(DATA_FORMATS)}"
    if cfg.data.views not in ("all", "frontal"):
        yield f"data.views={cfg.data.views}: all or frontal"
    if cfg.data.target not in ("findings", "impression", "both"):
        yield f"data.target={cfg.data.target}: findings, impression or both"
    if cfg.data.without_findings not in ("skip", "impression"):
        yield f"data.without_findings={cfg.data.without_findings}: skip or impression"


def _combinations(cfg: Config) -> Iterator[str]:
    rollout, learner = cfg.rollout, cfg.learner
    if cfg.data.name != "rendered_openi" and cfg.data.root is None:
        yield f"data.root is not set: give the folder of the data set ({cfg.data.name}), data.root=DIR"
    if cfg.data.name != "mimic_cxr" and (cfg.data.reports or cfg.data.imagenome):
        yield "data.reports and data.imagenome are for data.name=mimic_cxr: leave them out"
    if learner.rl.studies_per_step < rollout.num_actors:
        yield "learner.rl.studies_per_step < rollout.num_actors: some actors would never get work"
    if learner.rl.minibatches > 0 and learner.rl.studies_per_step % learner.rl.minibatches:
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
        yield "learner.zero_stage=0 with bfloat16 differs from the other stages in DeepSpeed: use stage 1 to 3"
    if learner.offload and learner.zero_stage == 0:
        yield "learner.offload with learner.zero_stage=0: DeepSpeed offloads what ZeRO splits, set zero_stage=1 to 3"
    yield from _weights(cfg)
    cluster = {
        "learner_nodes": cfg.cluster.learner_nodes,
        "rollout_nodes": cfg.cluster.rollout_nodes,
        "reward_nodes": cfg.cluster.reward_nodes,
    }
    for name, nodes in cluster.items():
        if nodes not in ("auto", "own", "any"):
            yield f"cluster.{name}={nodes}: auto, own or any"
        if nodes == "own" and cfg.cluster.address is None:
            yield f"cluster.{name}=own is for clusters: a local Ray has no nodes of a role's own (cluster=ray)"
    if (learner.gpus_per_rank > 0) != (rollout.gpus_per_actor > 0):
        yield "learner.gpus_per_rank and rollout.gpus_per_actor: both on GPUs or both on CPUs"


def _weights(cfg: Config) -> Iterator[str]:
    rollout, learner = cfg.rollout, cfg.learner
    if rollout.weights not in ("object_store", "nccl"):
        yield f"rollout.weights={rollout.weights}: object_store or nccl"
    if rollout.weights != "nccl":
        return
    if rollout.gpus_per_actor < 1 or learner.gpus_per_rank < 1:
        yield (
            "rollout.weights=nccl sends from GPU to GPU, and NCCL takes no two processes on one: set "
            "rollout.gpus_per_actor and learner.gpus_per_rank to 1 or more, or rollout.weights=object_store"
        )
    if cfg.model.llm.broadcast == "adapter":
        yield "model.llm.broadcast=adapter with rollout.weights=nccl: an adapter is small, use object_store"
    if rollout.timeout_s > learner.timeout_s / 2:
        yield (
            "rollout.timeout_s > learner.timeout_s / 2 with rollout.weights=nccl: a rollout actor that hangs may hold "
            "learner rank 0 up for so long, and the other ranks wait for that one"
        )


def _warm_start(cfg: Config) -> Iterator[str]:
    sft = cfg.learner.sft
    for name, value in {
        "regions_epochs": sft.regions_epochs,
        "epochs": sft.epochs,
        "finding_token_weight": sft.finding_token_weight,
        "region_weight": sft.region_weight,
        "significance_weight": sft.significance_weight,
        "attention_weight": sft.attention_weight,
        "caption_weight": sft.caption_weight,
        "checkpoint_every": sft.checkpoint_every,
    }.items():
        if value < 0:
            yield f"learner.sft.{name}={value:g}: must not be below 0 (0 leaves it out)"
    if cfg.stage == "regions" and not cfg.model.regions:
        yield "stage=regions with model.regions=off: there is nothing to train"
    if cfg.stage == "regions" and sft.regions_epochs == 0:
        yield "stage=regions with learner.sft.regions_epochs=0: there is nothing to train, set it above 0"
    elif cfg.stage == "warm_start" and sft.regions_epochs == 0 and sft.epochs == 0:
        yield (
            "stage=warm_start with learner.sft.epochs=0 and learner.sft.regions_epochs=0: nothing would be learnt, set "
            "one above 0, or stage=all for RL without a warm start"
        )


def _reward(reward: RewardConfig) -> Iterator[str]:
    components = COMPONENTS.get(reward.backend)
    if components is None:
        yield f"reward.backend={reward.backend}: choose one of {', '.join(COMPONENTS)}"
        return
    composites = [name for name in _COMPOSITES if name in components]
    if reward.composite is not None and reward.composite not in composites:
        yield f"reward.composite={reward.composite}: {reward.backend} has {', '.join(composites)}"
    if reward.composite is not None and reward.component_weights:
        yield "reward.composite and reward.component_weights: the reward is made of one or of the others, unset one"
    for name in reward.component_weights:
        if name not in components:
            yield f"reward.component_weights.{name}: {reward.backend} has {', '.join(components)}"
    if reward.address is None:
        yield from _own_workers(reward)
    elif reward.token_file is not None and reward.tls_ca is None and not _all_local(reward.address):
        yield "reward.token_file without reward.tls_ca: a token leaves this machine through TLS only; give both"
    if reward.address is None and (reward.tls_ca or reward.token_file):
        yield "reward.tls_ca and reward.token_file are for the servers of reward.address: give it, or leave them out"


def _all_local(addresses: str) -> bool:
    return all(address.startswith(("127.", "localhost:", "[::1]")) for address in addresses.split(","))


def _own_workers(reward: RewardConfig) -> Iterator[str]:
    if reward.backend != "embedded" and reward.weights is None:
        yield (
            f"reward.weights is not set: reward={reward.backend} needs the folder with the weights, reward.weights=DIR "
            "(python -m reward_server weights fetch --weights DIR gets them)"
        )
    if reward.device not in ("cpu", "cuda"):
        yield f"reward.device={reward.device}: cpu, or cuda (Ray gives every worker a GPU of its own)"
    if reward.backend == "embedded" and (reward.device != "cpu" or reward.dtype != "float32"):
        yield "reward.device and reward.dtype: the embedded backend runs on CPUs in float32 only"
    if reward.dtype not in ("float32", "bfloat16", "float16"):
        yield f"reward.dtype={reward.dtype}: float32, bfloat16 or float16"
    elif reward.dtype != "float32" and reward.device == "cpu":
        yield f"reward.dtype={reward.dtype} on CPUs is slow and drifts: set reward.dtype=float32 or reward.device=cuda"


def _tracking(tracking: TrackingConfig) -> Iterator[str]:
    if tracking.wandb not in _WANDB:
        yield f"tracking.wandb={tracking.wandb} is none of {', '.join(_WANDB)}"
    if tracking.reports and tracking.wandb == "off" and tracking.mlflow is None:
        yield "tracking.reports=true sends reports to nobody: give tracking.wandb or tracking.mlflow, or leave it out"
