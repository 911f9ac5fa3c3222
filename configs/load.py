"""From command line to a checked `Config`.

Contract: `register()` makes the typed groups known to Hydra; `resolve(raw)` gives the typed config or raises
`UserError` naming the field; `compose_config(overrides)` does both, for all but `learner.main`. None imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs import schema
from configs.check import check
from rrg.errors import UserError

GROUPS = {
    "data": schema.DataConfig,
    "model": schema.ModelConfig,
    "rollout": schema.RolloutConfig,
    "reward": schema.RewardConfig,
    "learner": schema.LearnerConfig,
    "cluster": schema.ClusterConfig,
}


T = TypeVar("T")


def register() -> None:
    """Stores the dataclasses as `base_config` and `GROUP/base_GROUP`, which the YAML files build on."""
    store = ConfigStore.instance()
    store.store(name="base_config", node=schema.Config)
    for group, node in GROUPS.items():
        store.store(group=group, name=f"base_{group}", node=node)


def compose_config(overrides: Sequence[str]) -> schema.Config:
    """The default job (`configs/`) with these overrides, as on the command line. Raises what `resolve` does."""
    register()
    with initialize_config_module("configs", version_base="1.3"):
        return resolve(compose("config", overrides=list(overrides)))


def resolve(raw: DictConfig) -> schema.Config:
    """The typed, interpolated and checked config of a composed one.

    Raises:
        UserError: a key that is not a field, a missing value, or a combination that cannot run.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema.Config), _typed_groups(raw))
        missing = OmegaConf.missing_keys(merged)
        if missing:
            raise UserError(f"no value for {', '.join(sorted(missing))}: give it as {sorted(missing)[0]}=VALUE")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"config: {reason} (fields and their meaning: configs/schema.py)") from error
    assert isinstance(config, schema.Config)
    check(config)
    return config


def _typed_groups(raw: DictConfig) -> DictConfig:
    # `+foo=1` gets past Hydra's struct mode; a merge into the bare dataclasses refuses what is not a field.
    plain = OmegaConf.to_container(raw, resolve=True)
    assert isinstance(plain, dict)
    typed = {name: OmegaConf.merge(OmegaConf.structured(node), plain.pop(name)) for name, node in GROUPS.items()}
    return OmegaConf.create(plain | typed)


def read_saved(path: Path) -> DictConfig:
    """A run's config.yaml as it stands. Raises UserError where it can't be read."""
    try:
        loaded = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read as YAML ({type(error).__name__})") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path} is no config of a run")
    return loaded


def saved_group(saved: DictConfig, node: type[T], path: Path) -> T:
    """One group of a run's config, such as `ModelConfig`; the others may be another version's. `path`: for messages.

    Raises UserError where it is missing or this version can't read it.
    """
    name = next(name for name, known in GROUPS.items() if known is node)
    try:
        value = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(node), saved[name]))
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {name}: {str(error).splitlines()[0]}; another version wrote this run") from error
    assert isinstance(value, node)
    return value
