"""The file of reports: one line a study, whatever happens, and of one policy and its studies alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.checkpoint import Checkpoint
from actors.reportfile import ReportFile
from actors.writer import Written
from configs.schema import DataConfig, ModelConfig, RolloutConfig
from rrg.data.study import Image, Report, Study
from rrg.errors import UserError
from rrg.model.evidence import RegionEvidence

SEEN = tuple(RegionEvidence(name, s, None, {}) for name, s in (("spine", 0.6), ("left lung", 0.9), ("trachea", 0.1)))


def make_study(name: str, path: str = "/x.png", reference: str = "") -> Study:
    return Study(name, "test", (Image(Path(path), "frontal"),), Report(findings=reference), "test")


def make_checkpoint(folder: Path, weights: bytes) -> Checkpoint:
    folder.mkdir()
    (folder / "extractor.safetensors").write_bytes(weights)
    return Checkpoint("run best", folder, DataConfig("files"), ModelConfig(), RolloutConfig(), of_run=False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return make_checkpoint(tmp_path / "policy", b"weights")


STUDIES = {name: make_study(name, reference="clear ." if name == "a" else "") for name in ("a", "b", "c")}


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def opened(path: Path, checkpoint: Checkpoint) -> ReportFile:
    return ReportFile(path, checkpoint, STUDIES)


def test_a_line_has_the_report_its_significant_regions_and_whose_it_is(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with opened(tmp_path / "out.jsonl", checkpoint) as file:
        file.append([Written(STUDIES["a"], "the lungs are clear .", SEEN, cut=True)])
    (row,) = rows(tmp_path / "out.jsonl")
    regions = row.pop("evidence")
    assert isinstance(regions, list)
    assert [one["region"] for one in regions] == ["left lung", "spine"]
    assert row == {
        "id": "a",
        "report": "the lungs are clear .",
        "cut": True,
        "images": [{"path": "/x.png", "view": "frontal"}],
        "reference": "clear .",
        "checkpoint": {"name": "run best", "sha256": checkpoint.sha256},
    }


def test_what_failed_has_no_line_and_can_be_written_later(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with opened(tmp_path / "out.jsonl", checkpoint) as file:
        file.append([Written(STUDIES["a"], failed="no image"), Written(STUDIES["b"], "clear .")])
        assert file.done == {"b"}
    with opened(tmp_path / "out.jsonl", checkpoint) as file:
        assert file.done == {"b"}
        file.append([Written(STUDIES["a"], "normal .")])
        assert file.reports() == {"b": "clear .", "a": "normal ."}


@pytest.mark.parametrize("lost", [1, 40])
def test_a_line_that_a_killed_process_left_unfinished_is_cut_off(
    lost: int, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    out = tmp_path / "out.jsonl"
    with opened(out, checkpoint) as file:
        file.append([Written(STUDIES["a"], "clear ."), Written(STUDIES["b"], "clear .")])
    whole = out.read_bytes()
    out.write_bytes(whole[:-lost])
    with opened(out, checkpoint) as file:
        assert file.done == {"a"}
        file.append([Written(STUDIES["b"], "clear .")])
    assert out.read_bytes() == whole


def test_reports_of_other_weights_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with opened(tmp_path / "out.jsonl", checkpoint) as file:
        file.append([Written(STUDIES["a"], "clear .")])
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(UserError, match="another policy"):
        opened(tmp_path / "out.jsonl", make_checkpoint(tmp_path / "other", b"others"))
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_reports_of_other_studies_or_of_other_images_under_the_same_id_are_refused(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    with opened(tmp_path / "out.jsonl", checkpoint) as file:
        file.append([Written(STUDIES["a"], "clear .")])
    for studies in ({"b": STUDIES["b"]}, {"a": make_study("a", "/y.png")}):
        with pytest.raises(UserError, match=r"a study that is not among these, or has other images \(a\)"):
            ReportFile(tmp_path / "out.jsonl", checkpoint, studies)


def test_two_processes_cannot_write_to_one_file(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with (
        opened(tmp_path / "out.jsonl", checkpoint),
        pytest.raises(UserError, match="another process is writing"),
    ):
        opened(tmp_path / "out.jsonl", checkpoint)


def test_another_files_lines_are_refused_and_left_alone(tmp_path: Path, checkpoint: Checkpoint) -> None:
    out = tmp_path / "out.jsonl"
    for text in ('{"id": "a"}\n', "not json\n", "[]\n", "a line without an end", '{"report": 1}'):
        out.write_text(text)
        with pytest.raises(UserError, match="line 1: not a line of this command's reports"):
            opened(out, checkpoint)
        assert out.read_text() == text
