"""Both ways to the CUDA driver, and what is held on a GPU, without one: on a libcuda.so.1 of our own (tests/fake_libcuda).

It proves what is called, in which order, with which arguments, what becomes of errors, and that all is freed. It does not prove
what NVIDIA's driver and devices do. Each scenario has a process of its own: the library is chosen when a process starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from visionpool_server.cuda import driver
from visionpool_server.cuda.driver import open_driver
from visionpool_server.cuda.errors import CudaError, NoDriver, OutOfMemory, refused

from tests.fake_libcuda import build, compiler

LAYERS = [
    pytest.param(
        "cuda-bindings",
        marks=pytest.mark.skipif(not driver._installed("cuda.bindings"), reason="cuda-bindings is not installed"),
    ),
    pytest.param(
        "pycuda",
        marks=pytest.mark.skipif(
            not driver._installed("pycuda"), reason="pycuda is not installed: it has to be compiled"
        ),
    ),
]
SCENARIOS = (
    *(
        "devices",
        "contexts_nest",
        "contexts_of_threads",
        "device_twice",
        "kept_for_libraries",
        "memory",
        "copies",
        "streams_wait",
        "events_time",
    ),
    *(
        "kernels",
        "others_run_while_one_waits",
        "threads_share_a_device",
        "every_call_fails",
        "lost_device",
        "left_open_at_exit",
    ),
)
GRAPHS = {"cuda-bindings": ("graphs", "captures_that_fail"), "pycuda": ("no_graphs",)}
TELLING = ("memory", "copies", "lost_device", "every_call_fails")  # on stderr, of misuse or of what could not be freed
COUNT = """
import sys
from visionpool.errors import VisionpoolError
from visionpool_server.cuda.driver import open_driver
from visionpool_server.cuda.gpu import Gpu
try:
    Gpu(open_driver(sys.argv[1]), 2)
except VisionpoolError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libcuda.so.1 and kernels.so."""
    if sys.platform != "linux":
        pytest.skip("the fake libcuda.so.1 is found by Linux' loader")
    if not compiler():
        pytest.skip("no C compiler is installed to build the fake libcuda.so.1")
    folder = tmp_path_factory.mktemp("libcuda")
    build(folder)
    return folder


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process, with warnings as errors, whose libcuda.so.1 is the one in `folder`."""
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": path, **environment},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def said_without_device(folder: Path, layer: str, **environment: str) -> str:
    """What a Gpu says that is asked for the third device."""
    done = python(folder, "-c", COUNT, layer, **environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_driver_does_what_it_is_asked_and_leaves_nothing(fake: Path, layer: str, scenario: str) -> None:
    done = python(fake, "-m", "tests.fake_libcuda", layer, scenario, str(fake / "kernels.so"))
    assert done.returncode == 0, done.stderr
    assert scenario in TELLING or not done.stderr, done.stderr


@pytest.mark.parametrize("layer", LAYERS)
def test_a_stream_can_be_captured_where_the_package_has_graphs(fake: Path, layer: str) -> None:
    for scenario in GRAPHS[layer]:
        done = python(fake, "-m", "tests.fake_libcuda", layer, scenario, str(fake / "kernels.so"))
        assert done.returncode == 0, done.stderr
        assert not done.stderr


@pytest.mark.parametrize("layer", LAYERS)
def test_without_a_driver_it_says_what_to_install(tmp_path: Path, layer: str) -> None:
    (tmp_path / "libcuda.so.1").touch()  # found first, and no library: whatever driver this machine has is not loaded
    said = said_without_device(tmp_path, layer)
    assert said.startswith(
        "NoDriver there is no NVIDIA driver on this machine: libcuda.so.1 is not found (install NVIDIA's"
    )
    assert "--gpus all" in said
    assert "container toolkit" in said


@pytest.mark.parametrize("layer", LAYERS)
def test_a_driver_that_lacks_functions_is_too_old(fake: Path, tmp_path: Path, layer: str) -> None:
    (tmp_path / "empty.c").write_text("int nothing;")
    command = [compiler() or "cc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "empty.c")]
    subprocess.run(command, check=True)
    said = said_without_device(tmp_path, layer)
    assert said.startswith(f"NoDriver the NVIDIA driver is too old for {layer}: ")
    assert "update the driver" in said


@pytest.mark.skipif(not driver._installed("cuda.bindings"), reason="cuda-bindings is not installed")
def test_a_function_that_the_driver_lacks_is_named(fake: Path) -> None:
    said = said_without_device(fake, "cuda-bindings", FAKE_CUDA_LACKS="cuDeviceGetCount")
    assert said.startswith("NoDriver the NVIDIA driver is too old for cuda-bindings: ")
    assert "cuDeviceGetCount" in said


@pytest.mark.parametrize("layer", LAYERS)
def test_devices_that_are_not_there_are_told_from_those_that_are(fake: Path, layer: str) -> None:
    there = "the driver sees cuda:0 (Fake GPU 0), cuda:1 (Fake GPU 1)"
    assert said_without_device(fake, layer) == f"NoDriver there is no device cuda:2 ({there})"
    said = said_without_device(fake, layer, FAKE_CUDA_DEVICES="0")
    assert said.startswith("NoDriver there is no device cuda:2 (the driver sees none: look at CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("status", "name", "remedy"),
    [
        (34, "CUDA_ERROR_STUB_LIBRARY", "LD_LIBRARY_PATH"),
        (802, "CUDA_ERROR_SYSTEM_NOT_READY", "nvidia-fabricmanager"),
        (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "restart"),
        (999, "CUDA_ERROR_UNKNOWN", "nvidia-uvm"),
        (2, "CUDA_ERROR_OUT_OF_MEMORY", "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_start_says_why(fake: Path, layer: str, status: int, name: str, remedy: str) -> None:
    said = said_without_device(fake, layer, FAKE_CUDA_INIT=str(status))
    assert said.startswith(f"NoDriver the NVIDIA driver does not start: cuInit: {name} (")
    assert remedy in said


def test_without_a_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_installed", lambda package: False)
    with pytest.raises(NoDriver, match=r"cuda-bindings or pycuda \(pip install 'visionpool\[server,cuda\]'"):
        open_driver()
    with pytest.raises(NoDriver, match=r"is installed: pycuda \("):
        open_driver("pycuda")
    with pytest.raises(NoDriver, match=r"no CUDA interface is called 'cupy' \(there are cuda-bindings, pycuda"):
        open_driver("cupy")


def test_what_the_driver_refuses_is_typed_and_explained() -> None:
    error = refused("cuModuleLoadData", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION")
    assert type(error) is CudaError
    assert str(error).startswith("cuModuleLoadData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (the driver is older than")
    assert str(refused("cuInit", "CUDA_ERROR_TIMEOUT")) == "cuInit: CUDA_ERROR_TIMEOUT"
    assert type(refused("cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY")) is OutOfMemory
    assert not error.sticky
    assert refused("cuStreamSynchronize", "CUDA_ERROR_ECC_UNCORRECTABLE").sticky
