"""The server itself: its version, whether it is ready, and whether it is about to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version

from prometheus_client.core import Metric

from visionpool_server.api.metrics.figures import Figures, add_info, gauge, info


class StateFigures(Figures):
    def __init__(self, ready: Callable[[], bool], draining: Callable[[], bool]) -> None:
        self._ready = ready
        self._draining = draining

    def collect(self) -> Iterator[Metric]:
        build = info("visionpool_build", "The server's version.")
        add_info(build, {"version": version("visionpool")})
        yield build
        ready = gauge("visionpool_ready", "1 once all models are loaded, and until the server is told to stop; else 0.")
        ready.add_sample(ready.name, {}, int(self._ready()))
        yield ready
        draining = gauge("visionpool_draining", "1 once the server was told to stop, and finishes what it has; else 0.")
        draining.add_sample(draining.name, {}, int(self._draining()))
        yield draining
