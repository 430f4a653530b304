"""TensorRT, or TensorRT-RTX: ONNX Runtime's numbers; engines are built, kept, shared, and refused where they must be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from visionpool.errors import InvalidModel, InvalidRequest
from visionpool_server.backends import ImageInput, LoadOptions, ShapeRange, Source
from visionpool_server.backends.survey import open_survey
from visionpool_server.backends.tensorrt import TensorRtBackend, loading, survey
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.engine import TensorRtEngine
from visionpool_server.backends.tensorrt.messages import UnusablePlan
from visionpool_server.backends.tensorrt.plans import read_plan
from visionpool_server.cuda.driver import Driver
from visionpool_server.cuda.gpu import Gpu
from visionpool_server.imaging.recipe import Arithmetic, Letterbox, Recipe

from tests import tiny_models
from tests.gpu.stand_in import STAND_IN
from tests.tiny_models import Graph

EXAMPLE = Path(__file__).parents[2] / "examples/tensorrt_plugin/soft_threshold.py"
SIDE = tiny_models.SIZE
CLOSE = 1e-3  # relative and absolute, of f32 without TF32
_VERSION = slice(24, 28)  # of a plan's header


@contextmanager
def engine_of(path: Path, plans: Path, **options: Any) -> Iterator[TensorRtEngine]:
    said = LoadOptions(device="cuda:0", cache_dir=plans, **options)
    engine = TensorRtBackend().load(Source(path), said)
    try:
        yield engine
    finally:
        engine.close()


def assert_close(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=CLOSE, atol=CLOSE)


def expected(path: Path, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = session.run(None, feeds)
    return outputs


def images(rows: int, seed: int = 0, side: int = SIDE) -> dict[str, NDArray[Any]]:
    return {"images": np.random.default_rng(seed).random((rows, 3, side, side), np.float32)}


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    return tiny_models.yolov5(tmp_path / "detector.onnx")


def test_numbers_are_those_of_onnxruntime(api: Api, detector: Path, plans: Path) -> None:
    with engine_of(detector, plans, max_batch_size=8) as engine, closing(engine.clone()) as context:
        waiting = []
        for seed, rows in enumerate((1, 8, 3, 3, 5, 1)):
            feeds = images(rows, seed)
            waiting.append((context.begin(feeds), expected(detector, feeds)))
            if len(waiting) == 2:
                check(*waiting.pop(0))
        check(*waiting.pop())


def check(pending: Any, wanted: list[NDArray[Any]]) -> None:
    for ours, theirs in zip(pending.outputs().values(), wanted, strict=True):
        assert_close(ours, theirs)


def test_half_precision_stays_near(api: Api, detector: Path, plans: Path) -> None:
    if not STAND_IN:
        pytest.importorskip("onnxconverter_common")
    with engine_of(detector, plans, max_batch_size=8, precision="f16") as engine, closing(engine.clone()) as context:
        feeds = images(8, 3)
        (ours,), (theirs,) = context.infer(feeds).values(), expected(detector, feeds)
        assert np.abs(ours - theirs).max() <= 2e-2 * np.abs(theirs).max()


def test_an_engine_is_built_once_and_then_kept(
    api: Api, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = images(2)
    with engine_of(detector, tmp_path / "cache") as engine, closing(engine.clone()) as context:
        first = next(iter(context.infer(images(1)).values())).copy()
    assert list((tmp_path / "cache").rglob("*.plan"))

    def refuse(*arguments: Any, **more: Any) -> bytes:
        raise AssertionError("it is built anew")

    monkeypatch.setattr(loading, "build_plan", refuse)
    with engine_of(detector, tmp_path / "cache") as engine, closing(engine.clone()) as context:
        np.testing.assert_array_equal(next(iter(context.infer(images(1)).values())), first)
    with pytest.raises(AssertionError, match="built anew"), engine_of(detector, tmp_path / "cache", max_batch_size=2):
        assert feeds


def test_cuda_graphs_change_no_number(api: Api, detector: Path, plans: Path) -> None:
    answers = []
    for graphs in (False, True):
        options = {"cuda_graphs": graphs}
        with (
            engine_of(detector, plans, max_batch_size=4, options=options) as engine,
            closing(engine.clone()) as context,
        ):
            answers.append(
                [
                    next(iter(context.infer(images(rows, seed)).values())).copy()
                    for seed, rows in enumerate((1, 1, 1, 4, 4, 4, 1, 2, 2, 2, 4))
                ]
            )
    for without, with_graphs in zip(*answers, strict=True):
        np.testing.assert_array_equal(with_graphs, without)


def heavy(path: Path, *, layers: int = 4, width: int = 2048) -> Path:
    """64 MiB of weights, and next to no activations."""
    graph = Graph()
    value = graph.input("x", ["n", width])
    random = np.random.default_rng(0)
    for _ in range(layers):
        weights = graph.constant(random.normal(0, width**-0.5, (width, width)).astype(np.float32))
        value = graph.add("MatMul", value, weights)
    graph.add("Identity", value, output="y")
    graph.output("y", ["n", width])
    return graph.save(path)


def test_contexts_share_the_weights_of_one_engine(api: Api, any_driver: Driver, plans: Path, tmp_path: Path) -> None:
    path = heavy(tmp_path / "heavy.onnx", width=512 if STAND_IN else 2048)
    weights = path.stat().st_size
    watch = Gpu(any_driver, 0, for_libraries=True)
    x = np.random.default_rng(1).standard_normal((1, 512 if STAND_IN else 2048), np.float32)
    before = watch.memory()[0]
    with engine_of(path, plans) as engine:
        free, contexts = [], []
        for _ in range(4):
            contexts.append(engine.clone())
            (y,) = contexts[-1].infer({"x": x}).values()
            np.testing.assert_allclose(y, expected(path, {"x": x})[0], rtol=1e-2, atol=1e-3)
            free.append(watch.memory()[0])
        assert before - free[0] >= weights * 0.9
        assert (free[0] - free[3]) / 3 <= weights / 8, free
        for context in contexts:
            context.close()
    with engine_of(path, plans):  # all that stays in the process has been loaded by now
        pass
    once = watch.memory()[0]
    with engine_of(path, plans):
        pass
    assert once - watch.memory()[0] <= 4 << 20
    watch.close()


def test_profiles_are_chosen_by_shape_and_others_refused(api: Api, plans: Path, tmp_path: Path) -> None:
    path = tiny_models.plain(tmp_path / "m.onnx", shape=("n", "h", "w"), op="Relu")
    profiles = tuple(
        {"x": ShapeRange((low, 4, 4), (best, 8, 8), (high, 16, 16))} for low, best, high in ((1, 1, 2), (3, 8, 16))
    )
    with engine_of(path, plans, profiles=profiles) as engine, closing(engine.clone()) as context:
        for shape in ((1, 4, 4), (16, 16, 16), (2, 9, 5), (3, 4, 16), (8, 8, 8), (1, 16, 4)):
            x = np.random.default_rng(0).standard_normal(shape, np.float32)
            (ours,) = context.infer({"x": x}).values()
            np.testing.assert_allclose(ours, np.maximum(x, 0), rtol=1e-6)
        with pytest.raises(InvalidRequest, match=r"no profile .*17, 8, 8"):
            context.infer({"x": np.zeros((17, 8, 8), np.float32)})
        x = np.ones((2, 4, 4), np.float32)
        np.testing.assert_allclose(next(iter(context.infer({"x": x}).values())), x)


def found(path: Path) -> Path:
    """Where x is positive, and twice x: the size of the first follows from the numbers."""
    graph = Graph()
    x = graph.input("x", ["n", 5])
    graph.add("NonZero", graph.add("Greater", x, graph.constant(0.0)), output="where")
    graph.add("Mul", x, graph.constant(2.0), output="twice")
    graph.output("where", [2, "m"], TensorProto.INT64)
    graph.output("twice", ["n", 5])
    return graph.save(path)


def suppressed(path: Path) -> Path:
    graph = Graph()
    boxes, scores = graph.input("boxes", [1, 20, 4]), graph.input("scores", [1, 1, 20])
    limits = (graph.constant([50], np.int64), graph.constant([0.5]), graph.constant([0.2]))
    graph.add("NonMaxSuppression", boxes, scores, *limits, output="kept")
    graph.output("kept", ["kept", 3], TensorProto.INT64)
    return graph.save(path)


@contextmanager
def or_skipped(engine: Any) -> Iterator[TensorRtEngine]:
    """An operator that this TensorRT lacks is no failure here: TensorRT-RTX has fewer."""
    try:
        entered = engine.__enter__()
    except InvalidModel as error:
        if "has no layer for" in error.message:
            pytest.skip(error.message)
        raise
    try:
        yield entered
    finally:
        engine.__exit__(None, None, None)


def test_outputs_of_any_size_are_allocated(api: Api, plans: Path, tmp_path: Path) -> None:
    path, random = found(tmp_path / "m.onnx"), np.random.default_rng(4)
    profile = {"x": ShapeRange((1, 5), (8, 5), (64, 5))}
    with or_skipped(engine_of(path, plans, profiles=(profile,))) as engine, closing(engine.clone()) as context:
        for rows in (1, 64, 2, 40, 40, 64):
            x = random.standard_normal((rows, 5), np.float32) if rows != 2 else -np.ones((2, 5), np.float32)
            ours, theirs = context.infer({"x": x}), expected(path, {"x": x})
            np.testing.assert_array_equal(ours["where"], theirs[0])
            np.testing.assert_allclose(ours["twice"], theirs[1])


def test_suppressed_boxes_are_as_many_as_there_are(api: Api, plans: Path, tmp_path: Path) -> None:
    path, random = suppressed(tmp_path / "m.onnx"), np.random.default_rng(6)
    with or_skipped(engine_of(path, plans)) as engine, closing(engine.clone()) as context:
        for _ in range(6):
            corners = np.sort(random.uniform(0, 10, (1, 20, 2, 2)), axis=2).reshape(1, 20, 4).astype(np.float32)
            feeds = {"boxes": corners, "scores": random.uniform(0, 1, (1, 1, 20)).astype(np.float32)}
            ours, (theirs,) = context.infer(feeds)["kept"], expected(path, feeds)
            assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


def test_pictures_that_the_gpu_prepares_give_what_the_cpu_gives(api: Api, detector: Path, plans: Path) -> None:
    recipe = Recipe((Letterbox((SIDE, SIDE)),), Arithmetic())
    image = ImageInput("images", "NCHW", recipe.arithmetic, (SIDE, SIDE), unprepared=True)
    originals = [np.random.default_rng(seed).integers(0, 256, (30 + 8 * seed, 70, 3), np.uint8) for seed in range(5)]
    waiting = np.empty(len(originals), object)
    waiting[:] = [recipe.on_gpu().prepare(one)[0][()] for one in originals]
    prepared = np.stack([recipe.prepare(one)[0] for one in originals])
    tensor = recipe.arithmetic.apply(prepared, "NCHW", np.dtype(np.float32))
    with engine_of(detector, plans, image=image) as engine, closing(engine.clone()) as context:
        (ours,) = context.infer({"images": waiting}).values()
        np.testing.assert_allclose(ours, expected(detector, {"images": tensor})[0], rtol=0.02, atol=0.05)


def test_a_plan_of_another_version_is_refused(api: Api, detector: Path, tmp_path: Path) -> None:
    with engine_of(detector, tmp_path / "cache"):
        pass
    (kept,) = (tmp_path / "cache").rglob("*.plan")
    plan = read_plan(kept).plan
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "model.plan"
    other.write_bytes(plan[: _VERSION.start] + bytes([10, 0, 0, 1]) + plan[_VERSION.stop :])
    with pytest.raises(UnusablePlan) as raised, engine_of(other, tmp_path / "none"):
        pass
    assert "visionpool build" in str(raised.value)


def test_layers_and_their_times_are_told(
    api: Api, detector: Path, plans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if STAND_IN:
        monkeypatch.setattr(survey, "find_api", lambda prefer=None: api)
    made = open_survey("tensorrt", Source(detector), LoadOptions(device="cuda:0", cache_dir=plans))
    assert made is not None
    timings = made.profile(images(1), 0.2)
    assert timings and all(timing.ms > 0 and timing.device == "cuda:0" for timing in timings)
    assert any(timing.precision == "f32" for timing in timings)


def test_the_plugin_of_the_example_computes(api: Api, real: None, plans: Path, tmp_path: Path) -> None:
    if not api.plugins:
        pytest.skip(f"{api.title} takes no plugins")
    import onnx
    from onnx import helper

    sizes = ["n", 6, 7]
    graph = helper.make_graph(
        [helper.make_node("SoftThreshold", ["x"], ["y"], threshold=0.5)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    with engine_of(path, plans, plugins=(EXAMPLE,), max_batch_size=4) as engine, closing(engine.clone()) as context:
        for rows in (1, 4, 2, 4):
            x = np.random.default_rng(rows).standard_normal((rows, 6, 7), np.float32)
            (y,) = context.infer({"x": x}).values()
            np.testing.assert_allclose(y, np.sign(x) * np.maximum(np.abs(x) - 0.5, 0), rtol=1e-6, atol=1e-6)
