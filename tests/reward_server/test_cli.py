"""`python -m reward_server`: files in and out, messages, and a real server process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reward_server.cli import main
from reward_server.scorer import Scorer
from tests.reward_server.conftest import RunningServer

ROOT = Path(__file__).parents[2]
LINES = [
    {"id": 7, "reference": "No pneumothorax.", "hypothesis": "There is no pneumothorax."},
    {"reference": "", "hypothesis": "Clear lungs."},
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)) + "\n\n")
    return path


@pytest.mark.parametrize("remote", [False, True])
def test_score_writes_a_line_a_pair_and_keeps_the_other_fields_but_no_text(
    pairs: Path, tmp_path: Path, scorer: Scorer, server: RunningServer, remote: bool
) -> None:
    output = tmp_path / "scores.jsonl"
    address = ["--address", server.address] if remote else []
    assert main(["score", "--input", str(pairs), "--output", str(output), *address]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    expected = scorer.score([(line["reference"], line["hypothesis"]) for line in LINES])  # type: ignore[misc]
    assert rows == [{"id": 7, "components": expected[0]}, {"components": expected[1]}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{bad", "line 4: not JSON"),
        ("[1]", "line 4: must be an object"),
        ('{"reference": "x"}', "line 4: the field `hypothesis` must be a string"),
        ('{"reference": 1, "hypothesis": "x"}', "line 4: the field `reference`"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, reason: str
) -> None:
    pairs.write_text(pairs.read_text() + line + "\n")
    assert main(["score", "--input", str(pairs), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert f"{pairs}, {reason}" in capsys.readouterr().err


def test_a_missing_file_and_a_dead_server_are_named(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out.jsonl")
    assert main(["score", "--input", str(tmp_path / "none.jsonl"), "--output", output]) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err
    dead = ["--address", "127.0.0.1:9", "--timeout", "1"]
    assert main(["score", "--input", str(pairs), "--output", output, *dead]) == 2
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_a_server_process_serves_describes_and_ends_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reward_server"]
    process = subprocess.Popen([*command, "serve", "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("serving the embedded reward (embedded-v1) on 127.0.0.1:")
        address = ready.split()[-1]
        described = subprocess.run(
            [*command, "describe", "--address", address],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert json.loads(described.stdout)["backend"] == "embedded"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()


def test_the_client_loads_no_model_library() -> None:
    code = "import sys, reward_server.client, reward_server.spec; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "set()"
