"""Which policy writes: a run directory's best, latest or warm-start policy, or a bare policy folder.

Contract: `find_checkpoint` reads small files only, and imports no torch. Of a run's config it needs the groups `data`,
`model` and `rollout`; the others may be another version's. A folder `step_N/` is complete whenever it exists under that
name (`learner.checkpoints`), so the policy in it is whole.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from configs.load import read_saved, saved_group
from configs.schema import DataConfig, ModelConfig, RolloutConfig
from rrg.data.dataset import RENDERED
from rrg.data.study import View
from rrg.errors import UserError
from rrg.model.saved import POLICY_FILE, policy_in

STAGES: Final = ("best", "latest", "warm_start")
_CONFIG: Final = "config.yaml"
_RL: Final = "step_1_"
# How far above a policy its run directory can lie: RUN/checkpoints/step_N/policy.
_NESTED: Final = 3


@dataclass(frozen=True)
class Checkpoint:
    """A saved policy and the settings that it is used with.

    `name` is for people: the run and what of it. `of_run` says whether they are those of a run; of a bare policy
    all settings are the defaults.
    """

    name: str
    policy: Path
    data: DataConfig
    model: ModelConfig
    rollout: RolloutConfig
    of_run: bool

    @cached_property
    def sha256(self) -> str:
        """Of all weights."""
        return weights_sha256(self.policy)

    @cached_property
    def context(self) -> frozenset[str]:
        """What the prompt tells beside the image: of "views", "indication", "comparison"."""
        file = self.policy / POLICY_FILE
        try:
            return frozenset(json.loads(file.read_text(encoding="utf-8"))["prompt"]["context"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged, or another version wrote it") from error

    @property
    def caution(self) -> str | None:
        """What must be known of all that the policy writes, as far as its run's config tells."""
        rendered = self.of_run and self.data.name == RENDERED
        return "trained on rendered X-rays: what it writes of a real one means nothing" if rendered else None

    @property
    def views(self) -> frozenset[View]:
        """The views that the policy can have been trained on, as far as its run's config tells."""
        if self.of_run and (self.data.name == RENDERED or self.data.views == "frontal"):
            return frozenset({"frontal"})
        return frozenset({"frontal", "lateral"})


def find_checkpoint(path: Path, stage: str | None = None) -> Checkpoint:
    """The policy in `path`: of a run directory that of `stage`, else of the best RL checkpoint, else the latest one,
    else the warm start; or the one of a checkpoint's or a policy's folder, with the settings of the run around it.

    Raises UserError where there is none, or `stage` is given for what is no run directory.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; name a run directory of learner.main, or a policy's folder")
    if (path / _CONFIG).is_file():
        name, folder = _of_run(path, stage)
        return _with_settings(f"{path.resolve().name} {name}", folder, path / _CONFIG)
    found = policy_in(path)
    if found is None:
        raise UserError(f"{path} is neither a run directory ({_CONFIG}) nor a policy ({POLICY_FILE})")
    if stage is not None:
        raise UserError(f"--stage {stage}: {path} is one policy, and no run directory")
    around = [parent / _CONFIG for parent in found.resolve().parents[:_NESTED]]
    config = next((file for file in around if file.is_file()), None)
    if config is not None:
        return _with_settings(f"{config.parent.name} {path.resolve().name}", found, config)
    return Checkpoint(path.resolve().name, found, DataConfig("files"), ModelConfig(), RolloutConfig(), of_run=False)


def weights_sha256(policy: Path) -> str:
    """Of all safetensors of a policy's folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(policy.rglob("*.safetensors")):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _of_run(run: Path, stage: str | None) -> tuple[str, Path]:
    """What of the run it is, and the policy's folder."""
    for wanted in STAGES if stage is None else (stage,):
        found = run / "warm_start" if wanted == "warm_start" else _announced(run / "checkpoints" / wanted)
        if found is not None and (found / POLICY_FILE).is_file():
            return ("warm_start" if wanted == "warm_start" else f"{found.parent.name} ({wanted})"), found
    there = f"no {stage}" if stage is not None else "no policy yet"
    raise UserError(f"{run} holds {there}: neither of its checkpoints/ nor its warm_start/ has what was asked for")


def _announced(pointer: Path) -> Path | None:
    """The policy of the RL checkpoint that `pointer`, a file, names; None too where that is one of the warm start's."""
    named = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    return pointer.parent / named / "policy" if named.startswith(_RL) else None


def _with_settings(name: str, folder: Path, config: Path) -> Checkpoint:
    saved: Any = read_saved(config)
    if saved.get("stage") == "regions":
        raise UserError(f"{config}: stage=regions: the language model of this run never learnt to write reports")
    data, model = saved_group(saved, DataConfig, config), saved_group(saved, ModelConfig, config)
    return Checkpoint(name, folder, data, model, saved_group(saved, RolloutConfig, config), of_run=True)
