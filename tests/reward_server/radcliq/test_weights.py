"""The weights folder: where its parts are found, what is refused, and the commands that check and fetch it."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.checkpoints import write_checkpoints
from reward_server.cli import main
from reward_server.errors import RewardSetupError
from reward_server.radcliq.radgraph.archive import read_config
from reward_server.radcliq.weights import WeightsFolder, load_tensors, sha256, weights_file
from reward_server.radcliq.weights_archive import unpack
from reward_server.radcliq.weights_check import PUBMEDBERT, Finding, check
from reward_server.radcliq.weights_fetch import fetch

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


@pytest.fixture
def folder(mini_weights: Path, tmp_path: Path) -> Path:
    """A weights folder of our own."""
    copy = tmp_path / "weights"
    shutil.copytree(mini_weights, copy, ignore=shutil.ignore_patterns(".unpacked"))  # by other tests
    return copy


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            member.size = len(content) if member.isfile() else 0
            tar.addfile(member, io.BytesIO(content))
    return path


def _link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


# --- where things are -------------------------------------------------------------------------------------------------


def test_every_part_of_a_folder_is_found(mini_weights: Path) -> None:
    found = WeightsFolder(mini_weights)
    assert found.chexbert == mini_weights / "chexbert.pth"
    assert found.bert == mini_weights / "bert-base-uncased"
    assert weights_file(found.roberta) == mini_weights / "distilroberta-base" / "model.safetensors"
    assert found.radgraph == mini_weights / "radgraph"
    assert found.backbone(PUBMEDBERT) == mini_weights / PUBMEDBERT


def test_a_folder_of_the_hugging_face_cache_will_do(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache of the hub"
    layout = {
        "bert-base-uncased": "models--google-bert--bert-base-uncased",
        "distilroberta-base": "models--distilroberta-base",
        PUBMEDBERT: "models--microsoft--BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
    }
    for name, place in layout.items():
        for revision in ("1111", "2222"):
            shutil.copytree(folder / name, cache / place / "snapshots" / revision)
        (cache / place / "refs").mkdir()
        (cache / place / "refs" / "main").write_text("2222\n")
    scorers = cache / "models--StanfordAIMI--RRG_scorers" / "snapshots" / "3333"
    scorers.mkdir(parents=True)
    for name in ("chexbert.pth", "radgraph.tar.gz"):
        shutil.copy(folder / name, scorers)
    found = WeightsFolder(cache)
    assert found.chexbert == scorers / "chexbert.pth"
    assert found.bert == cache / layout["bert-base-uncased"] / "snapshots" / "2222"
    assert found.backbone(PUBMEDBERT) == cache / layout[PUBMEDBERT] / "snapshots" / "2222"
    assert [finding.state for finding in check(cache)] == ["ok"] * 5


@pytest.mark.parametrize("part", ["chexbert", "bert", "roberta", "radgraph"])
def test_a_missing_part_is_named_with_the_command_that_gets_it(part: str, tmp_path: Path) -> None:
    with pytest.raises(RewardSetupError, match=f"{tmp_path}.*weights fetch --weights {tmp_path}"):
        getattr(WeightsFolder(tmp_path), part)


@pytest.mark.parametrize("name", ["../secrets", "/etc", "a/../../b", "", "."])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, mini_weights: Path) -> None:
    with pytest.raises(RewardSetupError, match="name"):
        WeightsFolder(mini_weights).backbone(name)
    with pytest.raises(RewardSetupError, match="name"):
        WeightsFolder(mini_weights, radgraph=name)


def test_converted_weights_need_no_torch_files(folder: Path) -> None:
    for old, new in (
        (folder / "chexbert.pth", folder / "chexbert.safetensors"),
        (folder / "radgraph" / "weights.th", folder / "radgraph" / "model.safetensors"),
    ):
        save_file({name: tensor.clone() for name, tensor in load_tensors(old).items()}, new)
        old.unlink()
    assert {finding.state for finding in check(folder)} == {"ok"}


def test_physionets_archive_is_found_by_its_name(folder: Path) -> None:
    for name in ("physionet/radgraph", "physionet/model.tar.gz"):
        assert read_config(WeightsFolder(folder, name).radgraph).namespace == "None"


# --- unpacking --------------------------------------------------------------------------------------------------------


def test_an_archive_is_unpacked_once_into_the_folder(folder: Path) -> None:
    shutil.rmtree(folder / "radgraph")
    first = WeightsFolder(folder).radgraph
    assert first.parent == folder / ".unpacked"
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "vocabulary", "weights.th"]
    changed = (first / "weights.th").stat().st_mtime_ns
    assert WeightsFolder(folder).radgraph == first
    assert (first / "weights.th").stat().st_mtime_ns == changed


def test_another_archive_of_the_same_name_is_not_taken_for_the_first(folder: Path) -> None:
    shutil.rmtree(folder / "radgraph")
    first = WeightsFolder(folder).radgraph
    shutil.copy(folder / "radgraph-xl.tar.gz", folder / "radgraph.tar.gz")
    second = WeightsFolder(folder).radgraph
    assert read_config(first).namespace != read_config(second).namespace


def test_an_archive_in_a_read_only_folder_is_unpacked_into_the_users_cache(folder: Path, tmp_path: Path) -> None:
    (folder / ".unpacked").write_text("no folder can be made here, not even by root")
    assert WeightsFolder(folder, "radgraph-xl").radgraph.is_relative_to(tmp_path / "cache")


def test_where_nothing_can_be_written_the_way_out_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / ".unpacked").write_text("")
    (tmp_path / "cache").write_text("")
    with pytest.raises(RewardSetupError, match="XDG_CACHE_HOME"):
        _ = WeightsFolder(folder, "radgraph-xl").radgraph


def test_many_that_unpack_at_once_get_the_same_whole_folder(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: unpack(folder / "radgraph.tar.gz", target), range(8)))
    assert set(made) == {target}
    assert load_tensors(target / "weights.th").keys() == load_tensors(folder / "radgraph" / "weights.th").keys()
    assert not list(tmp_path.glob(".partial-*"))


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside.txt"),
        tarfile.TarInfo("/tmp/outside.txt"),
        tarfile.TarInfo("vocabulary/../../outside.txt"),
        _link("weights.th", "/etc/passwd", tarfile.SYMTYPE),
        _link("vocabulary", "..", tarfile.SYMTYPE),
        _link("weights.th", "config.json", tarfile.LNKTYPE),
        _link("config.json", "", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.type.decode()} {member.name}",
)
def test_an_archive_with_links_or_climbing_paths_is_refused(member: tarfile.TarInfo, tmp_path: Path) -> None:
    archive = _tar(tmp_path / "radgraph.tar.gz", (tarfile.TarInfo("config.json"), b"{}"), (member, b"x"))
    with pytest.raises(RewardSetupError, match=r"radgraph\.tar\.gz was refused"):
        unpack(archive, tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["radgraph.tar.gz"]


def test_a_cut_off_archive_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes((folder / "radgraph.tar.gz").read_bytes()[:5000])
    with pytest.raises(RewardSetupError, match=r"cut\.tar\.gz is damaged"):
        unpack(cut, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_files_that_radgraph_does_not_need_are_not_unpacked(tmp_path: Path) -> None:
    names = ("./config.json", "./weights.th", "vocabulary/x.txt", "out.log", "vocabulary/.lock", "run/me.sh")
    archive = _tar(tmp_path / "a.tar.gz", *((tarfile.TarInfo(name), b"{}") for name in names))
    made = unpack(archive, tmp_path / "target")
    files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
    assert files == ["config.json", "vocabulary/x.txt", "weights.th"]


# --- loading ----------------------------------------------------------------------------------------------------------


def _save(legacy: bool, content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"model_state_dict": tensors, "epoch": 3, "optimizer_state_dict": {"state": {}}},
        lambda tensors: {"state_dict": tensors},
    ],
    ids=["plain", "training checkpoint", "lightning"],
)
def test_both_torch_formats_give_the_models_tensors(
    legacy: bool, wrap: Callable[[object], object], tmp_path: Path
) -> None:
    _save(legacy, wrap(TENSORS), tmp_path / "a.pth")
    loaded = load_tensors(tmp_path / "a.pth")
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


def test_safetensors_give_the_same_tensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


class _Malicious:
    """When it is unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [lambda c, p: _save(False, c, p), lambda c, p: _save(True, c, p), None])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(
    save: Callable[[object, Path], None] | None, tmp_path: Path
) -> None:
    trap, file = tmp_path / "trapped", tmp_path / "chexbert.pth"
    content = {"model_state_dict": {"module.bert.x": torch.ones(1)}, "extra": _Malicious(trap)}
    if save is None:
        file.write_bytes(pickle.dumps(_Malicious(trap)))
    else:
        save(content, file)
    with pytest.raises(RewardSetupError, match=r"chexbert\.pth was refused") as caught:
        load_tensors(file)
    assert not trap.exists()
    # torch's own message tells how to load it all the same.
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"<html>sign in</html>" * 50, bytes(1000)])
def test_a_file_that_is_something_else_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_bytes(content)
    with pytest.raises(RewardSetupError, match=str(file)):
        load_tensors(file)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_cut_off_file_is_refused(legacy: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    _save(legacy, {"a": torch.zeros(5000)}, file)
    file.write_bytes(file.read_bytes()[:9000])
    with pytest.raises(RewardSetupError, match=r"a\.pth"):
        load_tensors(file)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": 1}, {"model_state_dict": {"a": "text"}}, torch.ones(2)])
def test_a_file_without_named_tensors_is_refused(content: object, tmp_path: Path) -> None:
    _save(False, content, tmp_path / "a.pth")
    with pytest.raises(RewardSetupError, match="named tensors"):
        load_tensors(tmp_path / "a.pth")


# --- hashes -----------------------------------------------------------------------------------------------------------


def test_a_hash_follows_a_files_content(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    assert sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    file.write_bytes(b"abcd")
    assert sha256(file) == "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"


def test_a_folders_hash_follows_names_and_contents_but_not_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("1")
    first = sha256(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").write_text("")
    assert sha256(tmp_path) == first
    (tmp_path / "sub" / "a").rename(tmp_path / "sub" / "b")
    assert sha256(tmp_path) != first


# --- the commands -----------------------------------------------------------------------------------------------------


def _states(findings: list[Finding]) -> dict[str, str]:
    return {finding.part: finding.state for finding in findings}


def test_a_complete_folder_passes_the_check(mini_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "check", "--weights", str(mini_weights)]) == 0
    shown = capsys.readouterr().out
    assert "is complete" in shown
    assert sha256(mini_weights / "chexbert.pth") in shown
    assert "radgraph-xl" in shown


def test_an_empty_folder_fails_the_check_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["weights", "check", "--weights", str(tmp_path / "empty")]) == 1
    shown = capsys.readouterr().out
    assert shown.count("\nmissing") == 5
    assert f"python -m reward_server weights fetch --weights {tmp_path / 'empty'} --accept-terms`" in shown
    assert "physionet.org" in shown


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "check", "--weights", str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_another_models_tokenizer_is_found_out(folder: Path) -> None:
    vocabulary = folder / PUBMEDBERT / "vocab.txt"
    vocabulary.write_text("\n".join(vocabulary.read_text().split("\n")[:-20]) + "\n")
    states = _states(check(folder))
    assert states[PUBMEDBERT] == "wrong"
    assert states["chexbert.pth"] == "ok"


def test_a_folder_without_a_tokenizer_is_found_out(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / "bert-base-uncased" / name).unlink()
    (finding,) = (finding for finding in check(folder) if finding.part == "bert-base-uncased")
    assert finding.state == "wrong"
    assert "has no tokenizer" in finding.note


def test_a_checkpoint_of_another_size_is_found_out(folder: Path) -> None:
    tensors = load_tensors(folder / "chexbert.pth")
    name = "module.bert.embeddings.word_embeddings.weight"
    torch.save({"model_state_dict": {**tensors, name: tensors[name][:-3]}}, folder / "chexbert.pth")
    (finding,) = (finding for finding in check(folder) if finding.part == "chexbert.pth")
    assert finding.state == "wrong"
    assert "word pieces" in finding.note


def test_a_checkpoint_without_a_layer_is_found_out(folder: Path) -> None:
    tensors = load_tensors(folder / "chexbert.pth")
    tensors.pop("module.bert.encoder.layer.1.output.dense.weight")
    torch.save({"model_state_dict": tensors}, folder / "chexbert.pth")
    assert _states(check(folder))["chexbert.pth"] == "wrong"


def test_a_part_that_needs_a_missing_one_is_not_called_wrong(folder: Path) -> None:
    shutil.rmtree(folder / PUBMEDBERT)
    states = _states(check(folder))
    assert states[PUBMEDBERT] == "missing"
    assert states["radgraph"] == "unchecked"


def test_a_damaged_archive_is_found_out_and_named(folder: Path) -> None:
    shutil.rmtree(folder / "radgraph")
    (folder / "radgraph.tar.gz").write_bytes(b"not an archive")
    states = _states(check(folder))
    assert states["radgraph"] == "wrong"
    assert states[PUBMEDBERT] == "ok"


def test_fetch_without_a_network_says_what_it_could_not_get(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["weights", "fetch", "--weights", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert "config.json of distilbert/distilroberta-base can't be downloaded" in error
    assert "HTTPS_PROXY" in error


def _look_for_the_hub_at(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT would, which is read when the library is imported."""
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_fetch_gives_up_at_once_where_the_hub_is_out_of_reach(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _look_for_the_hub_at(9, monkeypatch)
    started = time.monotonic()
    assert main(["weights", "fetch", "--weights", str(tmp_path / "new")]) == 2
    assert time.monotonic() - started < 8
    fetching, error = capfd.readouterr().err.splitlines()
    assert fetching.endswith("config.json: fetching from distilbert/distilroberta-base")
    assert "Connection refused" in error
    assert f"copy the whole folder {tmp_path / 'new'} over" in error
    assert not (tmp_path / "new").exists()


class _Hub(BaseHTTPRequestHandler):
    """Knows every file; its content is not there for those whose name has `lost` in it."""

    lost = "nothing"

    def do_HEAD(self) -> None:
        self._answer(200, b"")

    def do_GET(self) -> None:
        self._answer(404, b"gone") if self.lost in self.path else self._answer(200, b"{}")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        headers = {"ETag": '"abc"', "X-Repo-Commit": "1" * 40, "Content-Length": str(len(body) or 2)}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("lost", ["nothing", "bert-base-uncased/resolve/main/vocab.txt"])
def test_fetch_leaves_whole_files_behind_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(_Hub, "lost", lost)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        _look_for_the_hub_at(hub.server_port, monkeypatch)
        with nullcontext() if lost == "nothing" else pytest.raises(RewardSetupError, match="txt of google-bert"):
            fetch(tmp_path, "radgraph", accept_terms=True, say=lambda text: None)
        hub.shutdown()
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert not {file for file in files if file.startswith(".") or "/." in file}
    assert ("chexbert.pth" in files) is (lost == "nothing")
    assert "distilroberta-base/model.safetensors" in files
    assert all(path.read_text() == "{}" for path in tmp_path.rglob("*") if path.is_file())
    assert all(any(path.iterdir()) for path in tmp_path.rglob("*") if path.is_dir())


def test_fetch_downloads_nothing_that_is_there(
    mini_weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["weights", "fetch", "--accept-terms", "--weights", str(mini_weights)]) == 0
    assert "fetching" not in capsys.readouterr().err


# --- the checkpoints that the tests use -------------------------------------------------------------------------------


def test_random_checkpoints_are_the_same_each_time(mini_weights: Path, tmp_path: Path) -> None:
    write_checkpoints(tmp_path, "mini")
    for name in ("chexbert.pth", "distilroberta-base/model.safetensors", "radgraph/weights.th"):
        first, second = load_tensors(mini_weights / name), load_tensors(tmp_path / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items()), name
    for name in ("bert-base-uncased", PUBMEDBERT):
        assert sha256(tmp_path / name) == sha256(mini_weights / name)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("chexbert.pth", None, "chexbert.pth"),
        ("bert-base-uncased/tokenizer.json", "{", "the tokenizer in .*bert-base-uncased"),
        ("bert-base-uncased/config.json", "{", "bert-base-uncased/config.json can't be read"),
        ("distilroberta-base/tokenizer.json", "[]", "the tokenizer in .*distilroberta-base"),
    ],
)
def test_a_damaged_file_is_a_finding_that_names_it(folder: Path, file: str, content: str | None, named: str) -> None:
    damaged = folder / file
    if content is None:
        damaged.write_bytes(damaged.read_bytes()[:1000])
    else:
        damaged.write_text(content)
    wrong = [finding.note for finding in check(folder) if finding.state != "ok"]
    assert any(re.search(named, note) for note in wrong), wrong
