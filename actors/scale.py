"""`python -m actors.scale`: sees and sets the number of rollout actors of a run while it goes on.

Contract: a run has a `RolloutScale`, a named actor that knows how many rollout actors are wanted and, from the driver,
how many serve. The driver follows whenever reports are written: new actors get work as soon as they have started (they
wait in Ray for their place, a demand that an autoscaler sees), others finish what they have, then end. The command
prints every change and ends when as many serve as were asked for.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from reward_server.cluster import add_cluster_arguments, answer_of, connected, find_actor
from reward_server.errors import RewardError, RewardSetupError
from rrg.command import add_debug, carry_out

NAME: Final = "RolloutScale"
_POLL_S: Final = 0.5


@dataclass(frozen=True)
class ScaleStatus:
    """`wanted` rollout actors, at most `most` (every actor needs a study of each step); `serving` and `ending` ones."""

    wanted: int
    most: int
    serving: int = 0
    ending: int = 0

    def __str__(self) -> str:
        ending = f", {self.ending} finish their work" if self.ending else ""
        return f"{self.serving} of {self.wanted} rollout actors serve{ending}"

    @property
    def settled(self) -> bool:
        return self.serving == self.wanted and not self.ending


class RolloutScaleImpl:
    """The actor's class; all methods answer at once."""

    def __init__(self, number: int, most: int) -> None:
        self._status = ScaleStatus(number, most)

    def status(self) -> ScaleStatus:
        return self._status

    def scale(self, number: int) -> None:
        """From now on so many; those that serve are counted anew."""
        self._status = replace(self._status, wanted=number)

    def report(self, serving: int, ending: int) -> int:
        """What the driver sees; returns how many are wanted."""
        self._status = replace(self._status, serving=serving, ending=ending)
        return self._status.wanted


def start_scale(number: int, most: int, namespace: str) -> Any:
    """The run's `RolloutScale`, which lives as long as this handle."""
    import ray

    return (
        ray.remote(RolloutScaleImpl)
        .options(name=NAME, namespace=namespace, num_cpus=0, resources={"node:__internal_head__": 0.001})
        .remote(number, most)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, 2 where the number that was asked for does not serve."""
    args = _parser().parse_args(arguments)
    return carry_out(lambda: _run(args), debug=args.debug, mistakes=(RewardSetupError, RewardError))


def _run(args: argparse.Namespace) -> int:
    with connected(args.ray_address):
        actor, namespace = find_actor(NAME, args.namespace, "rollout actors that can be scaled")
        if args.number is not None:
            _scale(actor, args.number)
        print(f"{_watch(actor, args.number, args.timeout)} in the namespace {namespace}")
    return 0


def _scale(actor: Any, number: int) -> None:
    most = _ask(actor.status.remote()).most
    if not 1 <= number <= most:
        raise RewardSetupError(f"{number} rollout actors: 1 to {most} of them have work (learner.rl.studies_per_step)")
    _ask(actor.scale.remote(number))


def _watch(actor: Any, number: int | None, timeout_s: float) -> ScaleStatus:
    """Prints every change until `number` actors serve; None: looks once."""
    deadline = time.monotonic() + timeout_s
    shown: ScaleStatus | None = None
    while True:
        status: ScaleStatus = _ask(actor.status.remote())
        if number is None or status.settled:
            return status
        if status != shown:
            print(status, flush=True)
        shown = status
        if status.wanted != number:
            raise RewardError(f"someone else has asked for {status.wanted} rollout actors meanwhile")
        if time.monotonic() > deadline:
            raise RewardError(f"waited {timeout_s:g} s: {status}; the others stay wanted")
        time.sleep(_POLL_S)


def _ask(reference: Any) -> Any:
    return answer_of(reference, "the run")


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m actors.scale", description=(__doc__ or "").split("\n")[0])
    made.add_argument("number", type=int, nargs="?", metavar="N", help="rollout actors from now on (default: look)")
    add_cluster_arguments(made)
    add_debug(made)
    return made


if __name__ == "__main__":
    sys.exit(main())
