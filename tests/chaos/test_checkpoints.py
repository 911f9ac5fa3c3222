"""Checkpoints on a disk that is full, and checkpoints that a disk has damaged: real files, a real full file system."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from learner.checkpoints import RunState, latest_checkpoint, write_checkpoint
from rrg.errors import ProcessError
from tests.job.test_smoke import ROOT

OPTIMIZER = Path("deepspeed/zero_pp_rank_0_mp_rank_00_optim_states.pt")
WEIGHTS = Path("policy/model.safetensors")


def state(step: int) -> RunState:
    return RunState("rl", step, step, 1, "hash", kl_coef=0.02)


def fill(folder: Path) -> None:
    """What a checkpoint holds, as the libraries write it."""
    for path in (OPTIMIZER, WEIGHTS):
        (folder / path).parent.mkdir()
    torch.save({"exp_avg": torch.ones(100_000)}, folder / OPTIMIZER)
    save_file({"weight": torch.ones(100_000)}, folder / WEIGHTS)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """An older and a newer checkpoint."""
    older, newer = (write_checkpoint(tmp_path, state(step), fill, keep=2) for step in (4, 5))
    return older, newer


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half, empty, Path.unlink])
@pytest.mark.parametrize("where", [OPTIMIZER, WEIGHTS, Path("state.json"), Path("SHA256SUMS")])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_that_names_it(
    two: tuple[Path, Path], where: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = two
    assert latest_checkpoint(older.parent, verify=True) == newer
    assert not caplog.records
    damage(newer / where)
    assert latest_checkpoint(older.parent, verify=True) == older
    assert str(newer) in caplog.text
    assert where.name in caplog.text


def test_the_libraries_do_not_see_a_flipped_bit(two: tuple[Path, Path]) -> None:
    """Why checkpoints have sums of their own."""
    _, newer = two
    for path in (OPTIMIZER, WEIGHTS):
        flip_a_bit(newer / path)
    assert not torch.equal(torch.load(newer / OPTIMIZER)["exp_avg"], torch.ones(100_000))
    assert not torch.equal(load_file(newer / WEIGHTS)["weight"], torch.ones(100_000))


def test_anybody_can_check_a_checkpoint_with_sha256sum(two: tuple[Path, Path]) -> None:
    _, newer = two
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=newer, check=False, timeout=60).returncode == 0
    flip_a_bit(newer / WEIGHTS)
    assert subprocess.run(check, cwd=newer, check=False, capture_output=True, timeout=60).returncode == 1


def test_what_lies_behind_a_damaged_checkpoint_is_removed_once_the_run_has_gone_on_before_it(
    two: tuple[Path, Path],
) -> None:
    older, newer = two
    folder = older.parent
    newest = write_checkpoint(folder, state(7), fill, keep=3)
    flip_a_bit(newest / WEIGHTS)
    flip_a_bit(newer / WEIGHTS)
    assert latest_checkpoint(folder, verify=True) == older
    write_checkpoint(folder, state(5), fill, keep=3)
    assert sorted(path.name for path in folder.glob("step_*")) == [older.name, newer.name]
    assert latest_checkpoint(folder, verify=True) == newer


FULL = """
import sys
from pathlib import Path
from learner.checkpoints import latest_checkpoint, write_checkpoint
from rrg.errors import ProcessError, UserError
from tests.chaos.test_checkpoints import fill, state

def fill_as_a_rank(path):
    try:
        fill(path)
    except Exception as error:  # each library has its own for a full disk
        raise ProcessError(f"save: learner rank 0 failed: {error!r}") from error

folder = Path(sys.argv[1]) / "checkpoints"
first = write_checkpoint(folder, state(4), fill, keep=2)
try:
    write_checkpoint(folder, state(5), fill_as_a_rank, keep=2)
except UserError as error:
    print(error)
assert latest_checkpoint(folder, verify=True) == first
assert [path.name for path in folder.glob("step_*")] == [first.name]
"""


@pytest.mark.parametrize("kib", [1000, 1400])
def test_a_full_disk_leaves_the_checkpoint_before_and_says_what_to_do(tmp_path: Path, kib: int) -> None:
    """A checkpoint takes 800 KiB: the disk is full in its first file, and in its second."""
    output = on_a_small_disk(tmp_path, kib, f"{sys.executable} -c '{FULL}' {tmp_path}")
    assert f"the checkpoint {tmp_path}/checkpoints/step_1_000005 could not be written" in output
    assert f"make room, then go on with resume={tmp_path}" in output


def on_a_small_disk(folder: Path, kib: int, script: str) -> str:
    """The output of a shell script for which `folder` is an empty file system of so many KiB of its own."""
    mounted = f"mount -t tmpfs -o size={kib}k tmpfs {folder} && {script}"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounted]
    if subprocess.run([*command[:3], "true"], check=False, capture_output=True, timeout=60).returncode:
        pytest.skip("needs a mount namespace of its own (unshare)")
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_rank_that_dies_while_it_writes_is_no_full_disk_and_leaves_nothing_behind(two: tuple[Path, Path]) -> None:
    _, newer = two

    def die(folder: Path) -> None:
        fill(folder)
        raise ProcessError("save: learner rank 1 died")

    with pytest.raises(ProcessError, match="rank 1 died"):
        write_checkpoint(newer.parent, state(6), die, keep=2)
    assert latest_checkpoint(newer.parent, verify=True) == newer
    assert len(list(newer.parent.glob("step_*"))) == 2
