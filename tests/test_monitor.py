"""What GPUs are doing, by nvidia-ml: asked by PCI address, with what it does not tell left out, and its absence said once.

There is no GPU here: `pynvml` is a stand-in. Its functions are held against those of the real package where that is installed.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from visionpool_server.cuda.monitor import GpuUse, Monitor, buses

from tests.fake_cuda import FakeDriver

A100, H100 = "0000:3b:00.0", "0000:af:00.0"
GIB = 2**30


class NvmlError(Exception):
    """As the real one: its subclasses are named for what happened."""


class FakeNvml(ModuleType):
    """A machine with two GPUs. Handles are their addresses, as NVML writes them."""

    NVMLError = NvmlError

    class NVMLError_NotSupported(NvmlError): ...  # noqa: N801  its name in the package

    class NVMLError_NoPermission(NvmlError): ...  # noqa: N801

    class NVMLError_FunctionNotFound(NvmlError): ...  # noqa: N801

    class NVMLError_LibraryNotFound(NvmlError): ...  # noqa: N801

    class NVMLLibraryMismatchError(Exception): ...

    class NVMLError_GpuIsLost(NvmlError): ...  # noqa: N801

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = 0
        self.fails: dict[str, Exception] = {}  # by function
        self.processes = [
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=3 * GIB),
            SimpleNamespace(pid=1, usedGpuMemory=GIB),
        ]
        self.names = {"00000000:3B:00.0": "NVIDIA A100", "00000000:AF:00.0": "NVIDIA H100"}

    def _asked(self, function: str) -> None:
        if function in self.fails:
            raise self.fails[function]
        assert self.open or function == "nvmlInit", f"{function} without nvmlInit"

    def nvmlInit(self) -> None:
        self._asked("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByPciBusId(self, pciBusId: str) -> str:  # noqa: N803  its name in the package
        self._asked("nvmlDeviceGetHandleByPciBusId")
        domain, _, rest = pciBusId.partition(":")
        handle = f"{int(domain, 16):08X}:{rest.upper()}"
        assert handle in self.names
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:
        self._asked("nvmlDeviceGetName")
        return self.names[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int | None = None) -> Any:
        self._asked("nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(total=80 * GIB, free=75 * GIB, used=5 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        self._asked("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=37, memory=12)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        self._asked("nvmlDeviceGetComputeRunningProcesses")
        return self.processes


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    module = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_each_gpu_is_asked_by_its_address_and_keeps_cudas_number(nvml: FakeNvml) -> None:
    """CUDA_VISIBLE_DEVICES=1,0 turns them round."""
    monitor = Monitor({"cuda:0": H100, "cuda:1": A100})
    figures = (5 * GIB, 80 * GIB, 3 * GIB, 0.37)
    assert monitor.read() == (
        GpuUse("cuda:0", "NVIDIA H100", H100, *figures),
        GpuUse("cuda:1", "NVIDIA A100", A100, *figures),
    )


def test_it_is_opened_once_when_first_read_and_closed_once(nvml: FakeNvml) -> None:
    monitor = Monitor({"cuda:0": A100})
    assert nvml.open == 0
    monitor.read()
    monitor.read()
    assert nvml.open == 1
    monitor.close()
    monitor.close()
    assert nvml.open == 0
    assert monitor.read()
    assert nvml.open == 1


@pytest.mark.parametrize(
    ("function", "without"),
    [
        ("nvmlDeviceGetMemoryInfo", {"memory_used", "memory_total"}),
        ("nvmlDeviceGetUtilizationRates", {"utilization"}),
        ("nvmlDeviceGetComputeRunningProcesses", {"memory_own"}),
    ],
)
@pytest.mark.parametrize(
    "reason",
    [
        FakeNvml.NVMLError_NotSupported,
        FakeNvml.NVMLError_NoPermission,
        FakeNvml.NVMLError_FunctionNotFound,
        FakeNvml.NVMLLibraryMismatchError,
    ],
)
def test_a_figure_that_is_not_told_is_left_out(
    nvml: FakeNvml, function: str, without: set[str], reason: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    nvml.fails[function] = reason()
    (use,) = Monitor({"cuda:0": A100}).read()
    figures = ("memory_used", "memory_total", "memory_own", "utilization")
    assert {name for name in figures if getattr(use, name) is None} == without
    assert not warnings(caplog)


@pytest.mark.parametrize("processes", [[], [SimpleNamespace(pid=1, usedGpuMemory=7)]])
def test_in_a_container_the_driver_does_not_know_this_process_by_its_number(nvml: FakeNvml, processes: Any) -> None:
    nvml.processes = processes
    assert Monitor({"cuda:0": A100}).read()[0].memory_own is None


def test_where_windows_hides_a_processs_memory_it_is_left_out(nvml: FakeNvml) -> None:
    nvml.processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)]
    assert Monitor({"cuda:0": A100}).read()[0].memory_own is None


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByPciBusId", "nvmlDeviceGetMemoryInfo"])
def test_what_fails_is_said_once_and_tried_again(
    nvml: FakeNvml, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor({"cuda:0": A100})
    nvml.fails[function] = FakeNvml.NVMLError_GpuIsLost("GPU is lost")
    assert monitor.read() == monitor.read() == ()
    assert warnings(caplog) == ["memory and utilization of the GPUs are not known: GPU is lost"]
    nvml.fails.clear()
    assert len(monitor.read()) == 1


def test_without_the_package_nothing_is_known_and_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monitor = Monitor({"cuda:0": A100})
    assert monitor.read() == monitor.read() == ()
    (said,) = warnings(caplog)
    assert "nvidia-ml-py" in said


def test_the_addresses_are_the_drivers() -> None:
    driver = FakeDriver(devices=2)
    assert buses(driver) == {"cuda:0": driver.properties(0).bus, "cuda:1": driver.properties(1).bus}
    assert buses(FakeDriver(devices=0)) == {}


real = pytest.mark.skipif(find_spec("pynvml") is None, reason="nvidia-ml-py is not installed")


@real
def test_the_stand_in_has_the_real_packages_functions() -> None:
    import pynvml

    for name in (name for name in vars(FakeNvml) if name.startswith("nvml")):
        theirs = inspect.signature(inspect.unwrap(getattr(pynvml, name)))
        ours = inspect.signature(getattr(FakeNvml(), name))
        assert list(theirs.parameters) == list(ours.parameters), name
    for name in (name for name in vars(FakeNvml) if name.startswith("NVMLError_")):
        assert issubclass(getattr(pynvml, name), pynvml.NVMLError)
    assert issubclass(pynvml.NVMLLibraryMismatchError, Exception)
    assert {"total", "used"} <= {name for name, _ in pynvml.c_nvmlMemory_t._fields_}
    assert "gpu" in {name for name, _ in pynvml.c_nvmlUtilization_t._fields_}
    assert {"pid", "usedGpuMemory"} <= {name for name, *_ in pynvml.c_nvmlProcessInfo_v3_t._fields_}


@real
def test_the_real_package_without_a_driver_is_no_accident(caplog: pytest.LogCaptureFixture) -> None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        assert Monitor({"cuda:0": A100}).read() == ()
        assert warnings(caplog) == [f"memory and utilization of the GPUs are not known: {error}"]
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has nvidia-ml")
