"""Requests counted by model, transport and outcome: told by both transports, once for each, when it has ended."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric
from visionpool.errors import VisionpoolError

from visionpool_server.api.exchange import Exchange
from visionpool_server.api.metrics.figures import Figures, add_spread, add_total, counter, histogram
from visionpool_server.histogram import Histogram
from visionpool_server.models.repository import Repository

OK, _UNKNOWN = "ok", "internal_error"
TRANSPORTS = ("http", "grpc")


class RequestCounts(Figures):
    """`observe` runs on the event loop only, and needs no lock. What it has counted of a model stays when that is unloaded:
    the counts are the server's, and there are no more names than models were served."""

    def __init__(self, models: Repository) -> None:
        self._models = models
        self._counts: dict[tuple[str, str, str], int] = {}
        self._seconds: dict[tuple[str, str], Histogram] = {}

    def observe(self, exchange: Exchange) -> None:
        if not exchange.counts:
            return
        key: tuple[str, str, str] = (exchange.model, exchange.transport, exchange.outcome)
        try:
            self._counts[key] += 1
        except KeyError:
            key = self._checked(*key)
            self._counts[key] = self._counts.get(key, 0) + 1
        if key[2] == OK:  # a refusal takes no time: it would make a server that is overloaded look quick
            self._spent(key[0], key[1]).observe(exchange.seconds)

    def _checked(self, model: str, transport: str, outcome: str) -> tuple[str, str, str]:
        """What becomes a label for the first time: were a caller's words ever among it, there would be no end to them."""
        known = model == "" or self._models.find(model) is not None
        return model if known else "", transport, outcome if outcome in outcomes() else _UNKNOWN

    def _spent(self, model: str, transport: str) -> Histogram:
        found = self._seconds.get((model, transport))
        if found is None:
            found = self._seconds[model, transport] = Histogram()
        return found

    def collect(self) -> Iterator[Metric]:
        served = [(model.name, transport, OK) for model in self._models for transport in TRANSPORTS]
        counts = (
            dict.fromkeys(served, 0) | self._counts
        )  # those at 0 are there so that the first request is an increase
        total = counter("visionpool_requests", "Requests that have ended, by how they did.")
        for (model, transport, outcome), count in sorted(counts.items()):
            add_total(total, {"model": model, "transport": transport, "outcome": outcome}, count)
        yield total
        seconds = histogram(
            "visionpool_request_duration_seconds",
            "Seconds from a request's head to its answer, of those that succeeded.",
        )
        for (model, transport), spent in sorted(self._seconds.copy().items()):
            add_spread(seconds, {"model": model, "transport": transport}, spent.spread())
        yield seconds


def outcomes() -> frozenset[str]:
    """All that a request can end with: "ok", or the code of an error."""
    kinds = [VisionpoolError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    return frozenset(kind.code for kind in kinds) | {OK}
