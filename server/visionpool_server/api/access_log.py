"""One line in the log for each request, once it has ended; for a stream one for all of it.

Health checks and /metrics, asked every few seconds, are left out unless they fail.
"""

from __future__ import annotations

import logging
from typing import Any

from visionpool_server.api.exchange import Exchange
from visionpool_server.api.grpc_exchange import HEALTH as GRPC_HEALTH
from visionpool_server.api.guarded import HEALTH as HTTP_HEALTH

NAME = "visionpool_server.access"

_log = logging.getLogger(NAME)
_PROBES = GRPC_HEALTH | {f"{method} {path}" for method in ("GET", "HEAD") for path in (*HTTP_HEALTH, "/metrics")}
DETAILS = (
    "duration_ms",
    "model",
    "version",
    "peer",
    "caller",
    "trace_id",
    "pictures",
    "received_bytes",
    "frames",
    "failed",
)
_LONGEST = 500  # characters of a path or method


def access_log(exchange: Exchange) -> None:
    """An observer that writes the line."""
    if exchange.kind == "frame" or (exchange.call in _PROBES and exchange.outcome in ("ok", "cancelled")):
        return
    call = exchange.call if len(exchange.call) <= _LONGEST else f"{exchange.call[:_LONGEST]}…"
    record = logging.LogRecord(NAME, logging.INFO, "", 0, "%s %s %s", (call, exchange.status, exchange.outcome), None)
    record.__dict__.update(fields(exchange, call))
    _log.handle(record)


def fields(exchange: Exchange, call: str) -> dict[str, Any]:
    """What is known of it; what is empty is left out."""
    told: dict[str, Any] = {"request_id": exchange.id, "transport": exchange.transport}
    if exchange.transport == "http":
        told["method"], _, told["path"] = call.partition(" ")
    else:
        told["call"] = call
    told |= {"status": exchange.status, "outcome": exchange.outcome, "duration_ms": round(exchange.seconds * 1e3, 3)}
    for name in DETAILS[1:]:
        if value := getattr(exchange, name):
            told[name] = value
    return told
