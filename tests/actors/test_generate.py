"""Reports of any X-rays by a saved policy, with a real engine: the writer, and the command around it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from actors.checkpoint import Checkpoint, find_checkpoint
from actors.generate import main
from actors.writer import ReportWriter, image_store
from configs.schema import BackboneConfig, Config
from rrg.data import StudySet
from rrg.data.imagefiles import study_of_files
from rrg.errors import UserError
from rrg.model.build import load_policy, save_policy
from rrg.model.evidence import SIGNIFICANT
from tests.actors.conftest import make_policy, make_run
from tests.data.test_dicom import write

TEST_STUDIES = 130  # more than two batches of the writer


@pytest.fixture(scope="module")
def run_dir(run_config: Config, studies: StudySet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a warm start and two RL checkpoints, the best one not the latest, all of the same random policy."""
    data = dataclasses.replace(run_config.data, limit_test=4)
    run = make_run(tmp_path_factory.mktemp("runs") / "run", dataclasses.replace(run_config, data=data), studies)
    for name in ("step_1_000004", "step_1_000008"):
        shutil.copytree(run / "warm_start", run / "checkpoints" / name / "policy")
    (run / "checkpoints" / "best").write_text("step_1_000004\n")
    (run / "checkpoints" / "latest").write_text("step_1_000008\n")
    return run


@pytest.fixture(scope="session")
def _open_writers() -> Iterator[list[ReportWriter]]:
    """Closed at the end of the session, as all engines of this process (see `build_engine`)."""
    opened: list[ReportWriter] = []
    yield opened
    for writer in opened:
        writer.close()


@pytest.fixture(scope="module")
def writer(run_dir: Path, _open_writers: list[ReportWriter]) -> ReportWriter:
    _open_writers.append(ReportWriter(find_checkpoint(run_dir), "cpu"))
    return _open_writers[-1]


