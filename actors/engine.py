"""The rollout engine: prompt embeds in, samples out, weights in; vLLM 0.32 inside, in this process.

Contract:
- `generate` yields a sample as soon as it is finished, while the others go on. It begins with an empty prefix cache,
  so a sample depends on its prompt, its seed and the weights, not on what was served before.
- `generate` can be interrupted between two tokens, to load other weights: the samples that still run are handed on as
  far as they are. They go on as new prompts, the old ones with the tokens so far behind them.
- Log-probabilities are those of the distribution that was sampled from (after the temperature).
- Nothing that could harm the engine enters it: embeds and weights are checked first (`PromptError`,
  `WeightsError`). A NaN that comes out all the same fails its own sample and is wiped from the KV cache.
- One thread calls it; only `abandon` may come from another.
- An exception or a time-out inside vLLM leaves it in an unknown state: the engine then refuses all further work
  (`EngineError`), and its owner has to replace it.

`actors.env.rollout_env` must be in the environment before this process first imports vLLM.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from actors.errors import EngineError, PromptError
from actors.samples import Prompt, Sample, Sampling, not_begun, read_sample
from actors.shapes import check_shapes, check_weights, parameters_of
from configs.schema import RolloutConfig

if TYPE_CHECKING:
    from actors.nccl import Transfer

# Prompts are short: with vLLM's default of 128 tokens a block they would never fill one, and never share it.
BLOCK_SIZE = 32
# Samples that came out as NaN make the engine start the others afresh; so often, then the weights are to blame.
MAX_CLEAN_STARTS = 4


class RolloutEngine:
    """One vLLM engine that serves the causal LM described by `llm_dir`.

    Built with empty weights: the first `load_weights` makes it ready, and sets `version`. `weight_shapes` are the names
    and shapes that it wants, `hidden_size` the width of prompt embeds.
    """

    def __init__(self, llm_dir: Path, cfg: RolloutConfig, dtype: str = "float32") -> None:
        """Takes seconds. Raises EngineError where the environment is not `rollout_env`'s, GPUs are missing, or vLLM
        cannot run the LLM on CPUs."""
        if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
            raise EngineError("start the process of a RolloutEngine with the environment of actors.env.rollout_env")
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        from actors.vllm_worker import TRANSFER_BACKEND, WorkerExtension, keep_linear_weights_loadable

        on_cpu = current_platform.is_cpu()
        if on_cpu:
            if cfg.tensor_parallel != 1:
                raise EngineError(f"rollout.tensor_parallel={cfg.tensor_parallel} needs GPUs; on CPUs it must be 1")
            keep_linear_weights_loadable()
        self.weight_shapes, self.hidden_size = parameters_of(llm_dir)
        self._max_model_len = cfg.max_model_len
        self._timeout_s = cfg.timeout_s
        self._broken: str | None = None
        self._busy = False
        self.version: int | None = None
        args = EngineArgs(
            model=str(llm_dir),
            dtype=dtype,
            tensor_parallel_size=cfg.tensor_parallel,
            load_format="dummy",
            skip_tokenizer_init=True,
            generation_config="vllm",
            max_model_len=cfg.max_model_len,
            block_size=BLOCK_SIZE,
            max_num_seqs=cfg.max_num_seqs,
            max_num_batched_tokens=max(8192, cfg.max_model_len),
            kv_cache_memory_bytes=cfg.kv_cache_mib << 20,
            enable_prompt_embeds=True,
            enable_prefix_caching=True,
            enable_chunked_prefill=False,  # crashes together with seeds
            enforce_eager=on_cpu,
            async_scheduling=False,  # nothing is in flight between two steps
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            worker_extension_cls=f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
            weight_transfer_config={"backend": TRANSFER_BACKEND},
        )
        self._llm = LLMEngine.from_engine_args(args)
        if on_cpu:
            _check_heads(self._llm.model_config.get_head_size())
        self._llm.collective_rpc("init_weight_transfer_engine", args=({},))

    def assert_healthy(self) -> None:
        """Raise EngineError if the engine has to be replaced."""
        if self._broken is not None:
            raise EngineError(f"the rollout engine is out of order: {self._broken}")

    def abandon(self) -> None:
        """Make a `generate` that runs in another thread end with EngineError before its next token."""
        self._broken = "abandoned"

    def check_prompt(self, embeds: npt.NDArray[np.float32], max_new_tokens: int) -> None:
        """Raise PromptError unless the embeds are [P, hidden], finite, and leave room for the report."""
        if embeds.ndim != 2 or embeds.shape[0] == 0 or embeds.shape[1] != self.hidden_size:
            raise PromptError(f"prompt embeds of shape {embeds.shape}: expected [P >= 1, {self.hidden_size}]")
        if embeds.shape[0] + max_new_tokens > self._max_model_len:
            raise PromptError(
                f"a prompt of {embeds.shape[0]} and {max_new_tokens} new tokens do not fit "
                f"rollout.max_model_len={self._max_model_len}"
            )
        if not np.isfinite(embeds).all():
            raise PromptError("prompt embeds hold NaN or infinite values")

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, interrupted: Callable[[], bool] | None = None
    ) -> Iterator[Sample]:
        """One sample a prompt, in order of completion.

        Prompts with the same embeds (the samples of a study) share their prefill. Leaving the iterator early drops
        the rest. `interrupted` is asked before every token; when it says yes, the samples that have not ended come as
        they are, and nothing runs any more. Raises PromptError before anything runs, EngineError when the engine
        fails, is busy, has no weights, or finishes no sample for `rollout.timeout_s`.
        """
        self._require_idle()
        if self.version is None:
            raise EngineError("the rollout engine has no weights yet: call load_weights first")
        for prompt in prompts:
            self.check_prompt(prompt.embeds, sampling.max_new_tokens - prompt.written)
        return self._run(prompts, sampling, interrupted)

    def prompt_logprobs(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Log-probability of each token but the first given those before it, [len(token_ids) - 1]: the canary."""
        from vllm import SamplingParams

        self._require_idle()
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
        self._llm.add_request("canary", {"prompt_token_ids": list(token_ids)}, params)
        (output,) = [output for outputs in self._steps() for output in outputs if output.finished]
        return np.asarray(output.prompt_logprobs.logprobs, dtype=np.float32)

    def load_weights(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        """Replace all weights by those of `version` (names and shapes of the Hugging Face checkpoint).

        Raises WeightsError, the engine untouched, unless every parameter is there with its shape and finite. What was
        cached under the old weights is forgotten.
        """
        self._require_idle()
        check_weights(tensors, self.weight_shapes, version)
        self._replace({"tensors": dict(tensors)}, version)

    def receive_weights(self, transfer: Transfer) -> None:
        """`load_weights` of what a publisher sends (`actors.nccl`).

        Raises WeightsError, the engine untouched, unless every parameter is announced with its shape. Raises
        EngineError where the transfer fails: the old weights are gone then.
        """
        self._require_idle()
        check_shapes({spec.name: spec.shape for spec in transfer.tensors}, self.weight_shapes, transfer.version)
        self.version = None
        self._replace({"transfer": transfer}, transfer.version)

    def close(self) -> None:
        """Give the engine's memory back; the engine refuses all further work."""
        self._broken = "closed"
        self._llm.engine_core.shutdown()

    def _replace(self, update: Mapping[str, Any], version: int) -> None:
        self._guarded(self._llm.collective_rpc, "start_weight_update")
        self._guarded(self._llm.collective_rpc, "update_weights", args=(dict(update),))
        self._guarded(self._llm.collective_rpc, "finish_weight_update")
        self._llm.set_weight_version(str(version))
        self._start_clean(zero=True)
        self.version = version

    def _run(
        self, prompts: Sequence[Prompt], sampling: Sampling, interrupted: Callable[[], bool] | None
    ) -> Iterator[Sample]:
        """Generate with restarts: a NaN may have reached the KV blocks of samples that still run."""
        self._require_idle()
        self._busy = True
        waiting = dict(enumerate(prompts))
        try:
            for attempt in range(MAX_CLEAN_STARTS):
                self._start_clean(zero=attempt > 0)
                for index, prompt in waiting.items():
                    self._submit(index, prompt, sampling, stream=interrupted is not None)
                so_far: dict[int, Any] = {}
                for outputs in self._steps(interrupted):
                    so_far |= {int(output.request_id): output for output in outputs}
                    samples = [read_sample(output) for output in outputs if output.finished]
                    for sample in samples:
                        del waiting[sample.index]
                    yield from samples
                    if any(sample.failed for sample in samples):
                        break
                else:
                    yield from [read_sample(so_far[i]) if i in so_far else not_begun(i) for i in waiting]
                    return
                if not waiting:
                    return
                self._abort(waiting)
            self._broken = f"weights version {self.version} gave NaN in {MAX_CLEAN_STARTS} clean starts"
            self.assert_healthy()
        finally:
            self._abort(waiting)
            self._busy = False

    def _submit(self, index: int, prompt: Prompt, sampling: Sampling, stream: bool) -> None:
        """`stream`: vLLM hands on what it has after every token, which costs time; else a sample's end alone."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        seed = None if sampling.greedy else prompt.seed
        params = SamplingParams(
            temperature=0.0 if seed is None else sampling.temperature,
            seed=seed,
            max_tokens=sampling.max_new_tokens - prompt.written,
            stop_token_ids=[sampling.eos],
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.CUMULATIVE if stream else RequestOutputKind.FINAL_ONLY,
        )
        embeds = torch.tensor(prompt.embeds, dtype=self._llm.model_config.dtype)
        self._guarded(self._llm.add_request, str(index), {"prompt_embeds": embeds}, params)

    def _steps(self, interrupted: Callable[[], bool] | None = None) -> Iterator[list[Any]]:
        """Drive vLLM until it has no more requests or is interrupted; what each step gave, if anything."""
        deadline = time.monotonic() + self._timeout_s
        while self._llm.has_unfinished_requests() and not (interrupted is not None and interrupted()):
            self.assert_healthy()
            outputs = self._guarded(self._llm.step)
            if outputs:
                yield outputs
            if any(output.finished for output in outputs):
                deadline = time.monotonic() + self._timeout_s
            elif time.monotonic() > deadline:
                count = self._llm.get_num_unfinished_requests()
                self._broken = f"none of {count} samples was finished within rollout.timeout_s={self._timeout_s:g} s"
                self.assert_healthy()

    def _guarded(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call vLLM; whatever it raises, its state is unknown from then on (a later step may spin for ever)."""
        try:
            return call(*args, **kwargs)
        except Exception as error:
            self._broken = f"{type(error).__name__}: {error}"
            raise EngineError(f"the rollout engine failed: {self._broken}") from error

    def _start_clean(self, zero: bool) -> None:
        """Empty the prefix cache; with `zero`, wipe the memory of the KV cache too."""
        if not self._llm.reset_prefix_cache():
            self._broken = "the prefix cache could not be emptied"
            self.assert_healthy()
        if zero:
            self._guarded(self._llm.collective_rpc, "zero_kv_cache")

    def _abort(self, waiting: Mapping[int, Prompt]) -> None:
        if waiting and self._broken is None:
            self._guarded(self._llm.abort_request, [str(index) for index in waiting])

    def _require_idle(self) -> None:
        self.assert_healthy()
        if self._busy:
            raise EngineError("the rollout engine is busy: finish or close the running generate() first")


def _check_heads(size: int) -> None:
    """vLLM takes any size when it builds an engine and fails at the first attention, after the warm start of a run."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    supported = CPUAttentionBackend.get_supported_head_sizes()
    if size not in supported:
        raise EngineError(
            f"attention heads of {size} values: on CPUs vLLM takes {', '.join(map(str, supported))}; "
            "choose another LLM (model.llm: hidden_size / num_heads)"
        )
