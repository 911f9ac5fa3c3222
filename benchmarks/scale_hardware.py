"""What a step's work costs on GPUs by their data sheets: a roofline with assumed efficiencies, nothing measured.

Contract: `costs(cfg, gpu, llm, assumed)` gives the times of `benchmarks.scale_pipeline`; `fits` says whether a GPU's
memory holds what each role keeps there, by the accounts in configs/model/*.yaml. Operations are those of the weights (2
a token and parameter, 2 more for the gradient of the activations, 2 more for that of the weights); attention (about 1 %
at these lengths), the region extractor, the optimizer's step and the driver are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from benchmarks.scale_pipeline import Costs, visual_tokens
from configs.schema import Config
from rrg.errors import UserError

_GPUS_PER_NODE: Final = 8


@dataclass(frozen=True)
class Gpu:
    """By the vendor's data sheet: operations a second (dense), bytes, bytes a second (links: one direction)."""

    flops_bf16: float
    flops_fp32: float
    memory: float
    memory_rate: float
    nvlink_rate: float
    pcie_rate: float


# NVIDIA's data sheets "A100 Tensor Core GPU" (80 GB SXM), "H100 Tensor Core GPU" (SXM) and "H200 Tensor Core GPU"
# (SXM); with sparsity they promise twice the bf16 operations, and they add up both directions of the links.
GPUS: Final = {
    "a100": Gpu(312e12, 19.5e12, 80e9, 2.039e12, 300e9, 32e9),
    "h100": Gpu(989.5e12, 67e12, 80e9, 3.35e12, 450e9, 64e9),
    "h200": Gpu(989.5e12, 67e12, 141e9, 4.8e12, 450e9, 64e9),
}


@dataclass(frozen=True)
class Llm:
    """Parameters, those of rank-16 adapters on all linear layers, bytes of KV cache a token, and of the learner's
    activations a token of a micro-batch: configs/model/*.yaml."""

    parameters: float
    adapters: float
    cache_bytes: float
    activation_bytes: float


LLMS: Final = {
    "meta-llama/Llama-2-7b-hf": Llm(6.738e9, 40.0e6, 524_288, 262e3 + 139e3),
    "Qwen/Qwen2.5-1.5B": Llm(1.777e9, 18.5e6, 28_672, 86e3 + 52e3),
}


@dataclass(frozen=True)
class Assumed:
    """What no data sheet says; `--set NAME=VALUE` changes any of it."""

    # Training studies: MIMIC-CXR has 227,835 studies; 152,173 of its training split have a findings section by Miura et
    # al. 2021 (arXiv:2010.10042). Not counted by us: the data can't be had here.
    studies: int = 152_173
    # Text of a prompt (instruction, views, indication, comparison) beside the visual tokens; tokens of a report.
    context_tokens: float = 40.0
    report_tokens: float = 80.0
    report_sigma: float = 0.5
    # Shares of the peak that matrix products reach (training; decoding and reading prompts; the reward's encoders), and
    # of the memory's rate that decoding does.
    training_mfu: float = 0.35
    decode_mfu: float = 0.5
    reward_mfu: float = 0.3
    decode_mbu: float = 0.6
    # What an iteration of vLLM costs beside (scheduling, sampling).
    iteration_s: float = 0.004
    # A pair of RadCliQ: operations of its encoders on the hypothesis (docs/reward_server.md), and work on the CPU.
    pair_flops: float = 36e9
    pair_cpu_s: float = 0.005
    # Bytes a second: collectives between nodes, a GPU; Ray's object store, node to node; a pass over weights in host
    # memory (copies, digests, merging of adapters).
    network_rate: float = 25e9
    object_rate: float = 2e9
    host_rate: float = 4e9


def llm_of(cfg: Config) -> Llm:
    """Raises UserError for one that has no account here."""
    path = cfg.model.llm.path or "the small Llama"
    if path not in LLMS:
        raise UserError(
            f"model.llm.path={path}: benchmarks/scale_hardware.py has no account of it, only of {', '.join(LLMS)}"
        )
    return LLMS[path]


