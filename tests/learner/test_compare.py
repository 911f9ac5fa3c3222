"""Runs side by side: what differs in their configs, paired tests on shared studies, and one page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from learner.compare import main
from learner.evaluation.bootstrap import difference, draw_resamples, draw_swaps, mean, permutation_p
from learner.report.comparison import bring_together, config_table, paired_tables, run_names
from learner.report.data import RunRecord, read_run
from learner.report.tables import RESAMPLES
from tests.evaluation.conftest import NORMAL
from tests.learner.browser import fits, opened
from tests.learner.conftest import STUDIES, MakeRun


@pytest.fixture
def runs(make_run: MakeRun, good: list[str]) -> list[Path]:
    return [make_run("dull", [NORMAL] * STUDIES), make_run("bright", good, lr=5e-4)]


def records_of(runs: list[Path]) -> dict[str, RunRecord]:
    return run_names([read_run(run) for run in runs])


def test_the_difference_and_p_are_those_of_the_paired_tests(runs: list[Path]) -> None:
    records = records_of(runs)
    ((caption, table),) = paired_tables(bring_together(records, None))
    assert caption == f"bright against dull, {STUDIES} studies"
    dull, bright = (record.last for record in records.values())
    assert dull is not None
    assert bright is not None
    first, second = mean(bright.per_study["reward"]), mean(dull.per_study["reward"])
    over = difference(first, second, draw_resamples(STUDIES, RESAMPLES, 0))
    p = permutation_p(first, second, draw_swaps(STUDIES, RESAMPLES, 0))
    cells = dict(table.rows)["reward ↑"]
    assert [cell.value for cell in cells] == [
        f"{second.value:.3f}", f"{first.value:.3f}", f"{over.value:+.3f}", f"{p:.4f}",
    ]  # fmt: skip
    assert cells[2].spread == f"{over.low:+.3f} to {over.high:+.3f}"


def test_a_run_does_not_differ_from_its_equal(make_run: MakeRun, good: list[str]) -> None:
    records = records_of([make_run("one", good), make_run("two", good)])
    ((_, table),) = paired_tables(bring_together(records, None))
    for _, (_, _, gain, p) in table.rows:
        assert (gain.value, gain.verdict, p.value) == ("0.000", 0, "1.0000")
    assert not config_table(records).rows


def test_only_fields_that_differ_are_listed_and_not_the_folder(runs: list[Path]) -> None:
    table = config_table(records_of(runs))
    assert [(name, [cell.value for cell in cells]) for name, cells in table.rows] == [
        ("learner.rl.lr", ["0.0001", "0.0005"])
    ]


def test_the_studies_that_all_runs_have_are_compared_in_one_order(runs: list[Path]) -> None:
    for name in ("samples_rl.jsonl", "per_study_rl.csv"):
        lines = (runs[1] / name).read_text().splitlines()
        head = lines[:1] if name.endswith(".csv") else []
        body = lines[len(head) :]
        (runs[1] / name).write_text("\n".join([*head, *reversed(body[:20])]) + "\n")
    compared = bring_together(records_of(runs), None)
    dull, bright = compared.policies.values()
    assert [row.id for row in dull.rows] == [row.id for row in bright.rows]
    assert len(dull.rows) == 20
    assert "shuffle_gap" in compared.left_out
    assert np.isclose(dict(zip([row.id for row in bright.rows], bright.per_study["reward"], strict=True))["test001"], 1)


def test_rewards_that_are_computed_otherwise_are_not_compared(runs: list[Path]) -> None:
    config = (runs[1] / "config.yaml").read_text()
    (runs[1] / "config.yaml").write_text(config.replace("graph_f1: 1.0", "graph_f1: 2.0"))
    compared = bring_together(records_of(runs), None)
    ((_, table),) = paired_tables(compared)
    names = [name.split()[0] for name, _ in table.rows]
    assert "reward" not in names
    assert "graph_f1" in names
    assert any("computed otherwise" in note for note in compared.notes)


def test_components_of_other_models_are_not_compared(runs: list[Path]) -> None:
    config = OmegaConf.load(runs[1] / "config.yaml")
    config.reward.radgraph = "radgraph-xl"
    OmegaConf.save(config, runs[1] / "config.yaml")
    compared = bring_together(records_of(runs), None)
    ((_, table),) = paired_tables(compared)
    assert {"reward", "graph_f1"}.isdisjoint(name.split()[0] for name, _ in table.rows)
    assert any("their models differ" in note for note in compared.notes)


def test_the_command_prints_the_table_and_writes_a_page_without_report_text(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compare.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "learner.rl.lr" in printed
    assert "bright against dull" in printed
    reference = json.loads((runs[0] / "samples_rl.jsonl").read_text().splitlines()[0])["reference"]
    assert reference not in out.read_text()
    with opened(out, width=390) as page:
        assert fits(page)
        chart = page.locator("figure.chart").filter(has_text="reward of the samples")
        assert chart.locator("svg[role=img] g.line").count() == 2
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, runs: list[Path]) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    runs[1].rename(other / "dull")
    names = list(records_of([runs[0], other / "dull"]))
    assert names == [f"{tmp_path.name}/dull", "elsewhere/dull"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("one", "name two runs or more"),
        ("twice", "named twice"),
        ("reference", "another reference"),
        ("ids", "share 0 test studies"),
        ("per_study", "per_study_rl.csv is missing"),
        ("out", "must end in .html"),
        ("policy", "samples_sft.jsonl"),
    ],
)
def test_runs_that_cannot_be_compared_are_told_of_in_one_line(
    runs: list[Path], change: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(run) for run in runs]
    samples, per_study = runs[1] / "samples_rl.jsonl", runs[1] / "per_study_rl.csv"
    if change == "one":
        arguments = arguments[:1]
    elif change == "twice":
        arguments = [arguments[0]] * 2
    elif change == "reference":
        samples.write_text(samples.read_text().replace("scoliosis", "kyphosis"))
    elif change == "ids":
        samples.write_text(samples.read_text().replace('"id": "test', '"id": "tset'))
        per_study.write_text(per_study.read_text().replace("\ntest", "\ntset"))
    elif change == "per_study":
        per_study.unlink()
    elif change == "policy":
        (runs[1] / "samples_sft.jsonl").unlink()
        arguments += ["--policy", "sft"]
    else:
        arguments += ["--out", "page.pdf"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1
