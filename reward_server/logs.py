"""How the server's log lines look: text with `name=value` fields, or a JSON object a line.

Contract: a line says what happened to how many pairs, never what they say: report text is logged at DEBUG only.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

_FIELD = "fields"


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Named values of a log line: `log.info("scored", extra=fields(pairs=8))`."""
    return {_FIELD: values}


@contextmanager
def logged(form: str, level: int = logging.INFO) -> Iterator[None]:
    """Sends the server's log lines, and those of gRPC in it, to stderr as `form`, "text" or "json"; then as before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    logs = [logging.getLogger(name) for name in ("reward_server", "grpc")]
    before = [(log.handlers[:], log.level, log.propagate) for log in logs]
    for log in logs:
        log.handlers[:], log.propagate = [handler], False
        log.setLevel(level)
    try:
        yield
    finally:
        for log, (handlers, old, propagate) in zip(logs, before, strict=True):
            log.handlers[:], log.propagate = handlers, propagate
            log.setLevel(old)


def _values(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = record.__dict__.get(_FIELD, {})
    return found


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values = "".join(f" {name}={value}" for name, value in _values(record).items())
        line = f"{_time(record)} {record.levelname} {record.getMessage()}{values}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname, "event": record.getMessage(), **_values(record)}
        if record.exc_info is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
