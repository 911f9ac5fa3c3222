"""A run's summary is strict JSON, and says what was not reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs.schema import EvalConfig
from learner.evaluation.measures import Evaluation, evaluate
from learner.summary import Summary, build_summary, markdown_table, print_summary, write_summary
from rrg.data.study import Study
from tests.evaluation.conftest import NORMAL, make_studies, overlap_reward, token_f1_score


def evaluation(studies: list[Study], hypotheses: list[str], cfg: EvalConfig) -> Evaluation:
    return evaluate(studies, hypotheses, token_f1_score, overlap_reward, cfg, seed=0)


def summarize(sft: Evaluation, rl: Evaluation, constant: Evaluation, cfg: EvalConfig) -> Summary:
    return build_summary(
        sft,
        rl,
        {"most_frequent": constant, "best_constant": constant, "nearest_image": sft, "nearest_findings": rl},
        reward_backend="embedded",
        data="rendered_openi",
        seconds={"sft": 61.2, "rl": 120.0},
        peak_rss_gb=3.21,
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
