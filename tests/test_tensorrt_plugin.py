"""Layers of one's own: the documented example, with TensorRT's own classes and without a GPU, and how plugins are loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from visionpool.errors import InvalidModel
from visionpool_server.backends.tensorrt.plugins import load_plugins
from visionpool_server.cuda.compiler import compile_kernels
from visionpool_server.cuda.driver import Grid
from visionpool_server.cuda.gpu import Gpu

from tests.cpu_kernels import compiled_kernel
from tests.fake_cuda import FakeDriver, Span

EXAMPLE = Path(__file__).parent.parent / "examples/tensorrt_plugin/soft_threshold.py"
KERNEL = EXAMPLE.with_suffix(".cu")


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soft_threshold", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def creator(example: ModuleType) -> Iterator[Any]:
    """The example in the registry of TensorRT-RTX, whose plugin interfaces are TensorRT's; taken out again."""
    trt = pytest.importorskip("tensorrt_rtx")
    made = example.register(trt)
    registry = trt.get_plugin_registry()
    try:
        found = registry.get_creator(example.NAME, example.VERSION, "")
        assert found is not None
        yield found
    finally:
        registry.deregister_creator(made)


def plugin_of(creator: Any, threshold: float) -> Any:
    trt = pytest.importorskip("tensorrt_rtx")
    field = trt.PluginField("threshold", np.array([threshold], np.float32), trt.PluginFieldType.FLOAT32)
    return creator.create_plugin("layer", trt.PluginFieldCollection([field]), trt.TensorRTPhase.BUILD)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_kernel_compiles(arch: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    assert compile_kernels(KERNEL.read_text(), arch).startswith(b"\x7fELF")


def test_the_creator_reads_the_attribute(creator: Any) -> None:
    plugin = plugin_of(creator, 0.25)
    assert plugin.threshold == 0.25
    assert plugin.clone().threshold == 0.25
    (field,) = plugin.get_fields_to_serialize()
    assert (field.name, float(field.data[0])) == ("threshold", 0.25)


def test_the_layer_computes_on_the_stream_that_it_is_given(
    creator: Any, example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's source on the CPU, through the plugin's `enqueue` and a driver that does things only when waited for."""
    driver = FakeDriver()
    driver.kernel("soft_threshold", compiled_kernel(tmp_path, source=KERNEL, name="soft_threshold"), touched)
    monkeypatch.setattr(example, "open_driver", lambda: driver)
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 11)).astype(np.float32)
    plugin, gpu = plugin_of(creator, 0.5), Gpu(driver, 0)
    with gpu.current():
        stream, host, source, target = gpu.stream(), gpu.pinned(x.nbytes), gpu.buffer(x.nbytes), gpu.buffer(x.nbytes)
        host.bytes[:] = x.view(np.uint8).ravel()
        source.upload(host, x.nbytes, stream)
        tensor = SimpleNamespace(dims=x.shape)
        plugin.enqueue([tensor], [tensor], [source.address], [target.address], 0, stream.handle)
        target.download(host, x.nbytes, stream)
        stream.synchronize()
        y = host.bytes.view(np.float32).reshape(x.shape).copy()
        plugin.kernel.driver.unload_module(plugin.kernel.module)
    gpu.close()
    np.testing.assert_array_equal(y, np.sign(x) * np.maximum(np.abs(x) - np.float32(0.5), 0))
    driver.assert_clean()


def touched(grid: Grid, block: Grid, arguments: Sequence[np.generic]) -> tuple[list[Span], list[Span]]:
    """What a launch of the example's kernel reads and writes."""
    x, y, _, count = arguments
    return [Span(int(x), 4 * int(count))], [Span(int(y), 4 * int(count))]


class Registry:
    """TensorRT's, as far as loading goes."""

    def load_library(self, path: str) -> object | None:
        return None if "broken" in path else object()


def api(*, rtx: bool = False) -> Any:
    registry = Registry()
    return SimpleNamespace(trt=SimpleNamespace(get_plugin_registry=lambda: registry), rtx=rtx)


def test_python_files_are_registered_once(tmp_path: Path) -> None:
    file = tmp_path / "layer.py"
    file.write_text(
        "calls = []\ndef register(trt):\n    calls.append(trt)\n    trt.registered = len(calls)\n    return calls\n"
    )
    found = api()
    load_plugins(found, [file])
    load_plugins(found, [file])
    assert found.trt.registered == 1


def test_libraries_go_to_tensorrt(tmp_path: Path) -> None:
    library = tmp_path / "libgood.so"
    library.touch()
    load_plugins(api(), [library])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.so", None, "is no file"),
        ("broken.so", "", "TensorRT cannot load broken.so"),
        ("empty.py", "", "has no attribute 'register'"),
        ("wrong.py", "1/0", "ZeroDivisionError"),
        ("syntax.py", "def", "SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidModel, match=message):
        load_plugins(api(), [path])


def test_tensorrt_rtx_takes_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="TensorRT-RTX takes no plugins"):
        load_plugins(api(rtx=True), [tmp_path / "libgood.so"])
