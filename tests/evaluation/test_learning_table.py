"""The comparison of RL with its controls, on prepared runs: what is pooled, what is paired, what a run builds on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import learning
from benchmarks.learning_table import SHOWN, Facts, cells, report
from configs.schema import EvalConfig
from learner.evaluation.measures import Evaluation, evaluate
from rrg.data.study import Study
from rrg.errors import UserError
from tests.evaluation.conftest import NORMAL, overlap_reward, token_f1_score

BACKEND = ("embedded", "graph_f1", "bertscore", "label_similarity")


def judged(studies: list[Study], hypotheses: list[str], cfg: EvalConfig) -> Evaluation:
    def score(pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
        return [dict(found) | dict.fromkeys(BACKEND, 0.5) for found in token_f1_score(pairs)]

    return evaluate(studies, hypotheses, score, overlap_reward, cfg, seed=0)


@pytest.fixture
def made(studies: list[Study], cfg: EvalConfig) -> dict[str, object]:
    right = [study.target for study in studies]
    half = [text if index % 2 else NORMAL for index, text in enumerate(right)]
    third = [text if index % 3 == 0 else NORMAL for index, text in enumerate(right)]
    runs = {
        "warm": {0: judged(studies, third, cfg), 1: judged(studies, [NORMAL] * len(studies), cfg)},
        "rl": {0: judged(studies, half, cfg), 1: judged(studies, right, cfg)},
    }
    facts = {"warm": [Facts(2.0, 10.0), Facts(1.0, 12.0)], "rl": [Facts(4.0, 3.0), Facts(8.0, 5.0)]}
    return {"report": report(runs, facts, 200), "runs": runs}


def test_a_pooled_value_is_the_mean_over_seeds_and_a_difference_that_of_the_seeds_differences(
    made: dict[str, object],
) -> None:
    found, runs = made["report"], made["runs"]
    assert isinstance(found, dict)
    assert isinstance(runs, dict)
    single = [runs["rl"][seed].metrics["reward"] for seed in (0, 1)]
    assert found["arms"]["rl"]["reward"][0] == pytest.approx(np.mean(single))
    gain = found["minus"]["warm"]["rl"]["reward"]
    assert gain["pooled"][0] == pytest.approx(np.mean(list(gain["seeds"].values())))
    assert gain["pooled"][1] > 0
    assert found["arms"]["rl"]["unique"] == 6.0
    assert found["arms"]["rl"]["seconds"] == [3.0, 5.0]


def test_the_table_has_every_measure_of_every_arm_and_the_differences_below(made: dict[str, object]) -> None:
    found = made["report"]
    assert isinstance(found, dict)
    header, rows = cells(found)
    assert header == ["", "warm (2)", "rl (2)"]
    assert [row[0] for row in rows[: len(SHOWN)]] == list(SHOWN.values())
    below = {row[0]: row[1:] for row in rows[len(SHOWN) :]}
    assert below["finding F1 - warm"][0] == ""
    assert below["finding F1 - warm"][1].startswith("+")


def test_more_sft_gets_as_many_epochs_as_the_rl_of_its_seed_took_time(tmp_path: Path) -> None:
    runs = {run.arm: run for run in learning.plan(tmp_path, ["more_sft", "rl", "warm"], [3])}
    assert list(runs) == ["warm", "rl", "more_sft"]
    with pytest.raises(UserError, match="run the arm 'warm' with seed 3 first"):
        runs["rl"].command([])
    for arm in ("warm", "rl"):
        runs[arm].folder.mkdir()
    (runs["warm"].folder / "config.yaml").write_text("learner: {sft: {epochs: 5.0, regions_epochs: 2.0}}\n")
    (runs["warm"].folder / "summary.json").write_text(json.dumps({"seconds": {"warm start": 620.0}}))
    (runs["rl"].folder / "summary.json").write_text("{}")
    steps = [{"phase": "rl", "step": step, "seconds_step": 10.0} for step in range(20)]
    (runs["rl"].folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    command = runs["more_sft"].command(["+exp=smoke"])
    assert "learner.sft.epochs=2.00" in command  # 620 s for 5 epochs and 2 of the cheaper stage: 100 s an epoch
    assert f"start={runs['warm'].folder}" in command


def test_an_arm_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="grpoo is none of warm, rl"):
        learning.plan(tmp_path, ["grpoo"], [0])
