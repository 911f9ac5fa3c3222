"""`python -m reward_server`: files in and out, messages, exit status, and real processes."""

from __future__ import annotations

import csv
import json
import os
import pty
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reward_server.cli import main
from reward_server.scorer import Scorer
from reward_server.security import ephemeral_security
from tests.reward_server.conftest import RunningServer
from tests.reward_server.scripted import ScriptedServer

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "reward_server"]
LINES = [
    {"id": "s7", "reference": "No pneumothorax.", "hypothesis": "There is no pneumothorax.", "split": "test"},
    {"reference": "", "hypothesis": "Clear lungs."},
    {"id": 9, "reference": "Small left effusion.", "hypothesis": "Large right effusion."},
]
LOCAL = ["--backend", "embedded", "--threads", "1"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)) + "\n\n")
    return path


@pytest.fixture
def expected(scorer: Scorer) -> list[dict[str, Any]]:
    found = scorer.score([(str(line["reference"]), str(line["hypothesis"])) for line in LINES])
    heads = [{"id": "s7", "split": "test"}, {"id": 2}, {"id": 9}]
    return [{**head, **score, "reward": -score["embedded"]} for head, score in zip(heads, found, strict=True)]


def score(path: Path, output: Path | str, *more: str) -> int:
    return main(["score", "--input", str(path), "--output", str(output), *more])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


# --- score ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remote", [False, True])
def test_score_writes_a_row_a_pair_with_its_fields_all_components_and_the_reward(
    pairs: Path, tmp_path: Path, server: RunningServer, expected: list[dict[str, Any]], remote: bool
) -> None:
    output = tmp_path / "scores.jsonl"
    assert score(pairs, output, *(["--address", server.address] if remote else LOCAL)) == 0
    assert rows_of(output) == expected
    assert list(rows_of(output)[0]) == list(expected[0])


def test_the_summary_names_backend_and_hashes_and_has_mean_and_median(
    pairs: Path, tmp_path: Path, scorer: Scorer, expected: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(pairs, tmp_path / "scores.jsonl", *LOCAL) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "3 pairs in " in printed.err
    assert "0 failed" in printed.err
    assert "backend embedded, definition embedded-v1" in printed.err
    assert f"sha256 {scorer.description.models[0].sha256}" in printed.err
    values = [row["reward"] for row in expected]
    numbers = {line.split()[0]: line.split()[1:] for line in printed.err.splitlines() if line.startswith("reward")}
    assert numbers["reward"] == [f"{statistics.fmean(values):.4f}", f"{statistics.median(values):.4f}"]


@pytest.mark.parametrize("remote", [False, True])
def test_a_pair_that_fails_is_a_row_with_its_error_and_the_status_is_1(
    pairs: Path, tmp_path: Path, server: RunningServer, expected: list[dict[str, Any]], remote: bool
) -> None:
    bad = json.dumps({"id": "bad", "reference": "x", "hypothesis": "\ud800", "split": "val"})
    pairs.write_text(bad + "\n" + pairs.read_text())
    output = tmp_path / "scores.jsonl"
    assert score(pairs, output, *(["--address", server.address] if remote else LOCAL)) == 1
    first, *others = rows_of(output)
    assert list(first) == ["id", "split", "error"]
    assert (first["id"], first["split"]) == ("bad", "val")
    assert first["error"]
    assert [row["reward"] for row in others] == [row["reward"] for row in expected]


def test_tables_are_scored_into_csv_by_named_columns(
    tmp_path: Path, server: RunningServer, expected: list[dict[str, Any]]
) -> None:
    table, output = tmp_path / "pairs.csv", tmp_path / "scores.csv"
    with table.open("w", newline="") as target:
        csv.writer(target).writerows(
            [["study", "truth", "made"], *([i, line["reference"], line["hypothesis"]] for i, line in enumerate(LINES))]
        )
    columns = ["--reference-column", "truth", "--hypothesis-column", "made", "--id-column", "study"]
    assert score(table, output, "--address", server.address, *columns) == 0
    with output.open(newline="") as source:
        rows = list(csv.DictReader(source))
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert [float(row["reward"]) for row in rows] == [row["reward"] for row in expected]
    assert {row["error"] for row in rows} == {""}


def test_two_text_files_are_scored_by_line(
    tmp_path: Path, server: RunningServer, expected: list[dict[str, Any]]
) -> None:
    for name in ("reference", "hypothesis"):
        (tmp_path / f"{name}.txt").write_text("\n".join(str(line[name]) for line in LINES))
    texts = ["--references", str(tmp_path / "reference.txt"), "--hypotheses", str(tmp_path / "hypothesis.txt")]
    output = tmp_path / "scores.jsonl"
    assert main(["score", *texts, "--output", str(output), "--address", server.address]) == 0
    assert [(row["id"], row["reward"]) for row in rows_of(output)] == [
        (i, row["reward"]) for i, row in enumerate(expected, 1)
    ]


def test_the_reward_can_be_clipped_or_defined_anew(
    pairs: Path, tmp_path: Path, server: RunningServer, expected: list[dict[str, Any]]
) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert score(pairs, one, "--address", server.address, "--clip", "1.5") == 0
    assert [row["reward"] for row in rows_of(one)] == [-min(1.5, row["embedded"]) for row in expected]
    weights = ["--weight", "bleu2=0.5", "--weight", "graph_f1=-2"]
    assert score(pairs, two, "--address", server.address, *weights) == 0
    assert [row["reward"] for row in rows_of(two)] == [0.5 * row["bleu2"] - 2 * row["graph_f1"] for row in expected]


def test_thousands_of_pairs_come_back_in_order(tmp_path: Path) -> None:
    path, output = tmp_path / "many.jsonl", tmp_path / "scores.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "reference": "r", "hypothesis": "x" * (i % 97)}) + "\n" for i in range(5000))
    )
    with ScriptedServer() as server:
        assert score(path, output, "--address", server.address, "--weight", "value=1") == 0
    assert [(row["id"], row["reward"]) for row in rows_of(output)] == [(i, i % 97) for i in range(5000)]


