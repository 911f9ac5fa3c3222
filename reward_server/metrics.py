"""Prometheus metrics of a reward server: pairs, batch sizes, queue time, and the scorer's own counters.

Contract: one registry a server, nothing global; names begin with `lmrrg_reward_`, times are in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from reward_server.errors import RewardSetupError

_PREFIX = "lmrrg_reward_"
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """What a server counts; its fields are prometheus_client's own metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests, by the status they ended with", ("method", "status"))
        self.pairs = self._counter("pairs", "Pairs, by outcome: scored, explained or error", ("outcome",))
        self.texts = self._counter("texts", "Texts, by outcome: labelled or error", ("outcome",))
        self.dropped = self._counter("dropped_pairs", "Pairs, and texts to label, whose caller went away", ())
        self.batch_pairs = self._histogram("batch_pairs", "Pairs scored together", _BATCH_SIZES)
        self.queue_seconds = self._histogram("queue_seconds", "Wait of a request before it is taken up", _SECONDS)
        self.score_seconds = self._histogram("batch_seconds", "Time of the scorer for a batch", _SECONDS)
        self.waiting = Gauge(f"{_PREFIX}waiting_pairs", "Pairs, and texts to label, that wait", registry=self.registry)

    def watch(self, statistics: Callable[[], Mapping[str, float]]) -> None:
        """Also shows a scorer's counters (`Scorer.statistics`), as they are when somebody looks."""
        self.registry.register(_Statistics(statistics))

    def serve(self, port: int, host: str = "127.0.0.1") -> Callable[[], None]:
        """Serves the metrics over HTTP in a thread; returns what ends it. RewardSetupError if the port is taken."""
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise RewardSetupError(f"--metrics-port {port}: {error.strerror}; choose another") from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(timeout=5)

        return stop

    def _counter(self, name: str, about: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"{_PREFIX}{name}", about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{_PREFIX}{name}", about, buckets=buckets, registry=self.registry)


class _Statistics(Collector):
    def __init__(self, statistics: Callable[[], Mapping[str, float]]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, value in self._statistics().items():
            yield CounterMetricFamily(f"{_PREFIX}scorer_{name}", f"The scorer's counter {name}", value=value)
