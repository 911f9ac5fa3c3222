"""The reward functions for TRL and OpenRLHF, called as those trainers call them, against a real server."""

from __future__ import annotations

import asyncio
import importlib.util
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle

from configs.schema import RewardConfig
from reward_server.errors import RewardError
from reward_server.integrations import openrlhf_reward, trl_reward
from reward_server.scorer import Scorer
from reward_server.spec import reward_from_components
from tests.reward_server.conftest import RunningServer

REFERENCES = ["Small left effusion.", "No pneumothorax.", "The heart is enlarged."]
REPORTS = ["Left effusion.", "There is no pneumothorax.", "Normal heart."]


@pytest.fixture
def expected(scorer: Scorer) -> list[float]:
    return [-score["embedded"] for score in scorer.score(list(zip(REFERENCES, REPORTS, strict=True)))]


def test_trl_strings_and_chats_get_rewards(server: RunningServer, expected: list[float]) -> None:
    reward = trl_reward([server.address], reference_column="findings")
    extra = {"prompts": ["p"] * 3, "completion_ids": [[1]] * 3, "findings": REFERENCES, "trainer_state": None}
    assert reward(completions=REPORTS, **extra) == expected
    chats: list[list[Mapping[str, Any]]] = [[{"role": "assistant", "content": report}] for report in REPORTS]
    chats[0] = [{"role": "assistant", "content": [{"type": "text", "text": REPORTS[0]}]}]
    assert reward(completions=chats, **extra) == expected
    assert reward.__name__ == "radiology_reward"  # what TRL logs it as


def test_trl_logs_the_mean_of_every_component(server: RunningServer, scorer: Scorer) -> None:
    logged: dict[str, float] = {}
    reward = trl_reward([server.address])
    reward(completions=REPORTS, reference=REFERENCES, log_metric=logged.__setitem__)
    scores = scorer.score(list(zip(REFERENCES, REPORTS, strict=True)))
    assert logged.keys() == {f"reward_components/{name}" for name in scores[0]}
    assert logged["reward_components/bleu2"] == pytest.approx(sum(score["bleu2"] for score in scores) / 3)


def test_trl_gets_none_for_a_failed_pair_only_if_asked(server: RunningServer, expected: list[float]) -> None:
    reports = [*REPORTS[:2], "\ud800"]
    with pytest.raises(RewardError, match="1 of 3 pairs have no score; pair 2: hypothesis: not valid Unicode"):
        trl_reward([server.address])(completions=reports, reference=REFERENCES)
    lenient = trl_reward([server.address], failed="none")
    assert lenient(completions=reports, reference=REFERENCES) == [*expected[:2], None]
    with pytest.raises(RewardError, match=r"127.0.0.1:9 \(deadline 1 s\)"):
        trl_reward(["127.0.0.1:9"], failed="none", timeout_s=1)(completions=REPORTS, reference=REFERENCES)


def test_trl_mistakes_are_named(server: RunningServer) -> None:
    with pytest.raises(RewardError, match="no column 'reference'; it has prompts, report"):
        trl_reward([server.address])(completions=REPORTS, prompts=[], report=REFERENCES)
    with pytest.raises(RewardError, match="the assistant's is the last"):
        trl_reward([server.address])(completions=[[{"role": "user", "content": "x"}]], reference=["x"])


def test_a_config_defines_another_reward(server: RunningServer, scorer: Scorer) -> None:
    cfg = RewardConfig(clip=1.0, repetition_weight=2.0)
    rewards = trl_reward([server.address], cfg=cfg)(completions=REPORTS, reference=REFERENCES)
    scores = scorer.score(list(zip(REFERENCES, REPORTS, strict=True)))
    assert rewards == [reward_from_components(score, cfg) for score in scores]


# --- OpenRLHF ---------------------------------------------------------------------------------------------------------

PROMPT = "<|im_start|>user\nWrite the findings.<|im_end|>\n<|im_start|>assistant\n"


def queries(reports: Sequence[str]) -> list[str]:
    return [f"{PROMPT}{report}<|im_end|><|endoftext|><|endoftext|>" for report in reports]


def test_openrlhf_calls_a_file_from_many_threads_with_one_sample_each(
    tmp_path: Path, server: RunningServer, expected: list[float]
) -> None:
    path = tmp_path / "reward.py"
    path.write_text(
        f"from reward_server.integrations import openrlhf_reward\nreward_func = openrlhf_reward(['{server.address}'])\n"
    )
    spec = importlib.util.spec_from_file_location("reward_func", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def ask() -> list[dict[str, Any]]:
        calls = [
            asyncio.to_thread(module.reward_func, [query], [PROMPT], [reference])
            for query, reference in zip(queries(REPORTS) * 20, REFERENCES * 20, strict=True)
        ]
        return await asyncio.gather(*calls)

    results = asyncio.run(ask())
    assert [result["rewards"].item() for result in results] == pytest.approx(expected * 20)
    assert all(result["scores"] is result["rewards"] for result in results)
    assert all(result["extra_logs"]["bleu2"].shape == (1,) for result in results)


def test_openrlhf_gets_tensors_of_a_batch_from_a_function_that_travels_by_pickle(
    server: RunningServer, expected: list[float]
) -> None:
    reward = pickle.loads(cloudpickle.dumps(openrlhf_reward([server.address])))
    result = reward(queries(REPORTS), [PROMPT] * 3, REFERENCES, images=None)
    assert torch.equal(result["rewards"], torch.tensor(expected))
    assert all(values.shape == (3,) for values in result["extra_logs"].values())


def test_openrlhf_gets_an_error_for_a_failed_pair_or_a_lost_prompt(server: RunningServer) -> None:
    reward = openrlhf_reward([server.address])
    with pytest.raises(RewardError, match="1 of 1 pairs have no score"):
        reward(queries(["\ud800"]), [PROMPT], ["x"])
    with pytest.raises(RewardError, match="does not contain its prompt"):
        reward(["cut off\nassistant\nClear lungs."], [PROMPT], ["x"])
