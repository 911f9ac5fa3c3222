"""The environment of a learner rank's process, and its threads. Importable without torch."""

from __future__ import annotations

from typing import Final

from configs.schema import LearnerConfig

# Ray's concurrency group of a rank for `rollout.weights=nccl`.
WEIGHTS_THREAD: Final = "weights"


def process_environment(learner: LearnerConfig) -> dict[str, str]:
    """The variables that must be set before torch is imported in a rank's process.

    `GOMP_SPINCOUNT=0`: spinning OpenMP threads cost 5x on a shared machine. `DS_ACCELERATOR`: no probing.
    """
    return {
        "DS_ACCELERATOR": "cuda" if learner.gpus_per_rank > 0 else "cpu",
        "GOMP_SPINCOUNT": "0",
        "OMP_NUM_THREADS": str(learner.threads),
        "LOG_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
    }
