"""A reward server that takes its time: the `embedded` backend, and so many seconds of sleep a pair.

`python -m benchmarks.slow_reward --seconds-per-pair 0.1 [--port P]`: stands for a reward that is computed elsewhere (a
GPU server, an LLM judge): it is slow without taking this machine's cores. Prints its address, serves until a signal.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Mapping, Sequence

from reward_server.explanation import Explanation
from reward_server.scorer import Description, Labels, Pair, Scorer, ScorerOptions
from reward_server.selfcheck import load_scorer
from reward_server.server import RewardServer


class SlowScorer:
    """A scorer that sleeps before it scores."""

    def __init__(self, scorer: Scorer, seconds_per_pair: float) -> None:
        self._scorer = scorer
        self._seconds_per_pair = seconds_per_pair

    @property
    def description(self) -> Description:
        return self._scorer.description

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        time.sleep(self._seconds_per_pair * len(pairs))
        return self._scorer.score(pairs)

    def label(self, texts: Sequence[str]) -> list[Labels]:
        return self._scorer.label(texts)

    def explain(self, pairs: Sequence[Pair]) -> list[Explanation]:
        return self._scorer.explain(pairs)

    def statistics(self) -> Mapping[str, float]:
        return self._scorer.statistics()


async def _serve(seconds_per_pair: float, port: int) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = RewardServer()
    bound = await server.start(port=port)
    scorer = await asyncio.to_thread(load_scorer, ScorerOptions("embedded"))
    await server.serve(SlowScorer(scorer, seconds_per_pair))
    print(f"127.0.0.1:{bound}", flush=True)
    await stopped.wait()
    await server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.slow_reward", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seconds-per-pair", type=float, required=True, metavar="S")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="0 picks a free one")
    args = parser.parse_args()
    asyncio.run(_serve(args.seconds_per_pair, args.port))


if __name__ == "__main__":
    main()
