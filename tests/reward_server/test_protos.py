"""The generated code is that of the .proto file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generating_the_stubs_again_changes_nothing(tmp_path: Path) -> None:
    outputs = [f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, "protos/reward.proto"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    made = sorted(path.name for path in (tmp_path / "protos").iterdir())
    assert made == ["reward_pb2.py", "reward_pb2.pyi", "reward_pb2_grpc.py"]
    for name in made:
        assert (tmp_path / "protos" / name).read_text() == (ROOT / "protos" / name).read_text(), (
            f"generate {name} again"
        )
