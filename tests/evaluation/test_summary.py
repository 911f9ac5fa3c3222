"""A run's summary is strict JSON, and says what was not reached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from rich.console import Console

from configs.schema import EvalConfig
from learner.evaluation.bootstrap import Interval
from learner.evaluation.measures import Evaluation, evaluate
from learner.evaluation.numbers import fixed, spread
from learner.evaluation.regions import RegionMeasures, measure_regions
from learner.summary import (
    Summary,
    build_regions_summary,
    build_summary,
    markdown_table,
    print_summary,
    rl_goals,
    write_summary,
)
from rrg.data.study import Box, Report, Study
from rrg.model.evidence import RegionEvidence
from tests.evaluation.conftest import NORMAL, make_studies, overlap_reward, token_f1_score

NO_REGIONS: Mapping[str, RegionMeasures | None] = MappingProxyType({"sft": None, "rl": None})


def evaluation(studies: list[Study], hypotheses: list[str], cfg: EvalConfig) -> Evaluation:
    return evaluate(studies, hypotheses, token_f1_score, overlap_reward, cfg, seed=0)


def summarize(
    sft: Evaluation,
    rl: Evaluation | None,
    constant: Evaluation,
    cfg: EvalConfig,
    regions: Mapping[str, RegionMeasures | None] = NO_REGIONS,
) -> Summary:
    return build_summary(
        sft,
        rl,
        {"most_frequent": constant, "best_constant": constant, "nearest_image": sft, "nearest_findings": rl or sft},
        regions,
        reward_backend="embedded",
        about={
            "stage": "all",
            "images": "rendered X-rays",
            "seconds": {"sft": 61.2, "rl": 120.0},
            "peak_rss_gb": 3.21,
        },
        cfg=cfg,
        seed=0,
    )


@pytest.fixture
def collapsed(studies: list[Study], cfg: EvalConfig) -> Summary:
    """RL that lost all of the warm start's findings to one template."""
    template = evaluation(studies, [NORMAL] * len(studies), cfg)
    return summarize(evaluation(studies, [study.target for study in studies], cfg), template, template, cfg)


