"""Weights & Biases (`tracking.wandb`): online with WANDB_API_KEY or `wandb login`, or offline in the run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from configs.schema import TrackingConfig
from learner.tracking import PHASES
from rrg.errors import UserError

_TIMEOUT_S: Final = 60


class WandbTracker:
    """Its client sends from a process of its own: a service that is slow or away does not hold the run up."""

    def __init__(self, cfg: TrackingConfig, config: Mapping[str, Any], run_dir: Path, run_id: str | None) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("tracking.wandb: the package wandb is not installed: pip install wandb") from error
        self._table = wandb.Table
        try:
            if cfg.wandb == "online" and not wandb.login(prompt=False, verify=False, timeout=_TIMEOUT_S):
                raise UserError("tracking.wandb=online: no key; set WANDB_API_KEY, or take tracking.wandb=offline")
            self._run = wandb.init(
                project=cfg.project,
                name=run_dir.name,
                id=run_id,
                resume="allow",
                dir=run_dir,
                config=dict(config),
                mode="online" if cfg.wandb == "online" else "offline",
                # Numbers and the config: neither what the run prints, nor code, nor what the machine is.
                settings=wandb.Settings(
                    console="off", save_code=False, disable_git=True, disable_code=True, x_disable_meta=True,
                    x_disable_stats=True, silent=True, init_timeout=_TIMEOUT_S, finish_timeout=_TIMEOUT_S,
                ),
            )  # fmt: skip
        except wandb.Error as error:
            raise UserError(f"tracking.wandb={cfg.wandb}: {error}; tracking.wandb=offline needs no network") from error
        for phase in PHASES:
            self._run.define_metric(f"{phase}/step")
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")

    @property
    def run_id(self) -> str:
        return str(self._run.id)

    def log(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({f"{phase}/step": step} | {f"{phase}/{name}": value for name, value in metrics.items()})

    def reports(self, phase: str, step: int, path: Path) -> None:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = self._table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])
        self._run.log({f"{phase}/step": step, f"{phase}/reports": table})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
