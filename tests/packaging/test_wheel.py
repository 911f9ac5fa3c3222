"""The wheel: built from a copy of the sources, installed beside the environment's packages, run from another folder."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("actors", "configs", "learner", "protos", "reward_server", "rrg")


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, an empty folder to work in, and what the build told."""

    python: Path
    folder: Path
    wheel: Path
    told: str

    def run(self, *command: str, timeout: int = 240) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [str(self.python), "-m", *command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp("wheel")
    source = base / "source"
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(base), str(source)]
    told = subprocess.run(build, check=True, capture_output=True, text=True, timeout=240)
    (wheel,) = base.glob("*.whl")
    shutil.rmtree(source)
    venv.create(base / "venv", with_pip=False)
    python = base / "venv/bin/python"
    purelib = next((base / "venv/lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:  # what pip does with a wheel of pure Python
        archive.extractall(purelib)
    (purelib / "environment.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    folder = base / "elsewhere"
    folder.mkdir()
    return Installed(python, folder, wheel, told.stdout + told.stderr)


def test_the_wheel_has_every_file_of_the_packages_and_none_beside(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    ignored = {"__pycache__", ".mypy_cache"}
    here = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and not ignored & set(path.parts)
    }
    assert inside == here


def test_the_build_knows_every_folder_of_the_packages(installed: Installed) -> None:
    assert "is absent from the `packages` configuration" not in installed.told


def test_the_wheel_names_its_licence_and_its_readme(installed: Installed) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with zipfile.ZipFile(installed.wheel) as archive:
        metadata = archive.read(f"lmrrg-{version}.dist-info/METADATA").decode()
        assert "Apache License" in archive.read(f"lmrrg-{version}.dist-info/licenses/LICENSE").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "# LM-RRG: reinforcement learning of chest X-ray report generation" in metadata


def test_the_modules_that_run_are_the_wheel_s(installed: Installed) -> None:
    code = "import learner.main, configs.load, rrg.data, reward_server; print(learner.main.__file__)"
    done = subprocess.run(
        [str(installed.python), "-c", code], cwd=installed.folder, capture_output=True, text=True, timeout=240
    )
    assert Path(done.stdout.strip()).is_relative_to(installed.python.parents[1])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("learner.main", "dry_run=true"), "gRPC reward server, embedded"),
        (("learner.main", "--help"), "exp: demo, iu_grpo"),
        (("learner.evaluate", "--help"), "--predictions FILE"),
        (("rrg.data", "--help"), "contact sheet"),
        (("reward_server", "describe", "--backend", "embedded"), "all-MiniLM-L6-v2"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else "",
)
def test_a_command_runs_outside_of_the_checkout(installed: Installed, command: tuple[str, ...], words: str) -> None:
    done = installed.run(*command)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


def test_pairs_are_scored_outside_of_the_checkout(installed: Installed) -> None:
    pair = {"id": "a", "reference": "No pneumothorax.", "hypothesis": "There is no pneumothorax."}
    (installed.folder / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    done = installed.run("reward_server", "score", "--backend", "embedded", "--input", "pairs.jsonl", "--output", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["embedded"] < 0


@pytest.mark.slow
def test_the_whole_job_runs_outside_of_the_checkout_and_writes_below_the_current_folder(installed: Installed) -> None:
    done = installed.run("learner.main", "+exp=smoke", timeout=580)
    assert done.returncode == 0, done.stderr
    (summary,) = (installed.folder / "outputs/smoke").glob("*/summary.json")
    assert json.loads(summary.read_text())
    assert not list(Path(installed.python).parents[1].rglob("outputs"))