def test_servers_behind_tls_and_a_token_are_asked_with_files(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = ephemeral_security()
    (tmp_path / "ca.pem").write_bytes(ours.ca or b"")
    (tmp_path / "token").write_text(f"{ours.token}\n")
    tls = ["--tls-ca", str(tmp_path / "ca.pem"), "--tls-server-name", str(ours.server_name)]
    token = ["--token-file", str(tmp_path / "token")]
    with ScriptedServer(security=theirs) as server:
        address = ["--address", server.address, "--weight", "value=1"]
        assert score(pairs, tmp_path / "scores.jsonl", *address, *tls, *token) == 0
        assert [row["reward"] for row in rows_of(tmp_path / "scores.jsonl")] == [25, 12, 21]
        assert score(pairs, tmp_path / "other.jsonl", *address, *tls) == 2
        assert "UNAUTHENTICATED" in capsys.readouterr().err


# --- errors of the user -----------------------------------------------------------------------------------------------


def test_a_bad_line_is_named_and_what_stands_before_it_is_kept(
    pairs: Path, tmp_path: Path, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs.write_text((json.dumps(LINES[0]) + "\n") * 64 + '{"reference": ')
    output = tmp_path / "out.jsonl"
    assert score(pairs, output, *LOCAL) == 2
    errors = capsys.readouterr().err
    assert f"reward_server score: {pairs}, line 65: not JSON" in errors
    assert f"(64 rows are in {output})" in errors
    assert len(rows_of(output)) == 64


def test_a_line_without_its_reports_is_a_row_with_its_error_among_the_others(
    pairs: Path, tmp_path: Path, server: RunningServer
) -> None:
    lines = [LINES[0], {"id": "bad", "reference": "x", "hypothesis": None}, LINES[0]]
    pairs.write_text("\n".join(map(json.dumps, lines)))
    output = tmp_path / "out.jsonl"
    assert score(pairs, output, *LOCAL) == 1
    first, bad, last = rows_of(output)
    assert first == last
    assert bad == {"id": "bad", "error": f"{pairs}, line 2: the field `hypothesis` must be a string, not null"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--output", "o"], "choose the pairs: either --input, or both --references and --hypotheses"),
        (["--input", "PAIRS", "--references", "x", "--output", "o"], "choose the pairs"),
        (["--references", "x", "--output", "o"], "choose the pairs"),
        (["--input", "PAIRS", "--output", "o"], "choose what scores: either --backend"),
        (["--input", "PAIRS", "--output", "o", *LOCAL, "--address", "h:1"], "choose what scores"),
        (["--input", "PAIRS", "--output", "o", *LOCAL, "--idf", "f"], "mean nothing to --backend embedded"),
        (["--input", "PAIRS", "--output", "o", "--address", "127.0.0.1:9", "--weights", "w"], "are for --backend"),
        (["--input", "PAIRS", "--output", "o", "--address", "127.0.0.1:9", "--threads", "2"], "are for --backend"),
        (["--input", "PAIRS", "--output", "o", *LOCAL, "--token-file", "t"], "are for --address"),
        (["--input", "PAIRS", "--output", "o", *LOCAL, "--wait", "3"], "are for --address"),
        (["--input", "none.jsonl", "--output", "o", *LOCAL], "none.jsonl: No such file"),
        (["--input", "PAIRS", "--output", "PAIRS", *LOCAL], "is the input: choose another"),
        (["--input", "PAIRS", "--output", "none/o", *LOCAL], "--output none/o: there is no folder none"),
        (["--input", "PAIRS", "--output", "o.xlsx", *LOCAL], "--output o.xlsx: scores are JSON lines"),
        (["--input", "PAIRS", "--output", "-", "--overwrite", *LOCAL], "--overwrite is for a file"),
        (["--input", os.devnull, "--output", "o", *LOCAL], f"{os.devnull}: no pairs in it"),
        (["--input", "PAIRS", "--output", "o", *LOCAL, "--clip", "-1.5"], "--clip -1.5 would cut every pair"),
        (["--input", "PAIRS", "--output", "o", "--backend", "published"], "needs a folder of weights: --weights DIR"),
        (
            ["--input", "PAIRS", "--output", "o", "--backend", "published", "--weights", "w"],
            "weights folder w does not",
        ),
        (["--input", "PAIRS", "--output", "o", *LOCAL, "--weight", "nothing=1"], "no component `nothing`"),
        (["--input", "PAIRS", "--output", "o", *LOCAL, "--weight", "bleu2=1", "--clip", "3"], "a clip is for"),
        (
            ["--input", "PAIRS", "--output", "o", "--address", "127.0.0.1:9", "--wait", "1"],
            "waited 1 s for 127.0.0.1:9",
        ),
        (["--input", "PAIRS", "--output", "o", "--address", "nohost"], "'nohost' is not an address host:port"),
        (["--input", "PAIRS", "--output", "o", "--address", "127.0.0.1:9", "--tls-ca", "none.pem"], "none.pem"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_status_2(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["score", *(str(pairs) if part == "PAIRS" else part for part in arguments)]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("reward_server score: ")
    assert reason in printed
    assert "\n" not in printed
    assert len(rows_of(pairs)) == 3
    assert list(tmp_path.iterdir()) == [pairs]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["serve", "--backend", "published"], "--backend published needs a folder of weights: --weights DIR"),
        (["serve", "--backend", "reference", "--weights", "none"], "weights fetch --weights none`"),
        (["weights", "check", "--weights", "none"], "the weights folder none does not exist"),
        (["score", "--input", "p", "--output", "none/o", *LOCAL], "there is no folder none"),
        (["score", "--input", "p", "--output", "o", *LOCAL, "--weight", "nothing=1"], "no component `nothing`"),
        (["score", "--input", "p", "--output", "o", *LOCAL, "--clip", "-2"], "--clip -2"),
        (["score", "--input", "p", "--output", "o", *LOCAL], "p: no pairs in it"),
    ],
)
def test_what_is_wrong_is_said_before_anything_heavy_is_loaded(
    tmp_path: Path, arguments: Sequence[str], reason: str
) -> None:
    (tmp_path / "p").touch()
    code = (
        "import sys; from reward_server.cli import main; status = main(sys.argv[1:]);"
        "print(status, {'torch', 'grpc', 'transformers', 'numpy'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "2 set()\n", done.stderr
    assert reason in done.stderr


def test_the_summary_says_how_many_pairs_a_clip_made_the_same(
    pairs: Path, tmp_path: Path, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(pairs, tmp_path / "o", "--address", server.address, "--clip", "-1") == 0
    assert "the clip -1 cut 2 of 3 pairs to the same reward" in capsys.readouterr().err


def test_a_number_of_workers_that_is_none_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    for number in ("four", "1.5"):
        with pytest.raises(SystemExit, match="2"):
            main(["scale", number])
        assert f"'{number}' is not a whole number" in capsys.readouterr().err


@pytest.mark.parametrize("weight", ["bleu2", "bleu2=x", "=1="])
def test_a_weight_that_is_not_a_number_is_refused(weight: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["score", "--input", "x", "--output", "y", "--weight", weight])
    assert "is not COMPONENT=NUMBER" in capsys.readouterr().err


def test_an_output_that_exists_is_kept_unless_it_may_be_overwritten(
    pairs: Path, tmp_path: Path, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores.jsonl"
    output.write_text("precious")
    assert score(pairs, output, "--address", server.address) == 2
    assert f"{output} exists: choose another, or add --overwrite" in capsys.readouterr().err
    assert output.read_text() == "precious"
    assert score(pairs, output, "--address", server.address, "--overwrite") == 0
    assert len(rows_of(output)) == 3


# --- processes --------------------------------------------------------------------------------------------------------


def test_pairs_stream_through_a_pipe(server: RunningServer) -> None:
    line = json.dumps(LINES[0]) + "\n"
    command = [*COMMAND, "score", "--input", "-", "--output", "-", *LOCAL]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(line * 64)
        process.stdin.flush()
        first = [json.loads(process.stdout.readline()) for _ in range(64)]  # before the input ends
        process.stdin.write(line)
        process.stdin.close()
        rest = process.stdout.read().splitlines()
        assert process.wait(30) == 0
    assert [row["id"] for row in first] == ["s7"] * 64
    assert len(rest) == 1


def test_a_terminal_gets_a_bar(pairs: Path, tmp_path: Path, server: RunningServer) -> None:
    controller, terminal = pty.openpty()
    command = [*COMMAND, "score", "--input", str(pairs), "--output", str(tmp_path / "o"), "--address", server.address]
    process = subprocess.Popen(command, cwd=ROOT, stderr=terminal, env={**os.environ, "TERM": "xterm"})
    assert process.wait(60) == 0
    os.close(terminal)
    printed = os.read(controller, 100_000).decode()
    os.close(controller)
    assert "pairs/s, 0 failed" in printed
    assert "\x1b[" in printed
    assert "backend embedded" in printed


def test_a_server_process_serves_describes_and_ends_on_sigterm(
    pairs: Path, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    process = subprocess.Popen([*COMMAND, "serve", *LOCAL, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert "embedded-v1" in ready
        address = next(word for word in ready.replace(",", " ").split() if word.startswith("127.0.0.1:"))
        described = subprocess.run(
            [*COMMAND, "describe", "--address", address],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        about = json.loads(described.stdout)
        assert about["backend"] == "embedded"
        assert len(about["models"][0]["sha256"]) == 64
        assert score(pairs, tmp_path / "scores.jsonl", "--address", address) == 0
        assert rows_of(tmp_path / "scores.jsonl") == expected
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()


def test_a_server_process_with_certificates_token_and_limits_refuses_what_it_should(
    pairs: Path, tmp_path: Path, expected: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = ephemeral_security()
    files = {"ca": ours.ca, "cert": theirs.certificate, "key": theirs.key, "token": str(ours.token).encode()}
    for name, content in files.items():
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_bytes(content or b"")
    tls = ["--tls-cert", str(tmp_path / "cert"), "--tls-key", str(tmp_path / "key")]
    token = ["--token-file", str(tmp_path / "token")]
    limits = ["--max-pairs", "2", "--max-characters", "30", "--max-queue", "100"]
    command = [*COMMAND, "serve", *LOCAL, "--host", "0.0.0.0", "--port", "0", *tls, *token, *limits]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().split(":")[-1].strip()
        reach = ["--address", f"127.0.0.1:{port}", "--tls-ca", str(tmp_path / "ca")]
        reach += ["--tls-server-name", str(ours.server_name), "--wait", "5"]
        pairs.write_text(pairs.read_text() + json.dumps({"reference": "x" * 31, "hypothesis": ""}))
        assert score(pairs, tmp_path / "scores.jsonl", *reach, *token) == 1
        *scores, error = rows_of(tmp_path / "scores.jsonl")
        assert scores == expected
        assert error["error"] == "reference: 31 characters, the limit is 30"
        assert score(pairs, tmp_path / "none.jsonl", *reach) == 2
        assert "UNAUTHENTICATED" in capsys.readouterr().err
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_server_on_a_used_port_says_so_in_one_line(server: RunningServer) -> None:
    command = [*COMMAND, "serve", *LOCAL, "--port", str(server.port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"reward_server serve: can't listen on 127.0.0.1:{server.port}: Address already in use; "
        "choose another --port, or 0 for a free one\n"
    )


def test_a_server_that_others_could_reach_in_the_clear_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *LOCAL, "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "reward_server serve: --host 0.0.0.0: other machines can reach it" in capsys.readouterr().err


def test_help_and_the_client_load_no_heavy_library() -> None:
    code = """
import contextlib, io, sys
from reward_server.cli import main
for arguments in (["--help"], ["serve", "--help"], ["score", "--help"], ["gallery", "--help"], ["weights", "--help"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(arguments)
print({"torch", "grpc", "ray", "transformers", "numpy"} & set(sys.modules))
import reward_server.client, reward_server.aio_client, reward_server.spec
print({"torch", "ray", "transformers", "numpy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["set()", "set()"], done.stderr


@pytest.mark.parametrize("command", ["weights", "scale"])
def test_the_commands_of_other_modules_are_mounted(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"reward_server {command}" in capsys.readouterr().out


def test_the_gallery_is_a_markdown_table(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gallery", "--address", server.address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Backend `embedded`, definition `embedded-v1`.")
    assert lines[2].startswith("| hack | bleu2 |")
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert len(lines) == 17


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", *LOCAL, "--port", port])
    assert "--port" in capsys.readouterr().err


def test_a_ray_cluster_that_is_not_there_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "2", "--ray-address", "127.0.0.1:9"]) == 2
    assert "no Ray cluster answers at 127.0.0.1:9" in capsys.readouterr().err
