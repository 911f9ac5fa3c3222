"""Speed and memory of the learner's forward and backward pass, for each default model, beside the cores' matrix speed.

    python -m benchmarks.model [--models small,smollm2] [--threads 2] [--rounds 3] [--json FILE]

Contract: time and peak memory of every model are measured in processes of their own (Linux). A step is what RL does
with one rollout: forward, backward, AdamW over reports of Open-i's lengths (random tokens), 8 a study, in length-
sorted micro-batches under the config's token budget. Operations are counted by torch's own counter (matrix products
and attention; padding and recomputation included); the limit is a 1024 x 1024 matrix product, measured before and
after in the same process. Tokens are those of prompts and reports, padding not counted. Nothing else should run
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SAMPLES = 8
# glibc keeps freed memory of up to 32 MB a piece: with this, what is resident is what is used.
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}
# Tokens of Open-i's findings under the small model's tokenizer, the end token included: about 1.2 a word.
_MEAN_TOKENS, _SPREAD_TOKENS, _FEWEST = 40.0, 17.0, 8


@dataclass(frozen=True)
class Measured:
    """One model: its sizes, and what a step costs. `share` is of `gemm_gflops`, measured in the same process."""

    model: str
    gradient_checkpointing: bool
    parameters: int
    trained: int
    tokens: int
    padding: float
    seconds: float
    tokens_per_second: float
    gflops: float
    gemm_gflops: float
    share: float


def measure(model: str, gradient_checkpointing: bool, studies: int, threads: int, rounds: int) -> Measured:
    """Times steps of `model` (a group of `configs/model/`) in this process; the fastest of `rounds` counts."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = _Step(model, gradient_checkpointing, studies)
    trained = step.trained
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    with FlopCounterMode(display=False) as counter:
        step.run(optimizer)
    gemm = [gemm_flops_per_second()]
    seconds = min(step.run(optimizer) for _ in range(rounds))
    gemm.append(gemm_flops_per_second())
    flops = counter.get_total_flops()
    return Measured(
        model=model,
        gradient_checkpointing=gradient_checkpointing,
        parameters=sum(p.numel() for p in step.policy.parameters()),
        trained=sum(p.numel() for p in trained),
        tokens=step.tokens,
        padding=1 - step.tokens / step.computed,
        seconds=seconds,
        tokens_per_second=step.tokens / seconds,
        gflops=flops / seconds / 1e9,
        gemm_gflops=max(gemm) / 1e9,
        share=flops / seconds / max(gemm),
    )


def peak_mib(model: str, gradient_checkpointing: bool, studies: int, threads: int) -> int:
    """The most memory of this process during one step, MiB; in a process of its own, started with `_RETURN_MEMORY`."""
    import torch

    torch.set_num_threads(threads)
    step = _Step(model, gradient_checkpointing, studies)
    optimizer = torch.optim.AdamW(step.trained, lr=1e-6, fused=True)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading
    step.run(optimizer)
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) >> 10


