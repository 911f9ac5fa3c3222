"""What a person sees of a run, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rrg.progress import Show, output_console


def shown(capsys: pytest.CaptureFixture[str], *, told: str) -> list[str]:
    show = Show(output_console())
    with show.phase("reinforcement learning"):
        show.step("RL steps", 1, 2, told)
    return capsys.readouterr().out.splitlines()


def test_a_log_has_one_line_a_step_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    first, step, last = shown(capsys, told="x " * 200)
    assert "reinforcement learning ..." in first
    assert " s    RL steps 1/2  x x x" in step
    assert len(step) > 400
    assert "reinforcement learning took" in last


def test_on_a_terminal_the_line_of_a_step_stays_above_the_bar() -> None:
    screen = io.StringIO()
    show = Show(Console(file=screen, force_terminal=True, width=100))
    with show.phase("reinforcement learning"):
        show.step("RL steps", 1, 2, "reward 0.5")
    assert "RL steps 1/2  reward 0.5" in screen.getvalue()
    assert "1/2" in screen.getvalue().rpartition("reward 0.5")[2]


def test_pieces_outside_of_a_phase_are_told_in_lines() -> None:
    screen = io.StringIO()
    Show(Console(file=screen, force_terminal=True, width=100)).advance("reports", 3, 3)
    assert "reports 3/3" in screen.getvalue()
