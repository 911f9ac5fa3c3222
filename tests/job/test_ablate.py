"""The ablations as a person runs them: two arms, small; and nothing is run twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_arms_end_with_a_table_and_a_second_call_runs_nothing(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "ablation"
    command = [sys.executable, "-m", "learner.ablate", "--out", str(out), "--arms", "full,regions", "+exp=smoke"]
    env = os.environ | {"LMRRG_CACHE": str(cache)}
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=900, check=False)
    logs = "".join(path.read_text()[-2000:] for path in out.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert "regions: " in done.stdout
    table = json.loads((out / "table.json").read_text())
    assert table["studies"] == 24
    assert table["failed"] == []
    full, without = table["arms"]["full"], table["arms"]["regions"]
    assert full["iou"] > 0
    assert without["iou"] is None
    for name, run in {"full": "full-seed0", "regions": "regions-seed0"}.items():
        summary = json.loads((out / run / "summary.json").read_text())
        assert summary["stage"] == "warm_start"
        assert summary["rl"] is None
        assert table["arms"][name]["reward"][0] == pytest.approx(summary["sft"]["reward"])
        assert table["arms"][name]["shuffle_gap"] == pytest.approx(summary["sft"]["shuffle_gap"], abs=0.05)
    written = (out / "table.md").read_text()
    again = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=120, check=False)
    assert again.returncode == 0
    assert again.stdout.count("finished before") == 2
    assert (out / "table.md").read_text() == written
