"""Ablations on prepared run directories: which part helped, what was run, and what is not run again."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema import EvalConfig
from learner import ablate
from learner.evaluation.ablation import cells, markdown, notes, read_arm, report
from learner.evaluation.measures import evaluate, study_table
from rrg.data.study import Study
from tests.evaluation.conftest import NORMAL, make_studies, overlap_reward, token_f1_score

Prepare = Callable[[str, Sequence[str]], Path]


@pytest.fixture
def prepare(tmp_path: Path, studies: list[Study], cfg: EvalConfig) -> Prepare:
    """Writes what a run with these reports leaves behind."""

    def write(name: str, hypotheses: Sequence[str], of: Sequence[Study] = studies) -> Path:
        folder = tmp_path / "out" / name
        folder.mkdir(parents=True)
        found = evaluate(of, hypotheses, token_f1_score, overlap_reward, cfg, seed=0)
        regions = None if name.startswith("regions") else {"groups": {"all": {"iou": 0.7, "auroc": 0.9}}}
        (folder / "summary.json").write_text(json.dumps({"regions": {"sft": regions}}))
        rows = [{"id": s.id, "reference": s.target, "hypothesis": text} for s, text in zip(of, hypotheses, strict=True)]
        (folder / "samples_sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        header, table = study_table(found)
        with (folder / "per_study_sft.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *table])
        return folder

    return write


@pytest.fixture
def right(studies: list[Study]) -> list[str]:
    return [study.target for study in studies]


@pytest.fixture
def blind(studies: list[Study]) -> list[str]:
    return [NORMAL] * len(studies)


def test_the_numbers_are_those_of_the_evaluation(
    prepare: Prepare, studies: list[Study], right: list[str], cfg: EvalConfig
) -> None:
    half = [text if index % 3 else NORMAL for index, text in enumerate(right)]
    expected = evaluate(studies, half, token_f1_score, overlap_reward, cfg, seed=0).metrics
    found = report({"full": read_arm([prepare("full", half)])}, [], cfg.bootstrap, seed=0)["arms"]["full"]
    for name in ("reward", "finding_precision", "finding_recall", "finding_f1", "bleu4"):
        assert found[name][0] == pytest.approx(expected[name])
    assert found["shuffle_gap"] == pytest.approx(expected["shuffle_gap"])
    assert (found["unique"], found["iou"], found["auroc"]) == (expected["unique"], 0.7, 0.9)


def test_a_part_helped_where_it_is_worse_without_it_and_hurt_where_it_is_better(
    prepare: Prepare, right: list[str], blind: list[str], cfg: EvalConfig
) -> None:
    half = [text if index % 4 == 1 else NORMAL for index, text in enumerate(right)]
    arms = {
        "full": read_arm([prepare("full", half)]),
        "gate": read_arm([prepare("gate", blind)]),
        "global": read_arm([prepare("global", right)]),
        "regions": read_arm([prepare("regions", half)]),
    }
    made = report(arms, ["captioning-seed0"], cfg.bootstrap, seed=0)
    gate, better, same = (made["sentences"][name] for name in ("gate", "global", "regions"))
    assert gate.startswith("gate: it helped (reward and finding F1 and shuffle gap lower without it)")
    assert better.startswith("global: it hurt (reward and finding F1 and shuffle gap higher without it)")
    assert same.startswith("regions: no effect of it was shown")
    assert made["minus_full"]["regions"]["reward"] == [0.0, 0.0, 0.0]
    assert made["arms"]["regions"]["iou"] is None
    assert "full" not in made["minus_full"]
    header, rows = cells(made)
    assert {len(row) for row in rows} == {len(header)}
    assert [row[0] for row in rows] == ["full", "gate", "  - full", "global", "  - full", "regions", "  - full"]
    assert "failed: captioning-seed0 (left out)" in notes(made)
    assert "over studies" in notes(made)[-2]
    assert len({line.count("|") for line in markdown(made).splitlines() if line.startswith("|")}) == 1
    json.dumps(made, allow_nan=False)


@pytest.mark.parametrize(
    ("studies", "reports", "reason"),
    [
        (make_studies(60), (NORMAL, "The heart is enlarged."), "both write one report for all studies"),
        (make_studies(49), (None, NORMAL), "49 test studies are too few, 50 are needed"),
    ],
)
def test_a_part_is_not_judged_by_arms_that_see_nothing_or_by_too_few_studies(
    prepare: Prepare, cfg: EvalConfig, studies: list[Study], reports: tuple[str | None, str | None], reason: str
) -> None:
    full, gate = (
        read_arm([prepare(name, [text or study.target for study in studies])])
        for name, text in zip(("full", "gate"), reports, strict=True)
    )
    made = report({"full": full, "gate": gate}, [], cfg.bootstrap, seed=0)
    assert made["minus_full"]["gate"]["reward"][2] < 0
    assert made["sentences"]["gate"].startswith(f"gate: no verdict: {reason}. Without it, against the full model: ")


def test_seeds_are_pooled_by_study(prepare: Prepare, right: list[str], blind: list[str], cfg: EvalConfig) -> None:
    one, two = prepare("full-seed0", right), prepare("full-seed1", blind)
    both = report({"full": read_arm([one, two])}, [], cfg.bootstrap, seed=0)
    alone = [report({"full": read_arm([run])}, [], cfg.bootstrap, seed=0)["arms"]["full"] for run in (one, two)]
    assert both["seeds"] == 2
    assert both["arms"]["full"]["reward"][0] == pytest.approx(sum(arm["reward"][0] for arm in alone) / 2)
    assert both["arms"]["full"]["unique"] == sum(arm["unique"] for arm in alone) / 2
    assert "2 seeds" in notes(both)[0]


def test_arms_of_other_studies_are_not_compared(prepare: Prepare, right: list[str], tmp_path: Path) -> None:
    first = prepare("full", right)
    others = [replace(study, id=f"other {study.id}") for study in make_studies(60)]
    second = prepare("gate", right, others)  # type: ignore[call-arg]
    arms = {"full": read_arm([first]), "gate": read_arm([second])}
    with pytest.raises(ablate.UserError, match="not of the same test studies"):
        report(arms, [], 100, seed=0)
    with pytest.raises(ablate.UserError, match="other test studies"):
        read_arm([first, second])


def test_runs_that_are_finished_are_not_run_again_and_the_tables_are_written(
    prepare: Prepare, right: list[str], blind: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare("full-seed3", right)
    prepare("gate-seed3", blind)
    out = tmp_path / "out"
    assert ablate.main(["--out", str(out), "--arms", "full,gate", "--seeds", "3", "--bootstrap", "100"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("finished before") == 2
    assert "gate: it helped" in shown
    assert json.loads((out / "table.json").read_text())["minus_full"]["gate"]["reward"][0] < 0
    assert "| gate |" in (out / "table.md").read_text()


def test_an_arm_that_fails_is_told_and_the_others_go_on(
    prepare: Prepare, right: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare("full-seed0", right)
    out = tmp_path / "out"
    wrong = "learner.sft.no_such_field=1"
    assert ablate.main(["--out", str(out), "--arms", "gate,full", wrong]) == 1
    shown = capsys.readouterr().out
    assert "gate-seed0: failed with status" in shown
    assert "no_such_field" in (out / "gate-seed0.log").read_text()
    assert "failed: gate-seed0 (left out)" in shown
    assert json.loads((out / "table.json").read_text())["failed"] == ["gate-seed0"]


def test_an_arm_changes_its_own_field_and_a_run_that_was_begun_goes_on(tmp_path: Path) -> None:
    (run,) = ablate.plan(tmp_path, ["global"], [2], ["+exp=smoke"])
    command = run.command(["+exp=smoke"])
    assert command[:4] == [sys.executable, "-m", "learner.main", "+exp=smoke"]
    assert command[4:] == ["model.global_tokens=0", "stage=warm_start", "seed=2", f"output_dir={run.folder}"]
    run.folder.mkdir()
    (run.folder / "config.yaml").touch()
    assert run.command(["+exp=smoke"])[3:] == [f"resume={run.folder}"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arms", "llm"], "choose among full, regions, gate, captioning, global"),
        (["--seeds", "one"], "must be whole numbers"),
        (["seed=3"], "sets seed itself"),
        (["model.gate=off"], "sets model.gate itself"),
    ],
)
def test_mistakes_end_with_status_2(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate.main(["--out", str(tmp_path), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_runs_with_other_overrides_are_not_mixed(tmp_path: Path) -> None:
    ablate.plan(tmp_path, ["full"], [0], ["+exp=smoke"])
    with pytest.raises(ablate.UserError, match="other overrides"):
        ablate.plan(tmp_path, ["full"], [0], ["+exp=demo"])
