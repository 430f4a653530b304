"""Small models as engines of the fake TensorRT, and what ONNX Runtime makes of the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto
from visionpool_server.backends import LoadOptions
from visionpool_server.backends.tensorrt.engine import TensorRtEngine
from visionpool_server.backends.tensorrt.settings import TensorRtSettings
from visionpool_server.cuda.gpu import Gpu

from tests.fake_cuda import FakeDriver
from tests.fake_tensorrt import FakeTensorRt, make_plan
from tests.tiny_models import Graph

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Made:
    """`plan` of `model`, an ONNX file."""

    model: bytes
    plan: bytes

    def expected(self, batch: Mapping[str, NDArray[Any]]) -> Batch:
        session = _session(self.model)
        names = [node.name for node in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(batch)), strict=True))

    @property
    def kinds(self) -> list[str]:
        return [node.op_type for node in onnx.load_from_string(self.model).graph.node]


@cache
def _session(model: bytes) -> Any:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


def as_bytes(graph: Graph) -> bytes:
    with TemporaryDirectory() as folder:
        return graph.save(Path(folder) / "m.onnx").read_bytes()


@cache
def sums(profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 8),), *, detailed: bool = True) -> Made:
    """x (N, 6) float32, y (N, 6) int64 -> mixed (N, 6) float32, above (N,) bool. `profiles`: of N."""
    graph = Graph()
    x, y = graph.input("x", ["n", 6]), graph.input("y", ["n", 6], TensorProto.INT64)
    mixed = graph.add("Add", graph.add("Mul", x, graph.constant(3.0)), graph.add("Cast", y, to=1), output="mixed")
    total = graph.add("ReduceSum", mixed, graph.constant([1], np.int64), keepdims=0)
    graph.add("Greater", total, graph.constant(0.0), output="above")
    graph.output("mixed", ["n", 6])
    graph.output("above", ["n"], TensorProto.BOOL)
    model = as_bytes(graph)
    said = [dict.fromkeys(("x", "y"), ((low, 6), (best, 6), (high, 6))) for low, best, high in profiles]
    return Made(model, make_plan(model, said, detailed=detailed))


def sums_batch(rows: int, seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(size=(rows, 6)).astype(np.float32),
        "y": random.integers(-9, 9, (rows, 6)),
    }


@cache
def found() -> Made:
    """x (N, 5) float32 -> where (2, M) int64, of which M is told only by the numbers, and twice (N, 5)."""
    graph = Graph()
    x = graph.input("x", ["n", 5])
    graph.add("NonZero", graph.add("Greater", x, graph.constant(0.0)), output="where")
    graph.add("Mul", x, graph.constant(2.0), output="twice")
    graph.output("where", [2, "m"], TensorProto.INT64)
    graph.output("twice", ["n", 5])
    model = as_bytes(graph)
    return Made(model, make_plan(model, [{"x": ((1, 5), (2, 5), (64, 5))}], open=["where"]))


@cache
def reshaped() -> Made:
    """x (N, 12) float32, shape (2,) int64, read in RAM -> y of that shape."""
    graph = Graph()
    x, shape = graph.input("x", ["n", 12]), graph.input("shape", [2], TensorProto.INT64)
    graph.add("Reshape", graph.add("Neg", x), shape, output="y")
    graph.output("y", ["a", "b"])
    model = as_bytes(graph)
    profile = {"x": ((1, 12), (2, 12), (4, 12))}
    return Made(model, make_plan(model, [profile], host={"shape": ((1, 1), (4, 6), (48, 48))}))


@cache
def halves() -> Made:
    """x (2, 3) float16 -> y (2, 3) float16, all shapes fixed."""
    graph = Graph()
    graph.add("Neg", graph.input("x", [2, 3], TensorProto.FLOAT16), output="y")
    graph.output("y", [2, 3], TensorProto.FLOAT16)
    model = as_bytes(graph)
    return Made(model, make_plan(model))


@cache
def scaled(rows: tuple[int, int, int] = (1, 2, 8), *, height: int = 12, width: int = 16) -> Made:
    """images (N, 3, H, W) float32, ratio (N, 2) float32 -> blurred, as large, and means (N, 3), both by the ratio."""
    graph = Graph(3)
    images, ratio = graph.input("images", ["n", 3, height, width]), graph.input("ratio", ["n", 2])
    blurred = graph.add("AveragePool", images, kernel_shape=[3, 3], pads=[1] * 4)
    factor = graph.add("ReduceSum", ratio, graph.constant([1], np.int64), keepdims=1)
    each = graph.add("Unsqueeze", factor, graph.constant([2, 3], np.int64))
    graph.add("Mul", blurred, each, output="blurred")
    graph.add("Mul", graph.add("ReduceMean", images, axes=[2, 3], keepdims=0), factor, output="means")
    graph.output("blurred", ["n", 3, height, width])
    graph.output("means", ["n", 3])
    model = as_bytes(graph)
    shapes = {
        "images": tuple((n, 3, height, width) for n in rows),
        "ratio": tuple((n, 2) for n in rows),
    }
    return Made(model, make_plan(model, [shapes]))  # type: ignore[list-item]  # three of each


@dataclass
class Bench:
    """An engine on fakes."""

    made: Made
    driver: FakeDriver
    trt: FakeTensorRt
    engine: TensorRtEngine


@contextmanager
def engine_of(
    made: Made,
    *,
    driver: FakeDriver | None = None,
    seed: int = 0,
    graphs: bool = True,
    options: LoadOptions | None = None,
    settings: TensorRtSettings | None = None,
) -> Iterator[Bench]:
    """Closed in the end, and then nothing may be left, nor any mistake have been made."""
    driver = driver or FakeDriver(seed=seed, graphs=graphs)
    trt = FakeTensorRt(driver)
    said = options or LoadOptions(device="cuda:0")
    engine = TensorRtEngine(trt.api(), made.plan, said, settings or TensorRtSettings(), Gpu(driver, 0))
    try:
        yield Bench(made, driver, trt, engine)
    finally:
        driver.forgive()
        engine.close()
    driver.assert_clean()
