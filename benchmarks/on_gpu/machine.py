"""What the sections measure on: this machine's GPU; in tests, what stands in for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from visionpool_server.backends import Precision
from visionpool_server.backends.tensorrt.api import Api, find_api
from visionpool_server.backends.tensorrt.builder import build_plan
from visionpool_server.backends.tensorrt.messages import unsupported_gpu
from visionpool_server.backends.tensorrt.profiles import Profile
from visionpool_server.backends.tensorrt.settings import TensorRtSettings
from visionpool_server.cuda.driver import DRIVERS, Driver, open_driver
from visionpool_server.cuda.errors import no_device
from visionpool_server.cuda.gpu import Gpu

from benchmarks.on_gpu.models import Models
from benchmarks.processes import Addresses, visionpool

if TYPE_CHECKING:
    from visionpool_server.backends.onnxruntime.provider import Provider

DEVICE = "cuda:0"
Plan = Callable[[Api, Path, Sequence[Profile], Precision | None, Gpu], bytes]


def cuda_provider() -> Provider:
    """ONNX Runtime's. Raises ModuleNotFoundError, BackendUnavailable."""
    from visionpool_server.backends.onnxruntime.provider import provider_for

    return provider_for(DEVICE)


@dataclass(frozen=True, slots=True)
class Machine:
    """`plan`: builds an engine for a GPU; `serve`: a server of a folder of models, ready; `copied`: bytes of a large copy;
    `picture`: height and width of a photograph; `batch`: the least, the usual and the largest one of engines."""

    models: Models
    seconds: float
    drivers: Sequence[str] = tuple(DRIVERS)
    open_driver: Callable[[str | None], Driver] = open_driver
    find_api: Callable[[], Api] = find_api
    plan: Plan | None = None
    serve: Callable[[Path], AbstractContextManager[Addresses]] = visionpool
    provider: Callable[[], Provider] = cuda_provider
    copied: int = 64 << 20
    picture: tuple[int, int] = (1080, 810)
    pictures: Sequence[int] = (1, 8, 32)
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32)
    batch: tuple[int, int, int] = (1, 8, 32)
    concurrency: Sequence[int] = (1, 8, 32)

    def gpu(self, driver: Driver | None = None) -> Gpu:
        """To be closed. Raises NoDriver, CudaError."""
        there = driver or self.driver()
        return Gpu(there, 0, for_libraries=True)

    def driver(self, name: str | None = None) -> Driver:
        """One that has a device. Raises NoDriver."""
        driver = self.open_driver(name)
        if not driver.device_count():
            raise no_device(0, ())
        return driver

    def api(self) -> Api:
        """TensorRT, once a driver was asked for its devices. Raises BackendUnavailable where it has no code for this GPU."""
        place = self.driver().properties(0)
        api = self.find_api()
        if api.targets() and place.capability not in api.targets():
            raise unsupported_gpu(api, place.capability, place.name)
        return api

    def built(self, api: Api, onnx: Path, profiles: Sequence[Profile], precision: Precision | None, gpu: Gpu) -> bytes:
        return (self.plan or built_here)(api, onnx, profiles, precision, gpu)


def built_here(api: Api, onnx: Path, profiles: Sequence[Profile], precision: Precision | None, gpu: Gpu) -> bytes:
    """A plan for this GPU."""
    settings = TensorRtSettings(compute_capability=("current",) if api.rtx else ())
    with gpu.current():
        return build_plan(api, onnx, profiles, settings, precision=precision)
