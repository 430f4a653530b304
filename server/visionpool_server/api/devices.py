"""GET /v1/devices: where the models run, and what the NVIDIA GPUs among those devices are doing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import APIRouter, Response
from visionpool.errors import BackendUnavailable

from visionpool_server.api.http_vision import responses
from visionpool_server.api.schemas import DeviceList
from visionpool_server.cuda.driver import open_driver
from visionpool_server.cuda.errors import CudaError
from visionpool_server.cuda.monitor import GpuUse, Monitor, buses
from visionpool_server.models.loader import Model
from visionpool_server.models.repository import Repository

log = logging.getLogger(__name__)

_TEXT = """Each device that workers of a model run on. `gpu` is what nvidia-ml says of an NVIDIA GPU just now: memory in bytes,
of all processes (`memory_used`) and of this one (`memory_own`), and the share of the last moments in which it was busy
(`utilization`). It is null for other devices, and where nvidia-ml is not installed; so is each figure that is not told."""


class DevicesApi:
    """`router()` binds its handler. Nothing of NVIDIA's is opened before a model runs there."""

    def __init__(self, models: Repository) -> None:
        self._models = models
        self._monitor: Monitor | None = None

    def devices(self) -> Response:
        """Not async: nvidia-ml is asked on a thread, not on the event loop."""
        found = placed(self._models)
        gpus = self._gpus() if any(name.startswith("cuda:") for name in found) else {}
        for name, entry in found.items():
            entry["gpu"] = asdict(gpus[name]) if name in gpus else None
        return Response(orjson.dumps({"devices": list(found.values())}), media_type="application/json")

    def _gpus(self) -> dict[str, GpuUse]:
        if self._monitor is None:
            self._monitor = Monitor(gpu_buses())
        return {use.device: use for use in self._monitor.read()}

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route(
            "/v1/devices",
            self.devices,
            methods=["GET"],
            summary="The devices that models run on",
            description=_TEXT,
            tags=["models"],
            responses=responses(DeviceList),
        )
        return router


def placed(models: Iterable[Model]) -> dict[str, dict[str, Any]]:
    """By device: the backends, the models and the number of workers there, those for tensors of vision models included."""
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        tensors = model.tensors.loaded if model.tensors else None
        for pool in (model.pool, tensors):
            for group, placement in zip(pool.groups, pool.placements, strict=True) if pool else ():
                empty: dict[str, Any] = {"device": placement.device, "backends": [], "models": [], "workers": 0}
                entry = found.setdefault(placement.device, empty)
                entry["workers"] += group.count
                for key, value in (("backends", placement.backend), ("models", model.name)):
                    if value not in entry[key]:
                        entry[key].append(value)
    return found


def gpu_buses() -> dict[str, str]:
    try:
        return buses(open_driver())
    except (BackendUnavailable, CudaError) as error:
        log.warning("the GPUs' addresses are not known: %s", error)
        return {}
