"""The NVIDIA GPUs that models run on, by nvidia-ml. Nothing of NVIDIA's is opened before a model runs there."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock

from prometheus_client.core import Metric

from visionpool_server.api.devices import gpu_buses, placed
from visionpool_server.api.metrics.figures import Figures, add_info, gauge, info
from visionpool_server.cuda.monitor import GpuUse, Monitor
from visionpool_server.models.repository import Repository


class GpuFigures(Figures):
    def __init__(self, models: Repository) -> None:
        self._models = models
        self._monitor: Monitor | None = None
        self._lock = Lock()

    def collect(self) -> Iterator[Metric]:
        used = set(placed(self._models))
        uses = [use for use in self._read() if use.device in used] if any(map(_is_nvidias, used)) else []
        gpus = info("visionpool_gpu", "An NVIDIA GPU that models run on, by name and PCI address.")
        for use in uses:
            add_info(gpus, {"device": use.device, "name": use.name, "bus": use.bus})
        yield gpus
        yield _told("visionpool_gpu_memory_total_bytes", "Memory of the GPU.", uses, "memory_total")
        yield _told("visionpool_gpu_memory_used_bytes", "Memory of the GPU in use by any process.", uses, "memory_used")
        yield _told("visionpool_gpu_memory_own_bytes", "Memory of the GPU in use by this process.", uses, "memory_own")
        text = "Share of the last moments in which the GPU ran anything of any process, 0 to 1."
        yield _told("visionpool_gpu_utilization_ratio", text, uses, "utilization")

    def _read(self) -> tuple[GpuUse, ...]:
        with self._lock:
            if self._monitor is None:
                self._monitor = Monitor(gpu_buses())
            return self._monitor.read()

    def close(self) -> None:
        with self._lock:
            monitor, self._monitor = self._monitor, None
        if monitor:
            monitor.close()


def _is_nvidias(device: str) -> bool:
    return device.startswith("cuda:")


def _told(name: str, text: str, uses: list[GpuUse], attribute: str) -> Metric:
    """Without those GPUs that do not tell."""
    metric = gauge(name, text)
    for use in uses:
        value = getattr(use, attribute)
        if value is not None:
            metric.add_sample(name, {"device": use.device}, value)
    return metric
