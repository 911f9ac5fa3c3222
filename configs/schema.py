"""The typed configuration of every command: one dataclass a Hydra group, importable without torch.

Contract: a config that passed `configs.check.check` can be run as far as the machine allows. Every field has its
meaning, unit and default here; the YAML files of the groups only choose values.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class DataConfig:
    # "rendered_openi" (real Open-i reports, X-rays rendered from their MeSH codes) or a format of real data:
    # "r2gen", "mimic_cxr", "openi", "kaggle", "rexrank", "jsonl", "csv" (docs/data.md has the layout of each).
    name: str = MISSING
    # Folder of the data set (of the formats of one file: that file will do). Not used by rendered_openi.
    root: str | None = None
    # MIMIC-CXR: folder or zip of the report texts (null: in `root`), and the folder of Chest ImaGenome (null: none).
    reports: str | None = None
    imagenome: str | None = None
    # "all" images of a study, or "frontal" ones only (MIMIC-CXR, by ViewPosition).
    views: str = "all"
    # Studies without a findings section: "skip" leaves them out and counts them, "impression" takes that section
    # instead (and leaves out those that have neither).
    without_findings: str = "skip"
    # Where rendered images, resized images and backbone features are kept between runs.
    cache_dir: str = field(default_factory=lambda: os.environ.get("LMRRG_CACHE", ".cache"))
    # Side of the square that every image is brought to, pixels; null: what the backbone was made for.
    image_size: int | None = None
    # What the policy learns to write: "findings", "impression" or "both" (findings, then impression).
    target: str = "findings"
    # At most so many studies of each split (null: all).
    limit_train: int | None = None
    limit_val: int | None = None
    limit_test: int | None = None
    # Bad records: true stops at the first, false skips and counts them.
    strict: bool = False
    # Processes that render images and extract features.
    workers: int = 2


@dataclass
class LoRAConfig:
    # Low-rank adapters (peft): rank, scale alpha / rank, dropout on their input.
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    # Linear layers that get one: "all-linear", or their names separated by commas ("q_proj,v_proj").
    targets: str = "all-linear"


@dataclass
class LLMConfig:
    # Folder or hub name of a Hugging Face causal LM; "package:NAME": the GGUF file in an installed Python package,
    # converted once; null: a small Llama from scratch with a tokenizer trained on the training reports.
    path: str | None = None
    # "full" (every weight is trained) or "lora" (adapters only).
    train: str = "full"
    # The adapters of train=lora.
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    # What the rollout actors get of a LoRA model with every version: "merged" weights, or the "adapter" alone, which
    # they merge themselves.
    broadcast: str = "merged"
    # Recompute the layers' activations in the backward pass: about a third more time, far less memory.
    gradient_checkpointing: bool = False
    # The rest describes the small Llama.
    hidden_size: int = 256
    num_layers: int = 5
    num_heads: int = 4
    intermediate_size: int = 704
    vocab_size: int = 2000


@dataclass
class BackboneConfig:
    # "efficientnet_lite0" (weights from its package), or folder or hub name of a Hugging Face vision model (ViT, Swin,
    # DINOv2, RAD-DINO); input size and normalisation are those of its processor.
    path: str = "efficientnet_lite0"
    # "frozen": features are computed once and cached. "full" or "lora": it is trained with the rest, on pixels.
    train: str = "frozen"
    # The adapters of train=lora.
    lora: LoRAConfig = field(default_factory=LoRAConfig)


@dataclass
class PromptConfig:
    # {images}: the visual tokens (exactly once); {bos}: the tokenizer's begin token, if it has one; {context}: the
    # parts below that `context` names and the study has; {target}: what to write ("findings", "impression", ...).
    template: str = "{bos}{images}{context}{target} :"
    context: list[str] = field(default_factory=lambda: ["views", "indication", "comparison"])
    # Template of each part of the context; {text}: the study's.
    views: str = "views : {text} . "
    indication: str = "indication : {text} . "
    comparison: str = "comparison : {text} . "
    # Most tokens of one part of the context; longer ones are cut.
    max_context_tokens: int = 48
    # After one region's token alone: what makes the LLM write that region's sentences.
    caption: str = "{bos}"


@dataclass
class ModelConfig:
    # Language model, vision model, and what stands around the visual tokens: a dataclass each.
    llm: LLMConfig = field(default_factory=LLMConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    # Parts of LM-RRG, each of which can be switched off: region tokens; their weighting by significance; the captions
    # that train them. Without global tokens: global_tokens=0.
    regions: bool = True
    gate: bool = True
    captioning: bool = True
    # YAML file of region: description, in place of rrg/data/regions.yaml.
    region_descriptions: str | None = None
    # Width of the region extractor, its attention heads and its layers.
    extractor_size: int = 256
    extractor_heads: int = 4
    extractor_layers: int = 2
    # Tokens that describe the whole image, beside one a region.
    global_tokens: int = 4
    # Dropout of the extractor.
    dropout: float = 0.1
    # float32 or bfloat16 (GPUs only: slow on CPUs).
    dtype: str = "float32"


@dataclass
class RolloutConfig:
    # Rollout actors, each with its own vLLM engine, and torch threads and GPUs of each.
    num_actors: int = 1
    threads: int = 1
    gpus_per_actor: float = 0.0
    # GPUs over which each engine splits the LLM (then gpus_per_actor must be the same number).
    tensor_parallel: int = 1
    # Reports sampled for each study of a step, at this temperature, with at most so many tokens each.
    samples_per_study: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 64
    # Engine: sequences at once, KV cache (MiB), longest prompt + report (tokens).
    max_num_seqs: int = 128
    kv_cache_mib: int = 256
    max_model_len: int = 256
    # 0: synchronous. k: rollout, reward and update overlap, and a trajectory begins at most k weight versions before
    # the update that learns from it.
    max_staleness: int = 0
    # The longest wait for one request, that for its rewards apart (s), and for an engine to start.
    timeout_s: float = 300.0
    start_timeout_s: float = 300.0
    # How new weights come to the actors: "object_store", Ray's (shared memory on a node, copied between nodes), or
    # "nccl": the LLM's from learner rank 0's GPU to the engines', to each actor as it asks.
    weights: str = "object_store"


@dataclass
class RewardConfig:
    # "embedded": no download; real MiniLM BERTScore, rule-based graph and labels; not RadCliQ. "published": RadCliQ,
    # from its published weights. "reference": the same by the packages that it comes from, slow, for checking.
    backend: str = "embedded"
    # host:port of servers that run already, several separated by commas; null: the run starts its own workers.
    address: str | None = None
    # For `address`: certificates (PEM) that vouch for the servers, the name in their certificates (null: their host;
    # needed for several addresses), and the file with the token that they ask for.
    tls_ca: str | None = None
    tls_server_name: str | None = None
    token_file: str | None = None
    # The run's own workers: how many, and torch threads of each.
    num_workers: int = 1
    threads: int = 1
    # Folder with the weights of `published` and `reference`, on every node that has a worker, and the RadGraph archive
    # in it: "radgraph" or "radgraph-xl".
    weights: str | None = None
    radgraph: str = "radgraph"
    # "cpu", or "cuda" for one GPU a worker. Encoders in float32, or on GPUs in bfloat16 or float16 (drift a little).
    device: str = "cpu"
    dtype: str = "float32"
    # Corpus of BERTScore's idf, a report a line; null: no idf, as RadCliQ is defined.
    idf: str | None = None
    # The composite is lower for better reports: "radcliq_v1" or "radcliq_v0" (null: radcliq_v1, or `embedded` of that
    # backend). The reward is -composite, with the composite cut at `clip` from above (null: no cut) ...
    composite: str | None = None
    clip: float | None = 3.0
    # ... or, if there are any, the sum of these weights times their components, as
    # `+reward.component_weights={bertscore: 1, radgraph: 1}` on the command line ...
    component_weights: dict[str, float] = field(default_factory=dict)
    # ... minus what the best constant report (of the training studies) would get for the same reference, if
    # `relative_to_constant` ...
    relative_to_constant: bool = False
    # ... minus these weights times the penalties (outside of the composite), plus the positive-finding F1 times its
    # weight.
    repetition_weight: float = 1.0
    length_weight: float = 0.5
    positive_f1_weight: float = 2.0
    # Deadline of one request (s): servers that are away are waited for so long before samples fail and the run stops.
    timeout_s: float = 300.0


@dataclass
class SFTConfig:
    # Passes over the training studies of stage "regions" (findings, significance, boxes, captions of the regions) and
    # of stage "policy" (whole reports, with those losses kept on).
    regions_epochs: float = 2.0
    epochs: float = 5.0
    regions_lr: float = 2e-3
    lr: float = 1e-3
    # The language model's learning rate in both stages as a share of these: small for a pretrained one.
    llm_lr_scale: float = 1.0
    # Studies a step; steps in which the learning rate rises from 0 (then it falls, as a cosine); decay of AdamW.
    batch_size: int = 16
    warmup_steps: int = 40
    weight_decay: float = 0.1
    # Share of abnormal studies among those drawn.
    abnormal_fraction: float = 0.7
    # Weight of the report tokens that state findings, against 1 for the others (most sentences say that all is normal).
    finding_token_weight: float = 2.0
    # Weights of the extractor's losses beside the report's cross-entropy.
    region_weight: float = 1.0
    significance_weight: float = 0.5
    attention_weight: float = 2.0
    caption_weight: float = 0.5
    # Regions of each study that are captioned in a step: those with findings first.
    captions_per_study: int = 3
    # Steps between two checkpoints of the warm start (0: none; a killed one begins again).
    checkpoint_every: int = 200


@dataclass
class KLConfig:
    # KL(policy || warm start): in the "loss", in the "reward", or "off".
    place: str = "loss"
    # Estimator: k1, k2 or k3 (learner.objectives.kl says which may go where).
    estimator: str = "k2"
    # Its weight; the first one, if it adapts.
    coef: float = 0.02
    # Adaptive coefficient: it rises and falls so that the KL (nats a token) comes to `target`, at most by a fifth of
    # `reports of a step / horizon` a step; null: constant.
    target: float | None = None
    horizon: int = 2000


@dataclass
class CorrectionConfig:
    # Importance correction of what the learner's and the rollout engine's policies differ in: ratios above `cap` are
    # cut to it ("truncate"), their tokens (or reports) left out ("mask"), or nothing is corrected ("off"; synchronous
    # runs only). Ratios of each "token" or of the whole "sequence".
    mode: str = "truncate"
    level: str = "token"
    cap: float = 2.0


@dataclass
class ValueConfig:
    # advantage=ppo: discount and lambda of GAE (below 1 a report's reward reaches its last tokens first, and an ending
    # is blamed for all that the value head does not know yet), weight of the value head's loss (small, as the head
    # shares the policy's clipping norm and nothing else: learner.objectives.loss), clip of its change, its learning
    # rate as a multiple of the policy's.
    gamma: float = 1.0
    gae_lambda: float = 1.0
    coef: float = 0.01
    clip: float = 0.2
    lr_scale: float = 10.0


@dataclass
class StopConfig:
    # The run stops with a reason when a step's mean KL (k3, nats a token) or mean gap between the learner's and the
    # engine's log-probs, of tokens by the step's own weights, is above its limit (null: no limit) ...
    max_kl: float | None = 1.0
    max_logprob_gap: float | None = 0.05
    # ... when the mean reward of `window` steps lies `collapse` standard deviations (of the first `window` steps'
    # samples) below that of the first ones ...
    window: int = 5
    collapse: float | None = 2.0
    # ... when at `max_failed_steps` steps in a row a larger share of the samples than `max_failed` has no score (null:
    # never; such steps teach little or nothing, and count as steps) ...
    max_failed: float | None = 0.5
    max_failed_steps: int = 3
    # ... or when at `patience` evaluations in a row a measure of the validation studies has declined against the warm
    # start by more than its 95 % interval (null: never): "finding_f1", "abnormal_reward", "unique", "shuffle_gap".
    patience: int | None = 2
    measures: list[str] = field(default_factory=lambda: ["finding_f1", "abnormal_reward", "shuffle_gap"])


@dataclass
class RLConfig:
    # Steps: each samples rollout.samples_per_study reports of so many studies, and learns from them.
    steps: int = 20
    studies_per_step: int = 16
    # Optimizer steps a rollout; with one the clip never acts.
    minibatches: int = 2
    # AdamW's learning rate and the steps in which it rises to that.
    lr: float = 2e-4
    warmup_steps: int = 2
    # The objective, put together of parts (docs/algorithms.md): how good a report is ("grpo", "dr_grpo", "rloo",
    # "reinforce_pp", "reinforce_pp_baseline", "scst", "ppo"), ...
    advantage: str = "grpo"
    # ... how its tokens are made likelier ("ppo_clip", "gspo", "cispo", "reinforce"), with the clip below and above,
    # and the bound of dual-clip PPO (null: none), ...
    surrogate: str = "ppo_clip"
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = None
    # ... how tokens are averaged ("tokens": over all of a mini-batch; "sequences": within each report first;
    # "constant": divided by reports x rollout.max_new_tokens), ...
    reduction: str = "tokens"
    # ... what keeps the policy near the warm start, what corrects the rollout's log-probs, the value head of "ppo", ...
    kl: KLConfig = field(default_factory=KLConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    # ... the weight of an entropy bonus (0: none) ...
    entropy_coef: float = 0.0
    # ... and whether studies whose reports all have the same reward are left out of the averages.
    drop_flat_groups: bool = False
    # Weight of the warm start's losses of the regions (findings, significance, boxes), kept on in RL; 0: off.
    region_weight: float = 0.5
    # Share of abnormal studies among those drawn.
    abnormal_fraction: float = 0.8
    # Every so many steps greedy reports of some validation studies are measured (0: never; then stop.patience and
    # keep_best have nothing to go by).
    evaluate_every: int = 5
    evaluate_studies: int = 96
    # When a run stops itself (docs/diagnostics.md).
    stop: StopConfig = field(default_factory=StopConfig)
    # Steps between two checkpoints, and how many of the newest are kept.
    checkpoint_every: int = 4
    keep_checkpoints: int = 2
    # The measure of those evaluations by which the best checkpoint is kept beside the newest ones (null: none).
    keep_best: str | None = "reward"


@dataclass
class LearnerConfig:
    # DeepSpeed ranks, torch threads and GPUs of each, ZeRO stage (0 to 3); optimizer state (and with ZeRO 3 parameters)
    # kept in host memory.
    num_ranks: int = 1
    threads: int = 2
    gpus_per_rank: float = 0.0
    zero_stage: int = 1
    offload: bool = False
    # Norm at which gradients are clipped; betas of AdamW.
    grad_clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    # Most tokens of one micro-batch that are computed (prompts and reports; padding, where there is some, included).
    micro_batch_tokens: int = 4096
    # ... and most reports of one: the budget does not know what images cost. Lower it for a trained backbone (RAD-DINO
    # keeps about a gigabyte an image for the backward pass).
    micro_batch_sequences: int = 256
    # The longest wait of ranks for one another and of the driver for them (s).
    timeout_s: float = 900.0
    # The warm start, and reinforcement learning.
    sft: SFTConfig = field(default_factory=SFTConfig)
    rl: RLConfig = field(default_factory=RLConfig)


@dataclass
class ClusterConfig:
    # Ray address; null: a local Ray of this process.
    address: str | None = None
    # Nodes that each role may run on: "auto" those with the custom resource of the role's name (`learner`, `rollout`,
    # `reward`; a process takes one of it) if there is such a node when the run starts, else any; "own" only those, also
    # when the autoscaler has to add one; "any".
    learner_nodes: str = "auto"
    rollout_nodes: str = "auto"
    reward_nodes: str = "auto"
    # Whether the cluster adds nodes by itself: then a run waits for places that are missing when it starts
    # (`start_timeout_s`), else it refuses to start.
    autoscaled: bool = False
    # CPUs that the local Ray may use (null: all of the machine) and its object store.
    num_cpus: int | None = None
    object_store_mib: int = 512
    # Wait for all actors of the run together (s).
    start_timeout_s: float = 300.0


@dataclass
class EvalConfig:
    # Permutations of the shuffle gap, bootstrap draws of every interval.
    permutations: int = 3
    bootstrap: int = 2000
    # Whether constants and nearest neighbours are measured beside the policies.
    controls: bool = True
    # Training studies among which the best constant report is chosen, and candidates tried.
    constant_studies: int = 200
    constant_candidates: int = 60


@dataclass
class TrackingConfig:
    # Beside metrics.jsonl and TensorBoard, which are always written. Weights & Biases: "off", "online", or "offline" (a
    # folder in the run directory, for `wandb sync`).
    wandb: str = "off"
    # Address of an MLflow server, "http://HOST:PORT"; null: none.
    mlflow: str | None = None
    # The project (Weights & Biases) or experiment (MLflow) that runs are listed under.
    project: str = "lmrrg"
    # Whether they get the reports of validations too: patient data.
    reports: bool = False


@dataclass
class Config:
    # The groups, a dataclass each.
    data: DataConfig = MISSING
    model: ModelConfig = MISSING
    rollout: RolloutConfig = MISSING
    reward: RewardConfig = MISSING
    learner: LearnerConfig = MISSING
    cluster: ClusterConfig = MISSING
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    # Of the weights, the order of studies and every sample.
    seed: int = 0
    # How far to go: "regions" (the feature extractor's stage), "warm_start" (and the reports), "all" (and RL).
    stage: str = "all"
    # Weights to begin at: a run directory (its warm start) or the folder of a policy; null: untrained ones. The warm
    # start goes on from there; with learner.sft.regions_epochs=0 learner.sft.epochs=0 RL begins at once.
    start: str | None = None
    # Name of the experiment: part of the run directory.
    name: str = "demo"
    # The run directory.
    output_dir: str = "outputs/${name}/${now:%Y-%m-%d_%H-%M-%S}"
    # A run directory to go on with, from its latest checkpoint.
    resume: str | None = None
    # Print the resolved config and the plan of processes, and stop.
    dry_run: bool = False
    # Show tracebacks of user errors.
    debug: bool = False
