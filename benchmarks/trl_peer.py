"""TRL's side of `benchmarks.rl_step`: its GRPOTrainer, with the same model, prompts, lengths, reward and schedule.

Contract: TRL as a user would set it up on a machine without GPUs: generation by transformers (its
vLLM mode needs NCCL), no gradient checkpointing, float32, fused AdamW. Its code is not changed, only watched.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.rl_sides import PHASES, Setup, Step, Stopwatch


class _Rewards:
    """The reward function: the same server, the same reward of its components."""

    __name__ = "reward_server"

    def __init__(self, setup: Setup, watch: Stopwatch) -> None:
        from reward_server.client import RewardClient

        self._cfg = setup.config.reward
        self._client = RewardClient([setup.address], self._cfg.timeout_s)
        self._watch = watch
        self.texts: list[str] = []
        self.tokens = 0

    def __call__(
        self, completions: list[str], completion_ids: list[list[int]], reference: list[str], **_: object
    ) -> list[float]:
        from reward_server.spec import reward_from_components

        self.texts = [text.strip() for text in completions]
        self.tokens = sum(map(len, completion_ids))
        scores = self._client.score(list(zip(reference, self.texts, strict=True)))
        return [reward_from_components(score, self._cfg) for score in scores]


def _trainer_class(watch: Stopwatch) -> Any:
    import torch
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from trl.trainer.grpo_trainer import GRPOTrainer

    watch.watch(GRPOTrainer, "_generate", "generate")
    watch.watch(GRPOTrainer, "_calculate_rewards", "reward")
    # Within the loss this is counted by `training_step`; only what is done without gradients is wanted apart.
    watch.watch(
        GRPOTrainer,
        "_get_per_token_logps_and_entropies",
        lambda: "with_gradient" if torch.is_grad_enabled() else "constants",
    )
    watch.watch(GRPOTrainer, "_prepare_inputs", "rollout")
    watch.watch(GRPOTrainer, "training_step", "training_step")
    watch.watch(torch.optim.AdamW, "step", "optimizer")
    watch.watch(Accelerator, "clip_grad_norm_", "optimizer")
    return GRPOTrainer


def _arguments(setup: Setup) -> Any:
    from trl.trainer.grpo_config import GRPOConfig

    cfg, rl = setup.config, setup.config.learner.rl
    samples = rl.studies_per_step * cfg.rollout.samples_per_study
    micro_batches = samples // setup.peer_batch
    if micro_batches * setup.peer_batch != samples or micro_batches % rl.minibatches:
        raise ValueError(f"{samples} samples do not make {rl.minibatches} equal mini-batches of {setup.peer_batch}s")
    return GRPOConfig(
        output_dir=str(setup.run_dir / "trl"),
        per_device_train_batch_size=setup.peer_batch,
        gradient_accumulation_steps=micro_batches // rl.minibatches,
        steps_per_generation=micro_batches,
        num_generations=cfg.rollout.samples_per_study,
        max_completion_length=cfg.rollout.max_new_tokens,
        max_steps=rl.minibatches * len(setup.prompts),
        temperature=cfg.rollout.temperature,
        beta=rl.kl.coef,
        epsilon=rl.clip_low,
        epsilon_high=rl.clip_high,
        loss_type="dapo",  # token-global, as ours
        learning_rate=rl.lr,
        lr_scheduler_type="constant",
        max_grad_norm=cfg.learner.grad_clip,
        optim="adamw_torch_fused",
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=cfg.seed,
    )


def run(pipe: Connection, setup: Setup) -> None:
    """The side's process."""
    import torch
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from benchmarks.model import gemm_flops_per_second

    sys.stdout = sys.stderr  # the trainer prints
    torch.set_num_threads(setup.config.learner.threads)
    watch = Stopwatch()
    rewards = _Rewards(setup, watch)
    minibatches = setup.config.learner.rl.minibatches

    class Turns(TrainerCallback):  # type: ignore[misc]
        """Waits for the word to begin, and tells of every RL step (some optimizer steps)."""

        started = 0.0

        def on_train_begin(self, *args: object, **kwargs: object) -> None:
            pipe.send(gemm_flops_per_second())
            self._wait()

        def on_step_end(self, args: object, state: Any, control: Any, **kwargs: object) -> None:
            if state.global_step % minibatches == 0:
                pipe.send(_step(time.perf_counter() - self.started, watch, rewards.texts, rewards.tokens))
                if not self._wait():
                    control.should_training_stop = True

        def _wait(self) -> bool:
            go: bool = pipe.recv()
            watch.take()
            self.started = time.perf_counter()
            return go

    rows = [
        {"prompt": prompt.text, "reference": prompt.reference, "study": prompt.study_id}
        for prompts in setup.prompts
        for prompt in prompts
    ]
    model = AutoModelForCausalLM.from_pretrained(setup.policy / "llm", dtype=torch.float32, attn_implementation="sdpa")
    trainer = _trainer_class(watch)(
        model=model,
        reward_funcs=rewards,
        args=_arguments(setup),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(setup.policy / "tokenizer"),
        callbacks=[Turns()],
    )
    trainer.train()
    pipe.send(gemm_flops_per_second())


def _step(seconds: float, watch: Stopwatch, texts: Sequence[str], tokens: int) -> Step:
    found = watch.take()
    known = {name: found.get(name, 0.0) for name in PHASES if name != "other"}
    known["forward_backward"] = found["training_step"] - found["rollout"]
    return Step(
        seconds=seconds,
        phases={**known, "other": seconds - sum(known.values())},
        parts={},
        samples=len(texts),
        tokens=tokens,
        words=sum(len(text.split()) for text in texts) / len(texts),
    )
