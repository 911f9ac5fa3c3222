"""A signal ends a run where it can be saved, in time, and a second one at once; tried on real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learner.stopping import Signals

# A run of steps of argv[1] seconds that can be saved (in argv[2] seconds) between them; the step under way is slow to
# notice anything, as a native call is.
RUN = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who runs the tests may have it ignored
import sys, time
from pathlib import Path
from learner.stopping import Interrupted, Signals
step_s, save_s = float(sys.argv[1]), float(sys.argv[2])
def save():
    print("saving", flush=True)
    time.sleep(save_s)
    return Path("checkpoints/step_1")
try:
    with Signals(grace_s=1.0, save_s=2.0, limit_s=4.0) as signals:
        if step_s < 0:
            class Dropping:
                def __del__(self):  # the interpreter drops what is raised here
                    print("ready", flush=True)
                    time.sleep(0.5)
            Dropping()
            try:
                time.sleep(30)
            finally:
                time.sleep(1.2)
                print("cleaned up", flush=True)
        if step_s == 0:
            print("ready", flush=True)
            time.sleep(30)
        with signals.finishing_steps():
            while True:
                print("ready", flush=True)
                time.sleep(step_s)
                print("step done", flush=True)
                signals.leave_if_asked(save)
except Interrupted as interrupted:
    print(interrupted, flush=True)
    if len(sys.argv) > 3:
        time.sleep(30)  # hangs on the way out
    sys.exit(interrupted.status)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> tuple[str, int, float]:
    """What it printed, its status, and how long it took."""
    output, _, code, took = ended_saying(process)
    return output, code, took


def ended_saying(process: subprocess.Popen[str]) -> tuple[str, str, int, float]:
    """As `ended`, with what it said on stderr in second place."""
    begun = time.monotonic()
    output, said = process.communicate(timeout=30)
    return output, said, process.returncode, time.monotonic() - begun


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_the_step_under_way_ends_and_is_saved(signum: signal.Signals, status: int) -> None:
    process = start("0.3", "0")
    process.send_signal(signum)
    output, code, _ = ended(process)
    assert code == status
    assert output.count("step done") == output.count("saving") == 1
    assert f"{signum.name}: the step under way was finished and saved: {Path('checkpoints/step_1')}" in output


def test_a_step_that_takes_too_long_is_cut_off_and_nothing_is_saved() -> None:
    process = start("20", "0")
    process.send_signal(signal.SIGTERM)
    output, code, took = ended(process)
    assert code == 143
    assert "saving" not in output
    assert "did not end within 1 s; the newest checkpoint stays" in output
    assert 0.8 < took < 3


def test_a_checkpoint_that_takes_too_long_is_given_up() -> None:
    process = start("0.3", "20")
    process.send_signal(signal.SIGTERM)
    output, code, took = ended(process)
    assert code == 143
    assert "could not be written in time" in output
    assert took < 4


def test_where_nothing_is_to_be_saved_the_run_ends_at_once() -> None:
    process = start("0", "0")
    process.send_signal(signal.SIGTERM)
    output, code, took = ended(process)
    assert code == 143
    assert "nothing was under way" in output
    assert took < 0.8


def test_a_second_signal_ends_the_process_without_another_word() -> None:
    process = start("20", "0")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, code, took = ended(process)
    assert code == -signal.SIGINT
    assert output == ""
    assert took < 0.8


def test_what_hangs_on_the_way_out_does_not_hold_the_process() -> None:
    process = start("0", "0", "hang")
    process.send_signal(signal.SIGTERM)
    _, said, code, took = ended_saying(process)
    assert code == 143
    assert said.endswith("SIGTERM: did not end within 4 s, killed; the newest checkpoint stays\n")
    assert 3 < took < 20


def test_an_exception_that_the_interpreter_drops_is_raised_again_but_not_into_what_cleans_up() -> None:
    process = start("-1", "0")
    process.send_signal(signal.SIGINT)
    output, said, code, _ = ended_saying(process)
    assert "Exception ignored in" in said
    assert code == 130
    assert "cleaned up" in output
    assert "SIGINT: nothing was under way" in output


@pytest.mark.parametrize(("step_s", "answer"), [("20", "finishing the step, then saving"), ("0", "ending")])
def test_a_signal_is_answered_at_once(step_s: str, answer: str) -> None:
    process = start(step_s, "0")
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert process.stderr.readline() == f"SIGINT: {answer}; once more kills\n"
    assert time.monotonic() - begun < 0.5
    process.kill()
    process.communicate()


def test_without_a_signal_nothing_is_saved_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals() as signals, signals.finishing_steps():
        assert signal.getsignal(signal.SIGTERM) not in before
        signals.leave_if_asked(lambda: pytest.fail("saved"))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