class _Step:
    """One RL-like step of a policy on random images and random reports."""

    def __init__(self, model: str, gradient_checkpointing: bool, studies: int) -> None:
        import torch

        from configs.load import compose_config
        from learner.batching import micro_batch_rounds
        from rrg.model.backbone import make_store
        from rrg.model.build import build_policy
        from rrg.model.lora import trainable_parameters

        switch = f"model.llm.gradient_checkpointing={str(gradient_checkpointing).lower()}"
        cfg = compose_config([f"model={model}", switch])
        store = make_store(cfg.data, cfg.model)
        words = [" ".join(f"w{(i * 7 + j) % 1500}" for j in range(40)) for i in range(400)]  # fills the vocabulary
        self.policy = build_policy(
            cfg.model, words, 0, grid=store.grid, channels=store.channels, target="findings",
            cache_dir=cfg.data.cache_dir,
        ).train()  # fmt: skip
        drawn = torch.normal(_MEAN_TOKENS, _SPREAD_TOKENS, (studies * SAMPLES,)).round().int()
        self.trained = [*self.policy.extractor.parameters(), *trainable_parameters(self.policy.llm)]
        kept = {id(parameter) for parameter in self.trained}
        for parameter in self.policy.parameters():
            parameter.requires_grad_(id(parameter) in kept)
        lengths: list[int] = drawn.clamp(_FEWEST, cfg.rollout.max_new_tokens).tolist()
        self._prompt = self.policy.prompt.most_tokens(self.policy.tokenizer, self.policy.visual_tokens)
        total = [self._prompt + length for length in lengths]
        budget, most = cfg.learner.micro_batch_tokens, cfg.learner.micro_batch_sequences
        rounds = micro_batch_rounds(total, token_budget=budget, most=most, world_size=1)
        self._batches = [[(i // SAMPLES, lengths[i]) for i in share] for (share,) in rounds]
        self.tokens = sum(total)
        self.computed = sum(len(b) * (self._prompt + max(length for _, length in b)) for b in self._batches)
        self._grid, self._channels = store.grid, store.channels

    def run(self, optimizer: object) -> float:
        """Seconds of one step."""
        import torch

        assert isinstance(optimizer, torch.optim.Optimizer)
        started = time.perf_counter()
        for batch in self._batches:
            inputs, ids, mask, counts = self._assemble(batch)
            output = self.policy(inputs, ids, mask, 1.0, counts)
            assert output.logprobs is not None
            (-output.logprobs.sum() / self.tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    def _assemble(self, batch: Sequence[tuple[int, int]]):  # type: ignore[no-untyped-def]  # what forward takes
        import torch

        from rrg.model.features import PatchFeatures, collate_features
        from rrg.model.policy import PolicyInputs
        from rrg.model.prompts import IMAGE, collate_prompts

        studies = sorted({study for study, _ in batch})
        patches = self._grid**2
        images = collate_features(
            [PatchFeatures(torch.randn(patches, self._channels), torch.zeros(patches).long()) for _ in studies]
        )
        visual = self.policy.visual_tokens
        prompt = [IMAGE] * visual + [0] * (self._prompt - visual)
        longest = max(length for _, length in batch)
        ids = torch.randint(self.policy.vocab_size, (len(batch), longest))
        mask = torch.arange(longest) < torch.tensor([length for _, length in batch])[:, None]
        counts = torch.tensor([sum(study == other for other, _ in batch) for study in studies])
        return PolicyInputs(images, collate_prompts([prompt] * len(studies))), ids, mask, counts


def gemm_flops_per_second() -> float:
    """The fastest of a few 1024 x 1024 matrix products in float32, with this process's threads."""
    import torch

    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    times = []
    for _ in range(12):
        started = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - started)
    return 2 * 1024**3 / min(times)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("--models", default="small,smollm2", help="groups of configs/model/ (default: %(default)s)")
    parser.add_argument("--studies", type=int, default=16, help=f"studies of a step, {SAMPLES} reports each")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3, help="steps that are timed; the fastest counts")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    # libgomp's spinning threads take the cores from others; it reads this when a child imports torch.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    found = []
    for name in args.models.split(","):
        for checkpointing in (False, True):
            settings = (name, checkpointing, args.studies, args.threads)
            timed = _elsewhere(measure, *settings, args.rounds)
            os.environ |= _RETURN_MEMORY
            peak = _elsewhere(peak_mib, *settings)
            for variable in _RETURN_MEMORY:
                del os.environ[variable]
            found.append(asdict(timed) | {"peak_mib": peak})
            print(f"{_line(timed)}, peak {peak} MiB", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def _elsewhere(work: Callable[..., T], *arguments: object) -> T:
    """The result of `work` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _line(row: Measured) -> str:
    checkpointing = " +checkpointing" if row.gradient_checkpointing else ""
    return (
        f"{row.model + checkpointing:<24} {row.parameters / 1e6:7.1f} M parameters, {row.trained / 1e6:.1f} M trained: "
        f"{row.seconds:.2f} s a step of {row.tokens} tokens ({row.padding:.0%} padding) = "
        f"{row.tokens_per_second:.0f} tokens/s, {row.gflops:.0f} of {row.gemm_gflops:.0f} GFLOP/s ({row.share:.0%})"
    )


if __name__ == "__main__":
    main()
