"""`python -m rrg.data`: what it prints and writes, and its exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from configs.schema import DataConfig
from rrg.data.__main__ import main

Write = Callable[[dict[str, list[Any]]], DataConfig]


def record(**fields: Any) -> dict[str, Any]:
    return {"id": "s1", "report": "The heart is enlarged.", "image_path": "a.png"} | fields


@pytest.fixture
def root(r2gen_root: Write) -> str:
    """A set in order."""
    cfg = r2gen_root({"train": [record(image_path=["a.png", "b.jpg"])], "test": [record(id="s2", report="Clear.")]})
    return str(cfg.root)


def test_check_prints_the_counts_of_a_set_in_order(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--format", "r2gen", "--root", root]) == 0
    printed = capsys.readouterr().out
    assert "train      1 studies, 1 frontal, 1 lateral" in printed
    assert "1-9: 2" in printed
    assert "nothing wrong" in printed
    assert "enlarged" not in printed


def test_check_names_bad_records_with_file_field_and_reason(
    r2gen_root: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cfg = r2gen_root({"train": [record(), record(id="s2", image_path="gone.png"), record()]})
    command = ["check", "--format", "r2gen", "--root", str(cfg.root)]
    assert main([*command, "--json", str(tmp_path / "out" / "check.json")]) == 1
    printed = capsys.readouterr().out
    assert "annotation.json[train][1] (id s2): image_path: gone.png is missing" in printed
    assert "s1: 2 times" in printed
    assert "missing files: 1\n  gone.png" in printed
    written = json.loads((tmp_path / "out" / "check.json").read_text())
    assert written["ok"] is False
    assert written["duplicate_ids"] == {"s1": 2}
    assert written["problems"][0]["field"] == "image_path"


def test_a_corrupt_jpeg_is_found_unless_decoding_is_off(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(root) / "images" / "b.jpg"
    path.write_bytes(path.read_bytes()[:-900])
    assert main(["check", "--format", "r2gen", "--root", root]) == 1
    assert "b.jpg: image can't be read" in capsys.readouterr().out
    assert main(["check", "--format", "r2gen", "--root", root, "--no-decode"]) == 0


def test_a_path_out_of_the_data_set_is_a_bad_record(r2gen_root: Write, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = r2gen_root({"train": [record(), record(id="s2", image_path="../../etc/passwd")]})
    assert main(["check", "--format", "r2gen", "--root", str(cfg.root)]) == 1
    assert "points outside of" in capsys.readouterr().out


def test_strict_stops_at_the_first_bad_record(r2gen_root: Write, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [record(id=f"s{number}", image_path="gone.png") for number in range(3)]
    cfg = r2gen_root({"train": bad})
    assert main(["check", "--format", "r2gen", "--root", str(cfg.root), "--strict"]) == 1
    assert "bad records: 1" in capsys.readouterr().out


def test_only_the_first_problems_are_printed_unless_all_are_wanted(
    r2gen_root: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = r2gen_root({"train": [record(id=f"s{number}", image_path="gone.png") for number in range(30)]})
    command = ["check", "--format", "r2gen", "--root", str(cfg.root)]
    main(command)
    assert "and 10 more" in capsys.readouterr().out
    main([*command, "--all"])
    assert "[train][29]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--format", "r2gen", "--root", "/nowhere"], "/nowhere does not exist"),
        (["check", "--format", "r2gen"], "--root"),
        (["check", "--format", "r2gen", "--root", "/", "--reports", "x"], "mimic_cxr"),
        (["check", "--format", "r2gen", "--root", "/", "--workers", "0"], "--workers"),
        (["sheet", "--findings", "unicorn"], "unicorn"),
        (["check", "--format", "r2gen", "--root", "/", "--json", "/dev/null/out.json"], "/dev/null"),
    ],
)
def test_wrong_use_is_status_2_with_the_way_out(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_read_ends_the_check_with_status_1(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(root) / "annotation.json").write_bytes(b"\xff\xfe")
    assert main(["check", "--format", "r2gen", "--root", root]) == 1
    assert "not UTF-8" in capsys.readouterr().out


def test_contact_sheets_are_drawn_by_check_and_by_sheet(root: str, tmp_path: Path) -> None:
    main(["check", "--format", "r2gen", "--root", root, "--sheet", str(tmp_path / "a.png"), "--columns", "2"])
    main(["sheet", "--format", "r2gen", "--root", root, "--out", str(tmp_path / "b.png"), "--columns", "2"])
    for name in ("a.png", "b.png"):
        assert PILImage.open(tmp_path / name).size == (672, 400)


def test_prepare_fills_the_cache_and_goes_on_where_it_stopped(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "--format", "r2gen", "--root", root, "--cache-dir", str(tmp_path / "c"), "--size", "64"]
    assert main(command) == 0
    assert "2 images stored, 0 were there" in capsys.readouterr().out
    assert main(command) == 0
    assert "0 images stored, 2 were there" in capsys.readouterr().out
    (Path(root) / "images" / "b.jpg").write_bytes(b"no image")
    assert main(command) == 1
    assert "b.jpg" in capsys.readouterr().out


def test_convert_writes_a_set_that_passes_the_check(root: str, tmp_path: Path) -> None:
    out = tmp_path / "converted"
    assert main(["convert", "--format", "r2gen", "--root", root, "--to", "jsonl", "--out", str(out)]) == 0
    assert main(["check", "--format", "jsonl", "--root", str(out)]) == 0