def costs(cfg: Config, gpu: Gpu, llm: Llm, assumed: Assumed) -> Costs:
    """Of the config on these GPUs; a reward worker has one too."""
    prompt = visual_tokens(cfg) + assumed.context_tokens
    split = cfg.rollout.tensor_parallel
    token_s = 2 * llm.parameters / gpu.flops_bf16 / assumed.decode_mfu / split
    memory_rate = gpu.memory_rate * assumed.decode_mbu * split
    kept = llm.cache_bytes * (prompt + assumed.report_tokens)
    reward_flops = gpu.flops_fp32 if cfg.reward.dtype == "float32" else gpu.flops_bf16
    publish_s, sync_s = _broadcast(cfg, gpu, llm, assumed)
    return Costs(
        prompt_tokens=prompt,
        report_tokens=assumed.report_tokens,
        report_sigma=assumed.report_sigma,
        sequences=max(1, min(cfg.rollout.max_num_seqs, int(cfg.rollout.kv_cache_mib * 2**20 * split / kept))),
        iteration_s=assumed.iteration_s,
        weights_s=2 * llm.parameters / memory_rate,
        sequence_s=token_s,
        cache_s=llm.cache_bytes * (prompt + assumed.report_tokens / 2) / memory_rate,
        prefill_token_s=token_s,
        pair_s=assumed.pair_flops / (reward_flops * assumed.reward_mfu) + assumed.pair_cpu_s,
        update_s=_exchange(cfg, gpu, llm, assumed),
        update_token_s=operations(cfg, llm) / (gpu.flops_bf16 * assumed.training_mfu),
        publish_s=publish_s,
        sync_s=sync_s,
    )


def operations(cfg: Config, llm: Llm) -> float:
    """Of an update, a token: training, the reference's log-probs, and the policy's before the update, which the first
    mini-batch has from its own forward pass."""
    learner = cfg.learner.rl
    training = (6 if cfg.model.llm.train == "full" else 4) + (2 if cfg.model.llm.gradient_checkpointing else 0)
    reference = 0 if learner.kl.place == "off" else 2
    return (training + reference + 2 * (1 - 1 / learner.minibatches)) * llm.parameters


def fits(cfg: Config, gpu: Gpu, llm: Llm) -> bool:
    """Whether the learner's and the rollout's GPUs hold bf16 weights, reference, optimizer (ZeRO-2), activations and
    KV cache."""
    trained, ranks = _trained(cfg, llm), cfg.learner.num_ranks
    adapters = 0 if cfg.model.llm.train == "full" else 2 * trained
    activations = llm.activation_bytes * cfg.learner.micro_batch_tokens
    learner = 4 * llm.parameters + adapters + 14 * trained / ranks + activations
    rollout = 2 * llm.parameters / cfg.rollout.tensor_parallel + cfg.rollout.kv_cache_mib * 2**20
    return max(learner, rollout) <= gpu.memory


def _trained(cfg: Config, llm: Llm) -> float:
    return llm.parameters if cfg.model.llm.train == "full" else llm.adapters


def _exchange(cfg: Config, gpu: Gpu, llm: Llm, assumed: Assumed) -> float:
    """Every optimizer step: bf16 gradients to their owners, bf16 weights back, not hidden behind the backward pass."""
    ranks = cfg.learner.num_ranks
    rate = gpu.nvlink_rate if ranks <= _GPUS_PER_NODE else assumed.network_rate
    return cfg.learner.rl.minibatches * 2 * 2 * _trained(cfg, llm) * (ranks - 1) / ranks / rate


def _broadcast(cfg: Config, gpu: Gpu, llm: Llm, assumed: Assumed) -> tuple[float, float]:
    """Publishing a version (from the GPU, digest and copy into the object store), and taking it over: node to node as
    a tree, digest, the adapters' merge with the base, onto the GPU."""
    adapters = cfg.model.llm.broadcast == "adapter"
    sent = (2 if cfg.model.dtype == "bfloat16" else 4) * (llm.adapters if adapters else llm.parameters)
    nodes = math.ceil(cfg.rollout.num_actors * cfg.rollout.gpus_per_actor / _GPUS_PER_NODE)
    alone = cfg.rollout.num_actors + cfg.learner.num_ranks + cfg.reward.num_workers <= _GPUS_PER_NODE
    hops = 0 if alone else math.ceil(math.log2(nodes + 1))
    merged = 2 * llm.parameters if adapters else 0
    publish_s = sent / gpu.pcie_rate + 2 * sent / assumed.host_rate
    taken_s = hops * sent / assumed.object_rate + (sent + merged) / assumed.host_rate
    return publish_s, taken_s + 2 * llm.parameters / gpu.pcie_rate
