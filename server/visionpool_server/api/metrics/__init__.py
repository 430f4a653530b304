"""What a server tells Prometheus, put together here: counts of requests, the models' own figures, GPUs, and the process.

    transports -> RequestCounts ─┐
    models     -> ModelFigures  ─┼─> one registry of our own -> /metrics
    GPUs       -> GpuFigures    ─┘

docs/metrics.md lists every metric. Labels are names of models that are served, codes of our errors, and devices: nothing that a
caller says becomes one.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from visionpool_server.api.metrics.endpoint import MetricsEndpoint
from visionpool_server.api.metrics.gpus import GpuFigures
from visionpool_server.api.metrics.models import ModelFigures
from visionpool_server.api.metrics.requests import RequestCounts
from visionpool_server.api.metrics.state import StateFigures
from visionpool_server.models.repository import Repository

__all__ = ["Metrics"]


class Metrics:
    """`observe` is told of every exchange that has ended, on the event loop; `endpoint` answers scrapes. `ready()`: as
    /health/ready; `draining()`: whether the server was told to stop. `close()` it once nobody scrapes any more."""

    def __init__(
        self, models: Repository, *, ready: Callable[[], bool], draining: Callable[[], bool] = lambda: False
    ) -> None:
        requests = RequestCounts(models)
        self.observe = requests.observe
        self._gpus = GpuFigures(models)
        registry = CollectorRegistry()  # not prometheus_client's own, which all servers in a process would share
        for collector in (StateFigures(ready, draining), requests, ModelFigures(models), self._gpus):
            registry.register(collector)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.endpoint = MetricsEndpoint(registry)

    def close(self) -> None:
        self._gpus.close()
