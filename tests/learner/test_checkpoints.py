"""Which settings make a run another run, so that its checkpoints are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs.schema import ClusterConfig, Config, DataConfig, LearnerConfig, ModelConfig, RewardConfig, RolloutConfig
from learner.checkpoints import config_hash

DATA = DataConfig("mimic_cxr", "/data")
CONFIG = Config(DATA, ModelConfig(), RolloutConfig(), RewardConfig(), LearnerConfig(), ClusterConfig())


def hash_with(**fields: object) -> str:
    return config_hash(replace(CONFIG, data=replace(DATA, **fields)))


@pytest.mark.parametrize(
    "fields", [{"views": "frontal"}, {"without_findings": "impression"}, {"imagenome": "/graphs"}, {"limit_train": 9}]
)
def test_other_training_data_make_another_run(fields: dict[str, object]) -> None:
    assert hash_with(**fields) != config_hash(CONFIG)


@pytest.mark.parametrize("fields", [{"root": "/moved"}, {"reports": "/reports"}, {"cache_dir": "/c"}, {"workers": 9}])
def test_the_same_data_in_another_place_do_not(fields: dict[str, object]) -> None:
    assert hash_with(**fields) == config_hash(CONFIG)


def test_chest_imagenome_may_move_too() -> None:
    assert hash_with(imagenome="/graphs") == hash_with(imagenome="/elsewhere")
