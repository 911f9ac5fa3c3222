"""The environment of a process that hosts a rollout engine. Importable without torch."""

from __future__ import annotations

from configs.schema import RolloutConfig


def rollout_env(cfg: RolloutConfig) -> dict[str, str]:
    """Environment variables of a process that hosts an engine; for Ray's `runtime_env={"env_vars": ...}`."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the actor's process
        "TORCH_COMPILE_DISABLE": "1" if cfg.gpus_per_actor == 0 else "0",  # saves 2-5 s of a first call on CPUs
        "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings are about the settings chosen here on purpose
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(cfg.threads),
        "GOMP_SPINCOUNT": "0",  # idle threads sleep: the learner computes meanwhile
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # `actors.runner` blocks threads of its own, not the event loop
    }
