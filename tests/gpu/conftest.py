"""Fixtures of the tests that need an NVIDIA GPU. Where there is none, each test is skipped with what is missing.

With VISIONPOOL_GPU_STAND_IN=1 they run on tests/fake_cuda.py, tests/fake_tensorrt.py and ONNX Runtime's CPU provider instead:
that shows that the tests themselves are right, and nothing of a GPU. tests/test_gpu_stand_in.py does so, lest a machine that
is lent for minutes be the first to run them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from visionpool.errors import BackendUnavailable
from visionpool_server.backends.onnxruntime import device as ort_device_module
from visionpool_server.backends.onnxruntime.provider import Provider, provider_for
from visionpool_server.backends.tensorrt import backend, deserialized, devices, loading
from visionpool_server.backends.tensorrt.api import Api, find_api
from visionpool_server.cuda.driver import DRIVERS, Driver, open_driver
from visionpool_server.cuda.errors import CudaError, NoDriver
from visionpool_server.cuda.gpu import Gpu

from tests.cpu_kernels import compiled_kernel
from tests.fake_tensorrt import FakeTensorRt
from tests.gpu.stand_in import STAND_IN, build_plan
from tests.ort_device import OrtDriver


@dataclass(frozen=True)
class Missing:
    reason: str


@pytest.fixture(scope="session")
def nvidia() -> Missing | None:
    """None where there is a driver with a device, or what stands in for it."""
    if STAND_IN:
        return None
    try:
        if open_driver().device_count():
            return None
        return Missing("the NVIDIA driver sees no device")
    except (NoDriver, CudaError) as error:
        return Missing(str(error))


@pytest.fixture(autouse=True)
def gpu_or_skip(nvidia: Missing | None) -> None:
    if nvidia:
        pytest.skip(nvidia.reason)


@pytest.fixture
def real() -> None:
    """For what cannot be tried on stand-ins."""
    if STAND_IN:
        pytest.skip("only a GPU shows this")


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory, nvidia: Missing | None) -> OrtDriver | None:
    if not STAND_IN or nvidia:
        return None
    return OrtDriver(compiled_kernel(tmp_path_factory.mktemp("kernel")), seed=6)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest, stand_in: OrtDriver | None) -> Driver:
    """Each Python package for it that is installed."""
    if stand_in:
        if request.param != next(iter(DRIVERS)):
            pytest.skip("one stand-in is enough")
        return stand_in
    try:
        return open_driver(request.param)
    except NoDriver as error:
        pytest.skip(str(error))


@pytest.fixture
def any_driver(stand_in: OrtDriver | None) -> Driver:
    return stand_in or open_driver()


@pytest.fixture
def gpu(driver: Driver) -> Iterator[Gpu]:
    """Current on this thread; in the end all that it held has to be free."""
    with_context = Gpu(driver, 0)  # keeps the context, whose own memory stays
    gpu = Gpu(driver, 0)
    before = with_context.memory()[0]
    with gpu.current():
        yield gpu
    gpu.close()
    gc.collect()
    left = before - with_context.memory()[0]
    with_context.close()
    assert left <= 16 << 20, f"{left} bytes were not freed"  # the first kernel of a context leaves a little


@pytest.fixture
def provider() -> Provider:
    """ONNX Runtime's for CUDA."""
    if STAND_IN:
        return Provider()
    try:
        return provider_for("cuda:0")
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def on_driver(any_driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """What backends open where they look for a GPU."""
    if STAND_IN:
        monkeypatch.setattr(ort_device_module, "open_driver", lambda: any_driver)
        monkeypatch.setattr(devices, "open_driver", lambda: any_driver)
    return any_driver


@pytest.fixture
def api(on_driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Api:
    """TensorRT, or TensorRT-RTX where it has code for this GPU."""
    if isinstance(on_driver, OrtDriver):
        trt = FakeTensorRt(on_driver)
        for module in (backend, deserialized):
            monkeypatch.setattr(module, "find_api", lambda prefer=None: trt.api())
        monkeypatch.setattr(loading, "build_plan", build_plan)
        return trt.api()
    try:
        found = find_api()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    place = on_driver.properties(0)
    if found.targets() and place.capability not in found.targets():
        pytest.skip(f"{found.title} has no code for {place.name}")
    return found


@pytest.fixture
def served_on() -> dict[str, Any]:
    """model.yaml's `runtime` for ONNX Runtime on the GPU, in a server's own process."""
    return {"backend": "onnxruntime", "device": "CPU" if STAND_IN else "cuda:0"}


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where built engines are kept."""
    return tmp_path_factory.mktemp("plans")
