"""Load test of the reward server: many clients on several servers, one of which is killed and started again meanwhile.

    python -m benchmarks.reward_load --seconds 60 --clients 64

Contract: the servers are processes on loopback and the clients threads with connections of their own. Every answer is
compared with the score that its pair has without load. Prints what it measured; status 1 if an answer was wrong,
missing or double, or a client saw an error.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.reports import report_pairs
from reward_server.client import RewardClient
from reward_server.errors import RewardError
from reward_server.scorer import Pair

START_S = 300.0
TOLERANCE = 1e-6
MOST_PAIRS_PER_CALL = 8
# The share of the time after which a server is killed, and after which it is started again.
KILL_AT, RESTART_AT = 0.3, 0.5


@dataclass(frozen=True)
class Load:
    """What is run. `serve`: arguments of `python -m reward_server serve` that choose the backend."""

    seconds: float = 60.0
    clients: int = 64
    servers: int = 3
    pairs: int = 256
    timeout_s: float = 60.0
    serve: tuple[str, ...] = ("--backend", "embedded", "--threads", "1")


@dataclass
class Report:
    """What was seen. `wrong` counts pairs whose score was another, `missing` those without or with more than one."""

    calls: int
    pairs: int
    wrong: int
    missing: int
    errors: list[str]
    pairs_per_s: float
    median_ms: float
    p99_ms: float
    worst_ms: float

    @property
    def clean(self) -> bool:
        return not (self.wrong or self.missing or self.errors)

    def __str__(self) -> str:
        faults = f"wrong scores {self.wrong}, lost or doubled {self.missing}, errors of clients {len(self.errors)}"
        return (
            f"{self.calls} calls, {self.pairs} pairs, {self.pairs_per_s:.0f} pairs/s; latency of a call: median "
            f"{self.median_ms:.0f} ms, 99 % {self.p99_ms:.0f} ms, worst {self.worst_ms:.0f} ms; {faults}"
        )


@dataclass
class _Caller:
    """One client that asks for a few random pairs at a time, again and again."""

    addresses: Sequence[str]
    expected: dict[Pair, dict[str, float]]
    timeout_s: float
    until: float
    seed: int
    latencies: list[float] = field(default_factory=list)
    asked: int = 0
    wrong: int = 0
    missing: int = 0
    errors: list[str] = field(default_factory=list)

    def run(self) -> None:
        draw = random.Random(self.seed)
        pool = list(self.expected)
        with RewardClient(self.addresses, timeout_s=self.timeout_s) as client:
            while time.monotonic() < self.until:
                pairs = draw.sample(pool, draw.randint(1, MOST_PAIRS_PER_CALL))
                started = time.monotonic()
                try:
                    scores = client.score(pairs)
                except RewardError as error:
                    self.errors.append(str(error))
                    continue
                self.latencies.append(time.monotonic() - started)
                self.asked += len(pairs)
                self.missing += abs(len(scores) - len(pairs))
                self.wrong += sum(
                    not _same(score, self.expected[pair]) for pair, score in zip(pairs, scores, strict=False)
                )


def _same(score: dict[str, float], expected: dict[str, float]) -> bool:
    return score.keys() == expected.keys() and all(abs(score[name] - expected[name]) <= TOLERANCE for name in expected)


class Server:
    """A server process on a port of its own."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._arguments, self._log = arguments, log
        self.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        command = [sys.executable, "-m", "reward_server", "serve", "--port", str(self._port), *self._arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait(self) -> None:
        """Until it serves; RuntimeError with its last words if it ended before."""
        deadline = time.monotonic() + START_S
        with RewardClient([self.address]) as client:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise RuntimeError(f"a server ended: {self._log.read_text(errors='replace')[-2000:]}")
                try:
                    return client.wait_until_serving(2.0)
                except RewardError:
                    continue
        raise RuntimeError(f"a server did not start within {START_S:g} s")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self._process.send_signal(number)
        self._process.wait(60)


@contextmanager
def _servers(load: Load) -> Iterator[list[Server]]:
    with tempfile.TemporaryDirectory(prefix="reward-load-") as folder, ExitStack() as stack:
        started: list[Server] = []
        for number in range(load.servers):
            started.append(Server(load.serve, Path(folder) / f"server-{number}.log"))
            stack.callback(started[-1].kill, signal.SIGTERM)
        for server in started:
            server.wait()
        yield started


def run_load(load: Load) -> Report:
    """Runs it once."""
    with _servers(load) as servers:
        pairs = list(dict.fromkeys(report_pairs(load.pairs)))
        with RewardClient([servers[0].address], timeout_s=START_S) as client:
            expected = {pair: client.score([pair])[0] for pair in pairs}
        begin = time.monotonic()
        addresses = [server.address for server in servers]
        callers = [
            _Caller(addresses, expected, load.timeout_s, begin + load.seconds, seed) for seed in range(load.clients)
        ]
        threads = [threading.Thread(target=caller.run) for caller in callers]
        for thread in threads:
            thread.start()
        time.sleep(KILL_AT * load.seconds)
        servers[1].kill()
        time.sleep((RESTART_AT - KILL_AT) * load.seconds)
        servers[1].start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - begin
        servers[1].wait()  # it must have come back
    latencies = sorted(latency for caller in callers for latency in caller.latencies)
    asked = sum(caller.asked for caller in callers)
    return Report(
        calls=len(latencies),
        pairs=asked,
        wrong=sum(caller.wrong for caller in callers),
        missing=sum(caller.missing for caller in callers),
        errors=[error for caller in callers for error in caller.errors],
        pairs_per_s=asked / seconds,
        median_ms=1000 * statistics.median(latencies),
        p99_ms=1000 * latencies[int(0.99 * (len(latencies) - 1))],
        worst_ms=1000 * latencies[-1],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_load", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
    parser.add_argument("--backend", default="embedded")
    args, others = parser.parse_known_args(arguments)
    serve = ("--backend", args.backend, *(others or ("--threads", "1")))
    load = Load(seconds=args.seconds, clients=args.clients, servers=args.servers, serve=serve)
    print(
        f"{load.clients} clients for {load.seconds:g} s on {load.servers} servers ({' '.join(serve)}); one is killed "
        f"after {KILL_AT * load.seconds:g} s and started again after {RESTART_AT * load.seconds:g} s"
    )
    report = run_load(load)
    print(report)
    for error in report.errors[:5]:
        print(f"  error: {error}")
    if args.json:
        Path(args.json).write_text(json.dumps(asdict(load) | asdict(report), indent=2) + "\n")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
