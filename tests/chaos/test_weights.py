"""Weights that are not finite: the learner does not publish them.

What an actor does with faulty ones that reach it is in tests/actors/test_weights.py and tests/actors/test_runner.py; a
gradient that is not finite in tests/learner/test_engine.py.
"""

from __future__ import annotations

import pytest
import torch

from configs.schema import Config, DataConfig, LLMConfig, ModelConfig
from learner.publish import publish
from rrg.data import load_studies
from rrg.errors import RunStoppedError
from rrg.model.backbone import make_store
from rrg.model.policy import ReportPolicy
from tests.actors.conftest import make_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ReportPolicy:
    llm = LLMConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128, vocab_size=400)
    cache = str(tmp_path_factory.mktemp("cache"))
    config = Config(
        data=DataConfig("rendered_openi", cache_dir=cache, limit_train=3, limit_val=0, limit_test=0, workers=1),
        model=ModelConfig(llm=llm, extractor_size=64),
    )
    studies = load_studies(config.data)
    make_store(config.data, config.model).prepare(list(studies))
    return make_policy(config, studies, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["llm", "extractor"])
def test_a_policy_that_is_not_finite_stops_the_run_in_place_of_being_published(
    policy: ReportPolicy, part: str, value: float
) -> None:
    broken = next(p for p in getattr(policy, part).parameters() if p.ndim == 2)
    kept = broken.detach().clone()
    with torch.no_grad():
        broken.fill_(value)
    with pytest.raises(RunStoppedError, match="after 7 RL steps the policy gives numbers that are not finite"):
        publish(policy, 7, "merged")
    with torch.no_grad():
        broken.copy_(kept)
