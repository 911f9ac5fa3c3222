"""Weights & Biases and MLflow get a run's numbers, once, and report text only where it is asked for."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from configs.load import compose_config
from configs.schema import TrackingConfig
from learner.trackers import Service, open_trackers
from learner.tracking import Tracker
from rrg.errors import UserError

REPORT = "invented opacity in the left lung ."
CONFIG = {"seed": 3, "learner": {"rl": {"steps": 2}}}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its servers take a database that is not installed here
    for name in ("WANDB_API_KEY", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)


def services(folder: Path, told: list[str] | None = None, **fields: Any) -> list[Service]:
    folder.mkdir(exist_ok=True)
    return open_trackers(TrackingConfig(**fields), CONFIG, folder, ([] if told is None else told).append)


def reports(folder: Path) -> Path:
    path = folder / "validation_000001.jsonl"
    path.write_text(json.dumps({"id": "a", "reference": REPORT, "hypothesis": "clear lungs .", "reward": 0.5}) + "\n")
    return path


def test_nothing_is_opened_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert services(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


class TestMlflow:
    def uri(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/store"

    def client(self, tmp_path: Path) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri(tmp_path))

    def run_id(self, run_dir: Path) -> str:
        return str(json.loads((run_dir / "trackers.json").read_text())["mlflow"]["run_id"])

    def test_gets_the_config_and_every_row(self, tmp_path: Path) -> None:
        run_dir = tmp_path / "run"
        tracker = Tracker(tmp_path, ("rl", 0), services(run_dir, mlflow=self.uri(tmp_path)))
        tracker.log("rl", 1, {"reward_mean": 0.25, "kl": 0.01})
        tracker.log("validation", 1, {"reward": 0.5})
        tracker.close()
        run = self.client(tmp_path).get_run(self.run_id(run_dir))
        assert run.data.params == {"seed": "3", "learner.rl.steps": "2"}
        assert run.data.metrics == {"rl/reward_mean": 0.25, "rl/kl": 0.01, "validation/reward": 0.5}
        assert run.info.status == "FINISHED"
        assert run.info.run_name == "run"

    def test_a_resumed_run_goes_on_in_the_same_one_and_tells_no_step_twice(self, tmp_path: Path) -> None:
        first = Tracker(tmp_path, ("rl", 0), services(tmp_path, mlflow=self.uri(tmp_path)))
        for step in (1, 2):
            first.log("rl", step, {"reward_mean": float(step)})
        first.close()
        again = Tracker(tmp_path, ("rl", 1), services(tmp_path, mlflow=self.uri(tmp_path)))
        for step in (2, 3):
            again.log("rl", step, {"reward_mean": float(step)})
        again.close()
        history = self.client(tmp_path).get_metric_history(self.run_id(tmp_path), "rl/reward_mean")
        assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 2.0), (3, 3.0)]

    def test_reports_come_as_a_file(self, tmp_path: Path) -> None:
        (service,) = services(tmp_path, mlflow=self.uri(tmp_path))
        service.reports("validation", 1, reports(tmp_path))
        found = self.client(tmp_path).download_artifacts(self.run_id(tmp_path), "validation", str(tmp_path))
        assert REPORT in next(Path(found).glob("*.jsonl")).read_text()

    def test_one_that_fails_is_left_and_the_run_goes_on(self, tmp_path: Path) -> None:
        told: list[str] = []
        tracker = Tracker(tmp_path, ("rl", 0), services(tmp_path, told, mlflow=self.uri(tmp_path)))
        shutil.rmtree(tmp_path / "store")
        tracker.log("rl", 1, {"reward_mean": 1.0})
        tracker.log("rl", 2, {"reward_mean": 2.0})
        tracker.close()
        (line,) = told
        assert "mlflow failed, the run goes on without it" in line
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2

    def test_what_it_missed_is_sent_by_the_next_resume_and_a_second_kill_doubles_nothing(self, tmp_path: Path) -> None:
        uri = self.uri(tmp_path)
        away = Tracker(tmp_path, ("rl", 0), services(tmp_path, mlflow=uri))
        away.log("rl", 1, {"reward_mean": 1.0})
        (tmp_path / "store").rename(tmp_path / "gone")
        away.log("rl", 2, {"reward_mean": 2.0})
        away.close(failed=True)
        (tmp_path / "gone").rename(tmp_path / "store")
        for kept, done in ((2, (3, 4)), (2, (3,)), (3, (4, 5))):
            tracker = Tracker(tmp_path, ("rl", kept), services(tmp_path, mlflow=uri))
            for step in done:
                tracker.log("rl", step, {"reward_mean": float(step)})
            tracker.close(failed=True)
        history = self.client(tmp_path).get_metric_history(self.run_id(tmp_path), "rl/reward_mean")
        assert [metric.step for metric in history] == [1, 2, 3, 4, 5]
        assert self.client(tmp_path).get_run(self.run_id(tmp_path)).info.status == "FAILED"

    def test_a_server_that_is_away_ends_the_run_before_it_starts(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"tracking\.mlflow=http://127"):
            services(tmp_path, mlflow=f"http://127.0.0.1:{free_port()}")


class TestWandb:
    def written(self, run_dir: Path, awaited: bytes) -> bytes:
        """All files, when they hold what is awaited: the client's own process may write for a moment more."""
        deadline = time.monotonic() + 20
        while True:
            found = b"".join(path.read_bytes() for path in run_dir.rglob("*") if path.is_file())
            if awaited in found:
                return found
            assert time.monotonic() < deadline, f"{awaited!r} was not written"
            time.sleep(0.1)

    def test_offline_it_keeps_numbers_and_no_report(self, tmp_path: Path) -> None:
        reports(tmp_path)
        run_dir = tmp_path / "run"
        tracker = Tracker(tmp_path, ("rl", 0), services(run_dir, wandb="offline"))
        tracker.log("rl", 1, {"reward_mean": 0.25})
        tracker.close()
        assert b"opacity" not in self.written(run_dir, b"rl/reward_mean")

    def test_reports_are_a_table_where_they_are_asked_for(self, tmp_path: Path) -> None:
        run_dir = tmp_path / "run"
        tracker = Tracker(tmp_path, ("rl", 0), services(run_dir, wandb="offline"))
        tracker.reports("validation", 1, reports(tmp_path))
        tracker.close()
        self.written(run_dir, REPORT.encode())

    def test_online_without_a_key_ends_the_run_with_the_way_out(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="WANDB_API_KEY"):
            services(tmp_path, wandb="online")


@pytest.mark.parametrize(
    ("given", "told"),
    [("tracking.wandb=cloud", "off, online, offline"), ("tracking.reports=true", "sends reports to nobody")],
)
def test_a_config_that_means_nothing_is_refused(given: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        compose_config([given])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