@pytest.fixture
def _one_engine(writer: ReportWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in this process uses the writer of this process: a second engine, closed, would take its groups."""

    def shared(checkpoint: Checkpoint, device: str | None) -> nullcontext[ReportWriter]:
        assert device is None
        assert checkpoint == writer.checkpoint
        return nullcontext(writer)

    monkeypatch.setattr("actors.generate.ReportWriter", shared)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "actors.generate", *map(str, arguments)]


def ran(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# The writer.


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.dcm"])
def test_every_kind_of_image_gets_a_report_with_what_was_seen_in_every_region(
    name: str, writer: ReportWriter, xrays: Path
) -> None:
    written = writer.write(study_of_files([xrays / name], name))
    assert written.report
    assert len(written.evidence) == 29
    assert all(one.box is not None for one in written.evidence)
    assert any(one.sentence for one in written.evidence if one.significance >= SIGNIFICANT)


def test_a_dicom_file_gets_the_report_of_the_same_picture_as_png(writer: ReportWriter, xrays: Path) -> None:
    png, dicom, other = (writer.write(study_of_files([xrays / name], name)) for name in ("a.png", "c.dcm", "d.png"))
    assert png.report == dicom.report
    assert png.evidence == dicom.evidence
    assert png.report != other.report


def test_reports_come_in_order_and_do_not_depend_on_the_studies_beside_them(writer: ReportWriter, xrays: Path) -> None:
    alone = {name: writer.write(study_of_files([xrays / name], name)) for name in ("a.png", "d.png")}
    many = [study_of_files([xrays / name], f"{index}") for index in range(40) for name in ("a.png", "d.png")]
    written = list(writer.write_all(many))
    assert [one.study.id for one in written] == [study.id for study in many]
    for one in written:
        expected = alone[one.study.images[0].path.name]
        assert (one.report, one.evidence, one.cut) == (expected.report, expected.evidence, expected.cut)


def test_the_indication_is_read_where_the_policys_prompt_has_one(writer: ReportWriter, xrays: Path) -> None:
    without, told = (
        writer.write(study_of_files([xrays / "a.png"], "a", indication=text)) for text in ("", "pain in the chest")
    )
    assert without.report != told.report
    assert without.evidence == told.evidence  # the extractor sees the image alone


def test_a_report_that_is_not_at_its_end_says_so(writer: ReportWriter, xrays: Path) -> None:
    written = [writer.write(study_of_files([xrays / name], name)) for name in ("a.png", "d.png")]
    assert any(one.cut for one in written)  # a random policy seldom ends a report


def test_a_study_that_cannot_be_written_is_named_and_the_others_are_written(
    writer: ReportWriter, xrays: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes((xrays / "a.png").read_bytes()[:300])
    gone = study_of_files([shutil.copy(xrays / "a.png", tmp_path / "gone.png")], "gone")
    (tmp_path / "gone.png").unlink()
    written = list(
        writer.write_all(
            [
                study_of_files([tmp_path / "broken.png"], "broken"),
                study_of_files([xrays / "a.png"], "fine"),
                study_of_files([write(tmp_path / "report.dcm", None)], "no pixels"),
                gone,
            ]
        )
    )
    assert [one.failed is None for one in written] == [False, True, False, False]
    assert "broken.png: image can't be read" in str(written[0].failed)
    assert "report.dcm: DICOM file without pixels" in str(written[2].failed)
    assert "gone.png: image is missing" in str(written[3].failed)
    with pytest.raises(UserError, match=r"broken\.png"):
        writer.write(written[0].study)


def test_a_view_that_the_policy_was_not_trained_on_is_refused(writer: ReportWriter, xrays: Path) -> None:
    two = study_of_files([xrays / "a.png", xrays / "d.png"], "two", views=["frontal", "lateral"])
    with pytest.raises(UserError, match=r"d\.png: a lateral view: this policy was trained on frontal views alone"):
        writer.write(two)


def test_a_view_that_is_a_guess_is_said_to_be_one_with_the_name_that_would_tell(
    writer: ReportWriter, xrays: Path, tmp_path: Path
) -> None:
    guess = r"d\.png: taken for a lateral view \(.* its name tells no view; d_frontal\.png would\): this policy was"
    with pytest.raises(UserError, match=guess):
        writer.write(study_of_files([xrays / "a.png", xrays / "d.png"], "two"))
    named = Path(shutil.copy(xrays / "d.png", tmp_path / "d_frontal.png"))
    assert writer.write(study_of_files([xrays / "a.png", named], "two")).report


def test_a_policy_with_a_backbone_of_its_own_gets_pixels_of_its_size_without_its_run(
    run_config: Config, studies: StudySet, xrays: Path, tmp_path: Path
) -> None:
    model = dataclasses.replace(run_config.model, backbone=BackboneConfig(train="full"))
    save_policy(make_policy(dataclasses.replace(run_config, model=model), studies, seed=0), tmp_path)
    policy = load_policy(tmp_path)
    study = study_of_files([xrays / "a.png"], "a")
    images = image_store(find_checkpoint(tmp_path), policy).load_batch([study])
    assert policy.prompt_of(study, images)[0].shape[1] == policy.hidden_size


def test_a_policy_on_features_of_another_size_than_the_settings_say_is_refused(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir / "warm_start", tmp_path / "policy")
    checkpoint = find_checkpoint(tmp_path / "policy")
    larger = dataclasses.replace(checkpoint, data=dataclasses.replace(checkpoint.data, image_size=256))
    image_store(checkpoint, load_policy(checkpoint.policy))
    with pytest.raises(UserError, match="features of 14 x 14 patches with 1392 channels"):
        image_store(larger, load_policy(checkpoint.policy))


# Which policy it is.


def test_of_a_run_the_best_checkpoint_writes_unless_a_stage_is_named(run_dir: Path, tmp_path: Path) -> None:
    named = {stage: find_checkpoint(run_dir, stage).name for stage in (None, "best", "latest", "warm_start")}
    assert named == {
        None: "run step_1_000004 (best)",
        "best": "run step_1_000004 (best)",
        "latest": "run step_1_000008 (latest)",
        "warm_start": "run warm_start",
    }
    shutil.copytree(run_dir / "warm_start", tmp_path / "run" / "warm_start")
    shutil.copy(run_dir / "config.yaml", tmp_path / "run")
    assert find_checkpoint(tmp_path / "run").name == "run warm_start"


def test_a_checkpoint_in_a_run_has_the_runs_settings_and_one_outside_the_defaults(
    run_dir: Path, tmp_path: Path
) -> None:
    inside = find_checkpoint(run_dir / "checkpoints" / "step_1_000004")
    assert (inside.of_run, inside.rollout.max_new_tokens, inside.views) == (True, 20, {"frontal"})
    shutil.copytree(run_dir / "warm_start", tmp_path / "policy")
    outside = find_checkpoint(tmp_path / "policy")
    assert (outside.of_run, outside.views) == (False, {"frontal", "lateral"})
    assert outside.sha256 == inside.sha256


def test_a_run_of_another_version_is_read_as_long_as_the_groups_that_count_are_the_same(
    run_dir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("reward:\n", "reward:\n  gone: 1\n"))
    assert find_checkpoint(run).rollout.max_new_tokens == 20
    (run / "config.yaml").write_text(config.replace("rollout:\n", "rollout:\n  gone: 1\n"))
    with pytest.raises(UserError, match=r"config\.yaml: rollout: .*gone.*another version wrote this run"):
        find_checkpoint(run)


# The command: wrong use.


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (error,) = [line for line in told.err.splitlines() if line.startswith("error: ")]
    return error


def test_flags_that_contradict_each_other_are_refused(
    capsys: pytest.CaptureFixture[str], run_dir: Path, xrays: Path, tmp_path: Path
) -> None:
    image, out = xrays / "a.png", tmp_path / "out.jsonl"
    cases: list[tuple[tuple[object, ...], str]] = [
        ((), "nothing to report"),
        ((xrays, "--format", "jsonl", "--root", tmp_path, "--out", out), "give one of them"),
        ((image, "--own-data", "--out", out), "give one of them"),
        ((xrays, image), "the images of one study, or one folder"),
        ((xrays,), "a batch needs --out"),
        ((xrays, "--out", tmp_path / "no" / "out.jsonl"), "its folder does not exist"),
        ((xrays, "--out", out, "--boxes", "b.png"), "--boxes is for the images of one study"),
        ((xrays, "--out", out, "--indication", "cough"), "--indication is for the images of one study"),
        ((image, "--out", out), "--out is for a folder or a data set"),
        ((image, "--split", "val"), "--split is for data sets"),
        ((image, "--root", tmp_path), "--root and --reports need --format"),
        ((image, "--boxes", "b.jpg"), "must end in .png"),
        ((image, "--views", "oblique"), "'oblique' is neither frontal nor lateral"),
        ((xrays, "--out", out, "--rexrank", tmp_path / "r.json"), "not a data set in ReXrank's format"),
        (("--format", "jsonl", "--root", tmp_path / "no", "--out", out), "no does not exist"),
        ((tmp_path / "none.png",), "none.png: there is no such file"),
        ((tmp_path, "--out", out), "holds no image"),
    ]
    for arguments, message in cases:
        assert message in refused(capsys, "--checkpoint", run_dir, *arguments)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("text.png", b"no picture", "text.png: is not a PNG, JPEG or DICOM image"),
        (
            "cut.dcm",
            b"no picture",
            "cut.dcm: image can't be read as DICOM (File is missing DICOM File Meta Information",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_told_before_the_engine_is_built(
    name: str, content: bytes, told: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delattr("actors.generate.ReportWriter")
    (tmp_path / name).write_bytes(content)
    error = refused(capsys, "--checkpoint", run_dir, tmp_path / name)
    assert told in error
    assert "force=True" not in error
    assert "drop the study" not in error


def test_an_indication_is_refused_where_the_policys_prompt_has_none(
    capsys: pytest.CaptureFixture[str], run_dir: Path, xrays: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir / "warm_start", run / "warm_start")
    shutil.copy(run_dir / "config.yaml", run)
    about = json.loads((run / "warm_start" / "policy.json").read_text())
    about["prompt"]["context"] = {}
    (run / "warm_start" / "policy.json").write_text(json.dumps(about))
    told = refused(capsys, "--checkpoint", run, xrays / "a.png", "--indication", "cough")
    assert "this policy's prompt has no indication" in told


def test_what_is_no_checkpoint_is_refused(
    capsys: pytest.CaptureFixture[str], run_dir: Path, xrays: Path, tmp_path: Path
) -> None:
    image = xrays / "a.png"
    assert "there is no such folder" in refused(capsys, "--checkpoint", tmp_path / "no", image)
    assert "neither a run directory" in refused(capsys, "--checkpoint", tmp_path, image)
    assert "is one policy" in refused(capsys, "--checkpoint", run_dir / "warm_start", "--stage", "best", image)
    shutil.copy(run_dir / "config.yaml", tmp_path)
    assert "holds no policy yet" in refused(capsys, "--checkpoint", tmp_path, image)
    shutil.copytree(run_dir / "warm_start", tmp_path / "warm_start")
    os.truncate(tmp_path / "warm_start" / "extractor.safetensors", 1000)
    assert "damaged or cut off" in refused(capsys, "--checkpoint", tmp_path, image)
    about = tmp_path / "warm_start" / "policy.json"
    about.write_text(about.read_text().replace('"format": 3', '"format": 99'))
    assert "has format 99" in refused(capsys, "--checkpoint", tmp_path, image)
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("stage: all", "stage: regions"))
    assert "never learnt to write reports" in refused(capsys, "--checkpoint", tmp_path, image)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str], run_dir: Path, xrays: Path) -> None:
    told = refused(capsys, "--checkpoint", run_dir, xrays / "a.png", "--device", "cuda")
    assert "torch finds no GPU" in told


# The command at work, in processes of its own.


def test_one_study_is_one_line_of_json_and_a_picture_with_boxes(
    run_dir: Path, xrays: Path, tmp_path: Path, writer: ReportWriter
) -> None:
    done = ran("--checkpoint", run_dir, xrays / "c.dcm", "--json", "--boxes", tmp_path / "boxes.png")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    written = writer.write(study_of_files([xrays / "c.dcm"], "c.dcm"))
    assert row["report"] == written.report
    assert row["checkpoint"]["name"] == "run step_1_000004 (best)"
    assert row["evidence"][0]["region"] == max(written.evidence, key=lambda one: one.significance).region
    assert "not for diagnosis" in done.stderr
    assert done.stderr.count("trained on rendered X-rays: what it writes of a real one means nothing\n") == 1
    assert "no region is significant" not in done.stderr
    assert written.report not in done.stderr
    with PILImage.open(tmp_path / "boxes.png") as picture:
        assert len(set(picture.convert("RGB").getdata())) > 256  # not only grey


@pytest.mark.usefixtures("_one_engine")
def test_a_batch_that_is_killed_goes_on_without_a_study_lost_or_doubled(
    run_dir: Path, xrays: Path, tmp_path: Path, writer: ReportWriter
) -> None:
    folder, out = tmp_path / "studies", tmp_path / "out.jsonl"
    folder.mkdir()
    for index in range(TEST_STUDIES):
        (folder / f"{index:03d}.png").symlink_to(xrays / ("a.png" if index % 3 else "d.png"))
    arguments = ("--checkpoint", run_dir, folder, "--out", out)
    with subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    before = out.read_bytes()
    assert 0 < before.count(b"\n") < TEST_STUDIES
    os.truncate(out, len(before) - 7)  # as if it had been killed within a line
    assert main([*map(str, arguments)]) == 0
    whole = before[: before.rstrip(b"\n").rfind(b"\n") + 1]
    assert out.read_bytes().startswith(whole)
    rows = lines(out)
    assert [row["id"] for row in rows] == [f"{index:03d}.png" for index in range(TEST_STUDIES)]
    reports = {name: writer.write(study_of_files([xrays / name], name)).report for name in ("a.png", "d.png")}
    assert all(row["report"] == reports[Path(row["images"][0]["path"]).name] for row in rows)


# The command at work, on the writer of this process.


def ran_here(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Status, stdout, stderr."""
    status = main([*map(str, arguments)])
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.mark.usefixtures("_one_engine")
def test_a_study_of_a_batch_without_a_report_is_named_and_tried_again(
    capsys: pytest.CaptureFixture[str], run_dir: Path, xrays: Path, tmp_path: Path
) -> None:
    shutil.copytree(xrays, tmp_path / "studies")
    broken = tmp_path / "studies" / "b2.png"
    broken.write_bytes(b"no picture")
    arguments = ("--checkpoint", run_dir, tmp_path / "studies", "--out", tmp_path / "out.jsonl", "--json")
    status, out, err = ran_here(capsys, *arguments)
    assert status == 1
    assert "no report of b2.png" in err
    assert "4 reports, 1 without one, in " in err
    told = json.loads(out)
    assert (told["studies"], told["written"], told["failed"]) == (5, 4, 1)
    shutil.copy(xrays / "a.png", broken)
    status, out, _ = ran_here(capsys, *arguments)
    assert (status, json.loads(out)["written"]) == (0, 1)
    assert [row["id"] for row in lines(tmp_path / "out.jsonl")] == ["a.png", "b.jpg", "c.dcm", "d.png", "b2.png"]


@pytest.mark.usefixtures("_one_engine")
def test_a_picture_without_boxes_is_told_of(
    capsys: pytest.CaptureFixture[str], run_dir: Path, xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rrg.model.drawing.SIGNIFICANT", 1.1)
    arguments = ("--checkpoint", run_dir, xrays / "a.png", "--boxes", tmp_path / "boxes.png")
    status, _, err = ran_here(capsys, *arguments)
    assert status == 0
    assert err.count("no region is significant: no boxes\n") == 1


@pytest.mark.usefixtures("_one_engine")
def test_a_data_set_in_rexranks_format_gets_its_predictions_file(
    capsys: pytest.CaptureFixture[str], run_dir: Path, xrays: Path, tmp_path: Path
) -> None:
    shutil.copytree(xrays, tmp_path / "images")
    record = {"section_findings": "The lungs are clear.", "section_impression": "", "frontal_lateral": ["Frontal"]}
    records = {name: {**record, "image_path": [name]} for name in ("a.png", "d.png")}
    (tmp_path / "test.json").write_text(json.dumps(records))
    out, predictions = tmp_path / "out.jsonl", tmp_path / "predictions.json"
    source = ("--format", "rexrank", "--root", tmp_path / "test.json", "--rexrank", predictions)
    status, stdout, _ = ran_here(capsys, "--checkpoint", run_dir, *source, "--out", out)
    assert (status, stdout) == (0, "")
    rows = {row["id"]: row for row in lines(out)}
    assert rows["a.png"]["reference"] == "the lungs are clear ."
    written = json.loads(predictions.read_text())
    assert {name: one["model_prediction"] for name, one in written.items()} == {
        name: row["report"] for name, row in rows.items()
    }


@pytest.mark.usefixtures("_one_engine")
def test_a_complete_file_is_left_as_it_is(capsys: pytest.CaptureFixture[str], run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ("--checkpoint", run_dir, "--own-data", "--out", out, "--json")
    status, _, _ = ran_here(capsys, *arguments)
    assert (status, len(lines(out))) == (0, 4)
    before = out.read_bytes()
    status, stdout, err = ran_here(capsys, *arguments)
    assert json.loads(stdout) == {"out": str(out), "studies": 4, "failed": 0}
    assert "engine" not in err
    assert out.read_bytes() == before
