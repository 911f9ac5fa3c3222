"""The rollout actors of a run, as many as are wanted of them at the moment (`actors.scale`).

Contract: the driver's thread alone uses it. An actor that is added is not counted as ready before it has answered; one
that is not wanted any more gets no new work, and ends when it has none. Ids are RLlib's, and never used twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Any

import ray
from ray.exceptions import RayError

_LOG = logging.getLogger(__name__)
_ASK_EVERY_S = 1.0


class Fleet:
    """`group` is RLlib's `EnvRunnerGroup`; `scale` the run's `RolloutScale`, None where the number is fixed."""

    def __init__(self, group: Any, number: int, scale: Any = None) -> None:
        self._group, self._scale = group, scale
        # RLlib's public way to add actors calls them ready at once, and there is none to remove one.
        self._manager = group._worker_manager
        self.wanted = number
        self.leaving: set[int] = set()
        self._call: ray.ObjectRef | None = None
        self._next_call = 0.0

    @property
    def healthy(self) -> set[int]:
        """Those that live, whether or not they are to get work."""
        return set(self._group.healthy_env_runner_ids())

    def follow(self, busy: Collection[int]) -> None:
        """Adds actors or lets some go, as was asked for; ends those that are to go and not `busy`."""
        self._ask()
        kept = [one for one in self._manager.actor_ids() if one not in self.leaving]
        if len(kept) < self.wanted:
            self._add(self.wanted - len(kept))
        # Those that do not serve yet go first, then the youngest.
        healthy = self.healthy
        kept.sort(key=lambda one: (one in healthy, -one))
        self.leaving |= set(kept[: max(0, len(kept) - self.wanted)])
        for one in self.leaving - set(busy):
            ray.kill(self._manager.remove_actor(one))
            self.leaving.remove(one)

    def restore(self) -> list[int]:
        """Looks whether actors that died, or were added, answer; returns the ids of those that do now."""
        if len(self.healthy) == self._manager.num_actors():
            return []
        restored: list[int] = self._group.probe_unhealthy_env_runners()
        return restored

    def _add(self, number: int) -> None:
        before = set(self._manager.actor_ids())
        self._group.add_workers(number)
        for one in set(self._manager.actor_ids()) - before:
            self._manager.set_actor_state(one, healthy=False)

    def _ask(self) -> None:
        """Tells `RolloutScale` how many serve and takes the number that is wanted, without waiting."""
        if self._scale is None:
            return
        if self._call is None and time.monotonic() >= self._next_call:
            self._call = self._scale.report.remote(len(self.healthy - self.leaving), len(self.leaving))
            self._next_call = time.monotonic() + _ASK_EVERY_S
        if self._call is None or not ray.wait([self._call], timeout=0)[0]:
            return
        answered, self._call = self._call, None
        try:
            self.wanted = ray.get(answered)
        except RayError as error:
            _LOG.warning("the rollout actors cannot be scaled any more: %s", error)
            self._scale = None
