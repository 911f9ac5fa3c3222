"""The code and the files that the how-to pages show are read from the pages and do what these say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from configs import check_rl
from configs.load import compose_config
from learner.objectives import advantages
from reward_server.client import RewardClient
from reward_server.scorer import Scorer
from reward_server.selfcheck import self_check
from rrg.data.__main__ import main as data_command
from rrg.errors import UserError
from tests.reward_server.conftest import RunningServer, scorer  # noqa: F401  (a fixture)

HOWTO = Path(__file__).parents[2] / "docs/howto"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (HOWTO / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_data_set_of_the_page_is_one_that_check_finds_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMRRG_CACHE", str(tmp_path / "cache"))
    (lines,) = blocks("data.md", "json")
    path = tmp_path / "studies.jsonl"
    path.write_text(lines.replace("s2.dcm", "s2.png"))  # DICOM has tests of its own
    for record in map(json.loads, path.read_text().splitlines()):
        named = record["image_path"]
        for image in named if isinstance(named, list) else [named]:
            (tmp_path / image).parent.mkdir(exist_ok=True)
            Image.new("L", (32, 32), 90).save(tmp_path / image)
    assert data_command(["check", "--format", "jsonl", "--root", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "1 studies, 1 frontal, 1 lateral" in printed
    assert "nothing wrong" in printed


def test_the_reward_of_the_page_passes_the_self_check_and_costs_invented_measurements(scorer: Scorer) -> None:  # noqa: F811
    (code,) = blocks("reward.md", "python")
    names: dict[str, Any] = {"__name__": "my_reward"}
    exec(code, names)
    mine = names["WithoutInventedMeasurements"](scorer)
    self_check(mine)
    running = RunningServer(mine)
    reference = "A nodule of 2 cm in the left lung."
    stated, invented = (reference, reference), (reference, "A nodule of 3 cm and one of 4 mm in the left lung.")
    with RewardClient([running.address], timeout_s=30) as client:
        client.wait_until_serving(30)
        assert client.describe().definition == f"{scorer.description.definition}+measurements"
        mine_scores = client.score([stated, invented])
    running.stop()
    plain = scorer.score([stated, invented])
    assert mine_scores[0]["embedded"] == pytest.approx(plain[0]["embedded"])
    assert mine_scores[1]["embedded"] == pytest.approx(plain[1]["embedded"] + 1.0)


def test_the_server_of_the_page_says_where_it_is_and_ends_silently_on_ctrl_c(tmp_path: Path) -> None:
    (code,) = blocks("reward.md", "python")
    assert "port=50051" in code
    (tmp_path / "my_reward.py").write_text(code.replace("port=50051", "port=0"))
    run = subprocess.Popen(
        [sys.executable, "my_reward.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(HOWTO.parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Behind `&` or nohup this process may ignore Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert run.stdout is not None
        address = run.stdout.readline().removeprefix("serving on ").strip()
        with RewardClient([address], timeout_s=30) as client:
            assert client.describe().definition.endswith("+measurements")
            run.send_signal(signal.SIGINT)
            assert run.communicate(timeout=60) == ("", "")
        assert run.returncode == 0
    finally:
        run.kill()


def test_the_advantage_of_the_page_is_one_more_choice_and_passes_its_own_test(monkeypatch: pytest.MonkeyPatch) -> None:
    part, own_table, own_rules, own_test = blocks("algorithm.md", "python")
    assert own_table == '_WITHIN_GROUP = {..., "duels": _duels}\n'
    assert own_rules == 'GROUP_ADVANTAGES = (..., "duels")\n'
    with pytest.raises(UserError, match=r"learner\.rl\.advantage=duels: one of"):
        compose_config(["learner.rl.advantage=duels"])
    names = {**vars(advantages), "pytest": pytest}
    exec(part + own_test, names)
    monkeypatch.setitem(advantages._WITHIN_GROUP, "duels", names["_duels"])
    monkeypatch.setattr(check_rl, "GROUP_ADVANTAGES", (*check_rl.GROUP_ADVANTAGES, "duels"))
    monkeypatch.setattr(check_rl, "ADVANTAGES", (*check_rl.ADVANTAGES, "duels"))
    names["test_duels_count_wins_and_losses_only"]()
    tied = advantages.sequence_advantages("duels", [1.0, 1.0, 0.0], ["a"] * 3, [True] * 3).values
    assert tied.tolist() == pytest.approx([0.5, 0.5, -1.0])
    assert compose_config(["learner.rl.advantage=duels"]).learner.rl.advantage == "duels"
    with pytest.raises(UserError, match="samples_per_study"):
        compose_config(["learner.rl.advantage=duels", "rollout.samples_per_study=1"])
