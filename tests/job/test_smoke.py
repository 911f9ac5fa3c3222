"""The whole job as a person runs it: `python -m learner.main +exp=smoke`, twice, killed, told to end, and resumed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rrg.model.evidence import read_evidence_file

ROOT = Path(__file__).parents[2]
RUN_S = 420
# Measures of time differ between equal runs; everything else must not.
TIMES = ("seconds", "idle_", "samples_per_second")
PHASES = ("warm_start", "rl", "validation", "evaluation")


def start(cache: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "learner.main", *arguments]
    env = os.environ | {"LMRRG_CACHE": str(cache)}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=RUN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"the run did not end within {RUN_S} s: {process.communicate()[0][-3000:]}")
    assert process.returncode == status, output[-3000:]
    return output


def kill(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """kill -9 of the driver alone. All that it has started ends by itself, but for Ray's agents, which are given back:
    they ask its dead store for a minute."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    _, left = psutil.wait_procs(started, timeout=30)
    assert len(left) <= len(("ray::DashboardAgent", "ray::RuntimeEnvAgent")), left
    return left


def wait_for_rows(process: subprocess.Popen[str], run_dir: Path, phase: str, number: int) -> None:
    deadline = time.monotonic() + RUN_S
    while not ((run_dir / "metrics.jsonl").exists() and len(rows(run_dir, phase)) >= number):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline, f"waited for step {number} of {phase}"
        time.sleep(0.2)


def rows(run_dir: Path, phase: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, lines) if row["phase"] == phase]
    return [{k: v for k, v in row.items() if not (k.startswith(TIMES) or k.endswith("_s"))} for row in found]