@pytest.fixture
def improved(studies: list[Study], cfg: EvalConfig) -> Summary:
    """A warm start that is right about the studies with even numbers of ten, and RL that is right about all."""
    references = [study.target for study in studies]
    warm = [text if index // 10 % 2 else NORMAL for index, text in enumerate(references)]
    constant = evaluation(studies, [NORMAL] * len(studies), cfg)
    return summarize(evaluation(studies, warm, cfg), evaluation(studies, references, cfg), constant, cfg)


def terminal(summary: Summary, width: int = 120) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(summary, console)
    return console.export_text()


def reached(summary: Summary) -> dict[str, bool]:
    return {goal["goal"]: goal["reached"] for goal in summary["goals"]}


def test_the_file_holds_what_its_contract_names_as_strict_json(improved: Summary, tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", improved)

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    wanted = {"reward", "reward_abnormal", "overlap", "bleu1", "bleu4", "rougeL", "finding_f1", "unique", "shuffle_gap"}
    for metrics in (summary["sft"], summary["rl"], *summary["controls"].values()):
        assert wanted <= set(metrics)
        assert len(metrics["shuffle_gap"]) == 3
    for difference, low, high in summary["rl_minus_sft"].values():
        assert low <= difference <= high
    assert (summary["reward_backend"], summary["images"]) == ("embedded", "rendered X-rays")
    assert summary["seconds"] == {"sft": 61.2, "rl": 120.0}
    assert summary["peak_rss_gb"] == 3.21
    assert {"goal", "reached", "detail"} == set(summary["goals"][0])


def test_undefined_measures_are_null_and_shown_as_a_dash(cfg: EvalConfig, tmp_path: Path) -> None:
    normal = make_studies(20)[::2]
    same = evaluation(normal, [study.target for study in normal], cfg)
    summary = summarize(same, same, same, cfg)
    write_summary(tmp_path / "summary.json", summary)
    assert json.loads((tmp_path / "summary.json").read_text())["sft"]["reward_abnormal"] is None
    row = next(line for line in terminal(summary).splitlines() if "reward_abnormal" in line)
    assert row.split()[2:] == ["-"] * 6


def test_a_number_that_json_cannot_hold_is_refused_and_nothing_is_written(improved: Summary, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_summary(tmp_path / "summary.json", {**improved, "peak_rss_gb": float("nan")})
    assert not (tmp_path / "summary.json").exists()


def test_an_rl_that_collapsed_to_a_template_has_reached_none_of_its_goals(collapsed: Summary) -> None:
    goals = reached(collapsed)
    assert goals.pop("warm start: shuffle gap above 0")
    assert goals.pop("warm start: finding F1 at least 0.45")
    assert len(goals) == 4
    assert not any(goals.values())
    text = terminal(collapsed)
    assert text.count("not reached") == 4
    assert "not reached  RL: finding F1 not lower than the warm start's: -" in text


def test_a_blind_warm_start_has_not_reached_its_goals(studies: list[Study], cfg: EvalConfig) -> None:
    blind = evaluation(studies, [NORMAL] * len(studies), cfg)
    sighted = evaluation(studies, [study.target for study in studies], cfg)
    goals = reached(summarize(blind, sighted, blind, cfg))
    assert [goal for goal, done in goals.items() if not done] == [
        "warm start: shuffle gap above 0",
        "warm start: finding F1 at least 0.45",
    ]


def test_an_rl_that_only_equals_the_best_constant_has_not_beaten_it(studies: list[Study], cfg: EvalConfig) -> None:
    sighted = evaluation(studies, [study.target for study in studies], cfg)
    goals = reached(summarize(sighted, sighted, sighted, cfg))
    assert not goals["RL: reward above every constant control's"]
    assert not goals["RL: reward above the warm start's"]
    assert goals["RL: finding F1 not lower than the warm start's"]


@pytest.mark.parametrize(
    ("value", "shown"), [(-4e-4, "0.000"), (4e-4, "0.000"), (-6e-4, "-0.001"), (6e-4, "+0.001"), (-0.0, "0.000")]
)
def test_what_rounds_to_zero_is_shown_without_a_sign(value: float, shown: str) -> None:
    assert fixed(value, sign="+") == shown
    assert spread([value, -0.5, 0.5], sign="+") == f"{shown} [-0.500, +0.500]"
    assert fixed(value) == shown.removeprefix("+")


def test_a_difference_that_is_shown_as_zero_is_neither_above_the_warm_start_nor_below_it() -> None:
    noise = Interval(6.8e-13, 1e-13, 9e-13)
    gains = {"reward": noise, "finding_f1": Interval(*(-end for end in noise)), "shuffle_gap": noise}
    found = {goal.goal: goal.reached for goal in rl_goals(gains, {"most_frequent": noise})}
    assert not found["RL: reward above the warm start's"]
    assert not found["RL: reward above every constant control's"]
    assert found["RL: finding F1 not lower than the warm start's"]


def test_a_run_that_reached_everything_says_so(improved: Summary) -> None:
    assert all(reached(improved).values())
    assert "not reached" not in terminal(improved)


@pytest.mark.parametrize("width", [80, 110, 140])
def test_the_table_names_the_stand_ins_in_its_column_titles_and_keeps_numbers_whole(
    improved: Summary, width: int
) -> None:
    text = terminal(improved, width)
    title, *lines = text.splitlines()
    assert "60 held-out test studies, rendered X-rays, embedded reward" in title
    for words in ("rendered X-rays,", "embedded reward", "frequent", "constant", "image", "(oracle)"):
        assert any(words in line for line in lines), words
    difference, low, high = improved["rl_minus_sft"]["reward"]
    assert f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]" in text
    assert "…" not in text
    assert max(len(line) for line in lines) <= width
    reward = [cell for line in lines if line.split()[:1] == ["reward"] for cell in line.split()[2:]]
    assert len(reward) == 2 + 3 + 4, "a column is missing"


def test_the_markdown_table_has_the_same_cells_in_every_row(improved: Summary) -> None:
    rows = [line for line in markdown_table(improved).splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert any(row.startswith("| finding_f1 ↑ |") for row in rows)
    assert markdown_table(improved).startswith("**60 held-out test studies, rendered X-rays, embedded reward**")


@pytest.fixture
def seen() -> RegionMeasures:
    """One study whose heart was found, and whose lungs were not."""
    boxes = {"cardiac silhouette": Box(0.4, 0.4, 0.7, 0.8), "right lung": Box(0.1, 0.1, 0.4, 0.8)}
    findings = {"cardiac silhouette": frozenset({"cardiomegaly"}), "right lung": frozenset[str]()}
    study = Study("s", "test", (), Report("text"), "rendered_openi", boxes=boxes, region_findings=findings)
    evidence = (
        RegionEvidence("cardiac silhouette", 0.9, (0.4, 0.4, 0.7, 0.8), {"cardiomegaly": 0.8}),
        RegionEvidence("right lung", 0.2, (0.6, 0.1, 0.9, 0.8), {}),
    )
    found = measure_regions({"s": evidence}, [study], [])
    assert found is not None
    return found


def test_a_run_that_ends_with_the_warm_start_has_no_rl_and_no_goal_of_it(
    studies: list[Study], cfg: EvalConfig, seen: RegionMeasures, tmp_path: Path
) -> None:
    sft = evaluation(studies, [study.target for study in studies], cfg)
    summary = summarize(sft, None, evaluation(studies, [NORMAL] * len(studies), cfg), cfg, {"sft": seen})
    write_summary(tmp_path / "summary.json", summary)
    read = json.loads((tmp_path / "summary.json").read_text())
    assert (read["rl"], read["rl_minus_sft"]) == (None, None)
    assert [goal for goal in reached(summary) if goal.startswith("RL")] == []
    for width in (80, 140):
        text = terminal(summary, width)
        assert "RL" not in text
        reward = [cell for line in text.splitlines() if line.split()[:1] == ["reward"] for cell in line.split()[2:]]
        assert len(reward) == 1 + 4, "a column is missing"
    rows = [line for line in markdown_table(summary).splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_regions_are_in_the_file_in_the_terminal_and_among_the_goals(
    studies: list[Study], cfg: EvalConfig, seen: RegionMeasures
) -> None:
    same = evaluation(studies, [study.target for study in studies], cfg)
    summary = summarize(same, same, same, cfg, {"sft": seen, "rl": seen})
    assert summary["regions"]["rl"]["regions"]["cardiac silhouette"]["iou"] == pytest.approx(1)
    assert not reached(summary)["regions: box IoU at least 0.6"]
    text = terminal(summary)
    assert "Regions, warm start" in text
    assert "Regions, RL" in text
    assert "not reached  regions: box IoU at least 0.6: lungs 0.000, heart 1.000, diaphragms -" in text


def test_the_stage_of_the_regions_has_a_summary_without_reports(seen: RegionMeasures) -> None:
    summary = build_regions_summary(seen, {"stage": "regions", "seconds": {"data": 1.0}, "peak_rss_gb": 1.0})
    text = terminal(summary)
    assert "Regions, after stage=regions" in text
    assert "reward" not in text
    assert "data 1 s" in text