@pytest.fixture(scope="module")
def first(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run_dir = tmp_path_factory.mktemp("first")
    return run_dir, finish(start(cache, "+exp=smoke", f"output_dir={run_dir}"))


def test_the_job_ends_with_a_table_and_a_summary(first: tuple[Path, str]) -> None:
    run_dir, output = first
    page = (run_dir / "report.html").read_text()
    assert "The run came to its end" in page
    assert page.count("<article ") == page.count('src="data:image/jpeg') == 24
    assert not (run_dir / "report_failed.txt").exists()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["reward_backend"] == "embedded"
    wanted = {"reward", "reward_abnormal", "embedded", "bertscore", "bleu4", "rougeL", "finding_f1", "unique"}
    for metrics in (summary["sft"], summary["rl"], *summary["controls"].values()):
        assert wanted <= set(metrics)
        gap, low, high = metrics["shuffle_gap"]
        assert low <= gap <= high
    assert set(summary["rl_minus_sft"]) >= {"reward", "finding_f1", "shuffle_gap"}
    assert 0.5 < summary["peak_rss_gb"] < 10
    assert "rendered" in output
    assert "embedded" in output
    assert str(run_dir) in output.replace("\n", "")


def test_no_report_text_is_shown_or_logged(first: tuple[Path, str]) -> None:
    run_dir, output = first
    samples = [json.loads(line) for line in (run_dir / "samples_rl.jsonl").read_text().splitlines()]
    logs = [path.read_text(errors="ignore") for path in run_dir.rglob("*.log")]
    evidence = read_evidence_file(run_dir / "evidence_rl.jsonl")
    sentences = {one.sentence for regions in evidence.values() for one in regions if one.sentence}
    tables = [path.read_text() for path in run_dir.glob("per_study_*.csv")]
    assert len(tables) == 2
    samples += [json.loads(line) for path in (run_dir / "samples").iterdir() for line in path.read_text().splitlines()]
    for text in (output, *logs, *tables, (run_dir / "metrics.jsonl").read_text()):
        assert not any(row["reference"] in text for row in samples)
        assert not any(sentence in text for sentence in sentences if len(sentence.split()) > 4)


def test_every_report_has_its_evidence_and_every_measure_of_regions_its_place(first: tuple[Path, str]) -> None:
    run_dir, output = first
    summary = json.loads((run_dir / "summary.json").read_text())
    for name in ("sft", "rl"):
        ids = [json.loads(line)["id"] for line in (run_dir / f"samples_{name}.jsonl").read_text().splitlines()]
        evidence = read_evidence_file(run_dir / f"evidence_{name}.jsonl")
        assert list(evidence) == ids
        assert all(len(regions) == 29 and all(one.box for one in regions) for regions in evidence.values())
        measures = summary["regions"][name]
        assert measures["truth"] == {"boxes": "rendered", "labels": "rendered"}
        assert all(0 <= one["iou"] <= 1 and 0 < one["iou_mean_box"] < 1 for one in measures["regions"].values())
    assert output.count("mean of 29 regions") == 2


def test_the_stage_of_the_regions_ends_with_their_table_and_writes_no_report(
    cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("regions")
    output = finish(start(cache, "+exp=smoke", "stage=regions", f"output_dir={run_dir}"))
    assert "Regions, after stage=regions" in output
    assert not list(run_dir.glob("samples_*"))
    evidence = read_evidence_file(run_dir / "evidence_regions.jsonl")
    assert len(evidence) == 24
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["stage"], "sft" in summary) == ("regions", False)
    assert summary["regions"]["regions"]["groups"]["lungs"]["iou"] > 0
    assert {row["stage"] for row in rows(run_dir, "warm_start")} == {0.0}


def test_every_step_is_recorded_with_finite_numbers(first: tuple[Path, str]) -> None:
    run_dir, _ = first
    recorded = rows(run_dir, "rl")
    assert [row["step"] for row in recorded] == [1, 2, 3, 4]
    validated = rows(run_dir, "validation")
    assert [row["step"] for row in validated] == [0, 2, 4]
    for row in [*recorded, *validated]:
        assert all(math.isfinite(value) for key, value in row.items() if key != "phase")


def test_rollout_and_learner_log_probs_agree(first: tuple[Path, str]) -> None:
    run_dir, _ = first
    assert max(row["logprob_gap_max"] for row in rows(run_dir, "rl")) < 1e-4


def test_the_evaluation_of_a_checkpoint_writes_and_measures_the_reports_of_the_run(
    first: tuple[Path, str], cache: Path, tmp_path: Path
) -> None:
    run_dir, _ = first
    out, numbers = tmp_path / "reports.jsonl", tmp_path / "out.json"
    command = [sys.executable, "-m", "learner.evaluate", "--run", str(run_dir), "--out", str(out), "--no-meteor"]
    env = os.environ | {"LMRRG_CACHE": str(cache)}
    done = subprocess.run([*command, "--json", str(numbers)], cwd=ROOT, env=env, capture_output=True, timeout=RUN_S)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert out.read_text() == (run_dir / "samples_rl.jsonl").read_text()
    shown = read_evidence_file(tmp_path / "reports.jsonl.evidence.jsonl")
    assert shown.keys() == read_evidence_file(run_dir / "evidence_rl.jsonl").keys()
    metrics = json.loads((run_dir / "summary.json").read_text())["rl"]
    assert f"{metrics['reward']:.4f}" in done.stdout.decode()
    assert json.loads(numbers.read_text())


def test_the_same_seed_gives_the_same_run_bit_for_bit(
    first: tuple[Path, str], cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("second")
    finish(start(cache, "+exp=smoke", f"output_dir={run_dir}"))
    for phase in PHASES:
        assert rows(run_dir, phase) == rows(first[0], phase)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_numbers_bit_for_bit(
    first: tuple[Path, str], cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("killed")
    process = start(cache, "+exp=smoke", f"output_dir={run_dir}")
    wait_for_rows(process, run_dir, "rl", 3)
    kill(process)
    output = finish(start(cache, f"resume={run_dir}"))
    assert "resumed from" in output
    for phase in PHASES:
        assert rows(run_dir, phase) == rows(first[0], phase)


@pytest.mark.slow
def test_a_run_of_no_rl_step_has_no_rl_until_it_is_gone_on_with(cache: Path, tmp_path: Path) -> None:
    output = finish(start(cache, "+exp=smoke", "learner.rl.steps=0", f"output_dir={tmp_path}"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["rl"], summary["rl_minus_sft"], list(summary["regions"])) == (None, None, ["sft"])
    assert not [goal for goal in summary["goals"] if goal["goal"].startswith("RL")]
    assert "Regions, RL" not in output
    assert "new API stack" not in output
    output = finish(start(cache, f"resume={tmp_path}", "learner.rl.steps=1"))
    assert "warm start: it was done before" in output
    assert json.loads((tmp_path / "summary.json").read_text())["rl"] is not None
    output = finish(start(cache, f"resume={tmp_path}"))
    assert "RL steps: all 1 were done before" in output


@pytest.mark.slow
def test_a_run_that_is_told_to_end_saves_what_it_has_within_a_minute_and_resumes_to_the_same_numbers(
    first: tuple[Path, str], cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("told")
    process = start(cache, "+exp=smoke", f"output_dir={run_dir}")
    for phase, signum in (("warm_start", signal.SIGTERM), ("rl", signal.SIGINT)):
        wait_for_rows(process, run_dir, phase, 1)
        if signum == signal.SIGINT:
            os.killpg(process.pid, signum)  # Ctrl-C goes to all that the terminal has
        else:
            process.send_signal(signum)
        told = time.monotonic()
        output = finish(process, status=128 + signum)
        assert time.monotonic() - told < 60
        assert "finished and saved" in output
        assert f"; go on with: python -m learner.main resume={run_dir}" in output
        assert "Traceback" not in output
        process = start(cache, f"resume={run_dir}")
    output = finish(process)
    assert "resumed from" in output
    for phase in PHASES:
        assert rows(run_dir, phase) == rows(first[0], phase)


def test_rl_without_a_warm_start_begins_at_given_weights_and_stops_itself_with_the_reason(
    first: tuple[Path, str], cache: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(
        cache, "+exp=smoke", f"start={first[0]}", "learner.sft.regions_epochs=0", "learner.sft.epochs=0",
        "learner.rl.stop.max_kl=1e-12", "reward.relative_to_constant=true", "learner.rl.advantage=reinforce_pp",
        f"output_dir={run_dir}",
    )  # fmt: skip
    output = finish(process, status=3)
    assert "error: stopped after 1 RL steps: kl_k3" in output
    assert (run_dir / "samples_sft.jsonl").read_text() == (first[0] / "samples_sft.jsonl").read_text()
    assert not rows(run_dir, "warm_start")
    stopped = json.loads((run_dir / "stopped.json").read_text())
    assert stopped["step"] == 1
    assert "max_kl" in stopped["reason"]
    assert (Path(stopped["checkpoint"]) / "state.json").is_file()
    offsets = json.loads((run_dir / "reward_offsets.json").read_text())
    assert len(offsets) == 96
    # Of the same reports as in the first run, each with its study's offset taken off.
    (own, *_), (theirs, *_) = rows(run_dir, "rl"), rows(first[0], "rl")
    assert own["length_mean"] == theirs["length_mean"]
    assert min(offsets.values()) <= theirs["reward_mean"] - own["reward_mean"] <= max(offsets.values())
