"""The onnxruntime backend on NVIDIA GPUs: binding, copies, waiting and closing on a fake driver; and what is missing is named.

Every number is compared with a session of its own, fed with NumPy arrays. On a GPU, tests/gpu does the same.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from visionpool.errors import BackendUnavailable, InvalidModel
from visionpool.results import DetectionResult
from visionpool_server.app import offline
from visionpool_server.backends import DeepContext, ImageInput, LoadOptions, Source, Tensors, get_backend
from visionpool_server.backends.onnxruntime import OnnxRuntimeBackend, device, libraries
from visionpool_server.backends.onnxruntime.context import OnnxRuntimeContext
from visionpool_server.backends.onnxruntime.engine import OnnxRuntimeEngine, load_on
from visionpool_server.backends.onnxruntime.provider import CUDA, Provider, provider_for
from visionpool_server.backends.onnxruntime.survey import OnnxRuntimeSurvey
from visionpool_server.cuda.errors import CudaError, NoDriver, OutOfMemory
from visionpool_server.cuda.gpu import Gpu
from visionpool_server.families import NO_OPTIONS
from visionpool_server.imaging.recipe import Arithmetic, Letterbox, Recipe
from visionpool_server.imaging.unprepared import NotOnGpu, Unprepared
from visionpool_server.models.loader import Defaults
from visionpool_server.service import Ask

from tests import tiny_models
from tests.cpu_kernels import CpuKernel, compiled_kernel
from tests.fake_cuda import FakeDriver
from tests.ort_device import OrtDriver, engine_on
from tests.ort_sessions import reference_session
from tests.tiny_models import SIZE, Graph, picture

Arrays = dict[str, NDArray[Any]]
IMAGENET = Arithmetic(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BGR = Arithmetic(1 / 255, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bgr")
RANDOM = np.random.default_rng(5)


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> CpuKernel:
    return compiled_kernel(tmp_path_factory.mktemp("kernel"))


@pytest.fixture(params=range(3))
def driver(request: pytest.FixtureRequest) -> Iterator[OrtDriver]:
    """In three orders of all that are allowed. In the end nothing is left on it."""
    driver = OrtDriver(seed=request.param)
    yield driver
    gc.collect()
    driver.assert_clean()


@pytest.fixture
def drawing(kernel: CpuKernel) -> Iterator[OrtDriver]:
    """With the kernel that prepares pictures."""
    driver = OrtDriver(kernel)
    yield driver
    gc.collect()
    driver.assert_clean()


def expected(path: Path, feeds: Tensors) -> Arrays:
    session = reference_session(path)
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, dict(feeds))), strict=True))


def assert_same(ours: Tensors, theirs: Tensors, within: float = 1e-6) -> None:
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert (value.dtype, value.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert np.allclose(value, theirs[name], rtol=within, atol=within), name


def context_of(engine: OnnxRuntimeEngine) -> DeepContext:
    context = engine.clone()
    assert isinstance(context, DeepContext)
    return context


# Tensors


def floats(*shape: int) -> NDArray[np.float32]:
    return RANDOM.normal(0, 1, shape).astype(np.float32)


def scaled(path: Path) -> Path:
    """y = x * factor: a scalar beside a batch."""
    graph = Graph()
    graph.add("Mul", graph.input("x", ["n", 3]), graph.input("factor", []), output="y")
    graph.output("y", ["n", 3])
    return graph.save(path)


def mixed(path: Path) -> Path:
    """y = flags ? a : half, of int64, bool and float16; `total` has no dimensions."""
    graph = Graph()
    graph.input("a", ["n", 4], TensorProto.INT64)
    graph.input("half", ["n", 4], TensorProto.FLOAT16)
    graph.input("flags", ["n", 4], TensorProto.BOOL)
    whole = graph.add("Cast", "half", to=TensorProto.INT64)
    graph.add("Where", "flags", "a", whole, output="y")
    graph.output("y", ["n", 4], TensorProto.INT64)
    graph.add("Cast", graph.add("ReduceSum", "half", keepdims=0), output="total", to=TensorProto.FLOAT16)
    graph.output("total", [], TensorProto.FLOAT16)
    graph.add("Not", "flags", output="turned")
    graph.output("turned", ["n", 4], TensorProto.BOOL)
    return graph.save(path)


def suppressed(path: Path) -> Path:
    """Non-maximum suppression: how many rows come out depends on the numbers."""
    graph = Graph()
    boxes, scores = graph.input("boxes", [1, "n", 4]), graph.input("scores", [1, 1, "n"])
    limits = (graph.constant([50], np.int64), graph.constant([0.5]), graph.constant([0.2]))
    graph.add("NonMaxSuppression", boxes, scores, *limits, output="kept")
    graph.output("kept", ["kept", 3], TensorProto.INT64)
    return graph.save(path)


def boxes(count: int) -> Arrays:
    corners = np.sort(RANDOM.uniform(0, 10, (1, count, 2, 2)), axis=2).reshape(1, count, 4).astype(np.float32)
    return {"boxes": corners, "scores": RANDOM.uniform(0, 1, (1, 1, count)).astype(np.float32)}


def mixture(rows: int) -> Arrays:
    half = RANDOM.integers(-9, 9, (rows, 4)).astype(np.float16)
    return {"a": RANDOM.integers(-9, 9, (rows, 4)), "half": half, "flags": RANDOM.random((rows, 4)) > 0.5}


MODELS: dict[str, tuple[Callable[[Path], Path], Callable[[int], Arrays]]] = {
    "one input": (tiny_models.plain, lambda rows: {"x": floats(rows, 3)}),
    "a fixed batch": (lambda p: tiny_models.plain(p, shape=(4, 3)), lambda _: {"x": floats(4, 3)}),
    "two inputs": (tiny_models.two_by_two, lambda rows: {"a": floats(rows, 4), "b": floats(rows, 4)}),
    "any size": (
        lambda p: tiny_models.plain(p, shape=("n", "h", "w"), op="Relu"),
        lambda rows: {"x": floats(rows, 2 + rows, 9 - rows)},
    ),
    "nothing named": (lambda p: tiny_models.plain(p, shape=(None, None)), lambda rows: {"x": floats(rows, rows + 1)}),
    "a scalar": (scaled, lambda rows: {"x": floats(rows, 3), "factor": np.array(rows, np.float32)}),
    "several types": (mixed, mixture),
    "suppression": (suppressed, lambda rows: boxes(7 * rows)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_batch_gets_the_answers_of_a_plain_session(kind: str, driver: OrtDriver, tmp_path: Path) -> None:
    make, feeds = MODELS[kind]
    path = make(tmp_path / "m.onnx")
    engine = engine_on(driver, path)
    contexts = [context_of(engine) for _ in range(2)]
    for rows in (2, 1, 3, 3, 2, 5):
        for context in contexts:
            given = feeds(rows)
            theirs = expected(path, given)
            assert_same(context.infer(given), theirs)
    for context in contexts:
        context.close()
    engine.close()


@pytest.mark.parametrize("kind", MODELS)
def test_batches_that_overlap_keep_apart(kind: str, driver: OrtDriver, tmp_path: Path) -> None:
    """As a worker does: the next one begins, then the last one's outputs are asked for; they stay until `depth` more have
    begun. Arrays may be overwritten once `begin` is back."""
    make, feeds = MODELS[kind]
    path = make(tmp_path / "m.onnx")
    engine = engine_on(driver, path)
    context = context_of(engine)
    assert context.depth == 2
    waiting: list[tuple[Any, Arrays]] = []
    shown: list[tuple[Tensors, Arrays]] = []
    for rows in (1, 3, 2, 2, 4, 1, 1):
        given = feeds(rows)
        theirs = expected(path, given)
        waiting.append((context.begin(given), theirs))
        for array in given.values():
            array[...] = 0
        if len(waiting) == context.depth:
            pending, of_it = waiting.pop(0)
            shown.append((pending.outputs(), of_it))
            assert_same(*shown[-1])
    pending, theirs = waiting.pop()
    shown.append((pending.outputs(), theirs))
    for outputs, of_it in shown[-2:]:
        assert_same(outputs, of_it)
    context.close()
    engine.close()


def test_the_next_batch_is_on_its_way_before_the_last_one_runs(driver: OrtDriver, tmp_path: Path) -> None:
    engine = engine_on(driver, tiny_models.plain(tmp_path / "m.onnx"))
    context = context_of(engine)
    first = context.begin({"x": floats(2, 3)})
    waited = driver.calls["synchronize"] + driver.calls["synchronize_event"]
    second = context.begin({"x": floats(2, 3)})
    told = [work for work in driver.history if work.name == "upload"]
    assert not told[-1].done  # the stream has it, and nobody has waited
    assert (
        driver.calls["synchronize"] + driver.calls["synchronize_event"] == waited + 1
    )  # for what its memory held before
    first.outputs()
    second.outputs()
    context.close()
    engine.close()


def test_memory_is_taken_once_for_the_largest_batch(driver: OrtDriver, tmp_path: Path) -> None:
    engine = engine_on(driver, tiny_models.two_by_two(tmp_path / "m.onnx"))
    context = context_of(engine)
    for rows in (8, 8, 64, 64):
        context.infer({"a": floats(rows, 4), "b": floats(rows, 4)})
    taken = driver.bytes_held("device"), driver.bytes_held("pinned"), driver.calls["allocate_pinned"]
    assert taken[:2] == (2 * 2 * 64 * 16, 2 * 4 * 64 * 16)  # two batches' inputs, and on the host their outputs too
    for rows in (64, 1, 33, 64, 7):
        context.infer({"a": floats(rows, 4), "b": floats(rows, 4)})
    assert taken == (driver.bytes_held("device"), driver.bytes_held("pinned"), driver.calls["allocate_pinned"])
    context.close()
    engine.close()


def test_outputs_lie_in_pinned_memory(driver: OrtDriver, tmp_path: Path) -> None:
    engine = engine_on(driver, tiny_models.two_by_two(tmp_path / "m.onnx"))
    context = context_of(engine)
    outputs = context.infer({"a": floats(5, 4), "b": floats(5, 4)})
    assert all(driver.is_pinned(value.ctypes.data) for value in outputs.values())
    context.close()
    engine.close()


def test_no_rows_are_rows_too(driver: OrtDriver, tmp_path: Path) -> None:
    path = tiny_models.two_by_two(tmp_path / "m.onnx")
    engine = engine_on(driver, path)
    context = context_of(engine)
    given = {"a": floats(0, 4), "b": floats(0, 4)}
    assert_same(context.infer(given), expected(path, given))
    context.close()
    engine.close()


def below_one(path: Path) -> Path:
    """The values of `x` (n) below one: the file says that there are n, and so there are of the zeros it is tried on."""
    graph = Graph()
    graph.input("x", ["n"])
    graph.add("Compress", "x", graph.add("Less", "x", graph.constant(1.0)), output="y")
    graph.add("Neg", "x", output="z")
    graph.output("y", ["n"])
    graph.output("z", ["n"])
    return graph.save(path)


def positive(path: Path) -> Path:
    """The positive values of `x`: the file says that all are, and of zeros none is."""
    graph = Graph()
    graph.input("x", ["n"])
    graph.add("Compress", "x", graph.add("Greater", "x", graph.constant(0.0)), output="y")
    graph.output("y", ["n"])
    return graph.save(path)


@pytest.mark.parametrize("make", [below_one, positive])
def test_a_file_that_is_wrong_about_a_shape_is_not_believed(
    make: Callable[[Path], Path], driver: OrtDriver, tmp_path: Path
) -> None:
    path = make(tmp_path / "m.onnx")
    engine = engine_on(driver, path)
    context = context_of(engine)
    for values in ([0.5, 0.25], [0.5, 3.0, -2.0], [5.0, 6.0], [-1.0], [2.0, 0.1, 4.0]):
        given = {"x": np.array(values, np.float32)}
        assert_same(context.infer(given), expected(path, given))
    context.close()
    engine.close()


@pytest.mark.parametrize(
    "given",
    [
        {"a": np.zeros((2, 4), np.float32)},
        {"a": np.zeros((2, 4), np.float32), "b": np.zeros((2, 5), np.float32)},
        {"a": np.zeros((2, 4), np.float32), "b": np.zeros((3, 4), np.float32)},
        {"a": np.zeros((2, 4), np.float32), "b": np.zeros((2, 4), np.float64)},
        {"a": np.zeros((2, 4), np.float32), "b": np.zeros((2, 4), object)},
        {"a": np.zeros((2, 4), np.float32), "c": np.zeros((2, 4), np.float32)},
    ],
    ids=["missing", "columns", "rows", "type", "objects", "name"],
)
def test_a_batch_that_does_not_fit_fails_alone(given: Arrays, driver: OrtDriver, tmp_path: Path) -> None:
    path = tiny_models.two_by_two(tmp_path / "m.onnx")
    engine = engine_on(driver, path)
    context = context_of(engine)
    with pytest.raises(Exception, match=r".+") as caught:
        context.infer(given)
    assert not isinstance(caught.value, CudaError)
    good = {"a": floats(2, 4), "b": floats(2, 4)}
    for _ in range(3):
        assert_same(context.infer(good), expected(path, good))
    context.close()
    engine.close()


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.BFLOAT16])
def test_what_cannot_be_bound_is_left_to_onnxruntime(kind: int, driver: OrtDriver, tmp_path: Path) -> None:
    engine = engine_on(driver, tiny_models.plain(tmp_path / "m.onnx", kind))
    context = engine.clone()
    assert isinstance(context, OnnxRuntimeContext)
    given = np.array([[b"a", b"bc", b""]], object) if kind == TensorProto.STRING else None
    if given is None:
        from ml_dtypes import bfloat16

        given = np.array([[1, 2, 3]], bfloat16)
    assert context.infer({"x": given})["y"].tolist() == given.tolist()
    engine.close()


# Pictures

VISION: dict[str, Callable[[Path], Path]] = {
    "yolov5": tiny_models.yolov5,
    "picodet": tiny_models.picodet,
    "paddle_detector": tiny_models.paddle_detector,
    "one picture at a time": lambda path: tiny_models.yolov8(path, batch=1),
    "NHWC": lambda path: tiny_models.classifier(path, size=SIZE, layout="NHWC"),
    "float16": lambda path: tiny_models.classifier(path, size=SIZE, kind=TensorProto.FLOAT16),
    "float64": lambda path: tiny_models.classifier(path, size=SIZE, kind=TensorProto.DOUBLE),
    "any size": lambda path: tiny_models.classifier(path, size=None),
}


def image_of(path: Path, arithmetic: Arithmetic, **options: Any) -> ImageInput:
    spec = next(spec for spec in get_backend("onnxruntime").read(Source(path)).inputs if spec.rank == 4)
    layout: Any = "NHWC" if spec.shape and spec.shape[3] == 3 else "NCHW"
    return ImageInput(spec.name, layout, arithmetic, (SIZE, SIZE), **options)


def model_tensor(path: Path, pictures: NDArray[Any], arithmetic: Arithmetic) -> Arrays:
    """What the model takes for these pictures (N, H, W, 3), by the recipe's formula in float64."""
    image = image_of(path, arithmetic)
    values = pictures.astype(np.float64)[..., :: -1 if arithmetic.channels == "bgr" else 1]
    values = (values * arithmetic.scale - np.array(arithmetic.mean)) / np.array(arithmetic.std)
    if image.layout == "NCHW":
        values = values.transpose(0, 3, 1, 2)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
    feeds = {image.name: np.ascontiguousarray(values.astype(kinds[session.get_inputs()[0].type]))}
    if any(node.name == "scale_factor" for node in session.get_inputs()):
        feeds["scale_factor"] = np.tile(np.array([[0.5, 0.25]], np.float32), (len(pictures), 1))
    return feeds


def beside(feeds: Arrays, image: ImageInput, pictures: NDArray[Any]) -> Arrays:
    return {name: pictures if name == image.name else value for name, value in feeds.items()}


@pytest.mark.parametrize("arithmetic", [IMAGENET, BGR], ids=["imagenet", "bgr"])
@pytest.mark.parametrize("kind", VISION)
def test_prepared_pictures_become_the_models_tensor_on_the_device(
    kind: str, arithmetic: Arithmetic, drawing: OrtDriver, tmp_path: Path
) -> None:
    path = VISION[kind](tmp_path / "m.onnx")
    image = image_of(path, arithmetic)
    engine = engine_on(drawing, path, image=image)
    context = context_of(engine)
    for count in (1,) if kind == "one picture at a time" else (1, 3, 2):
        pictures = np.stack([picture(SIZE, SIZE, seed) for seed in range(count)])
        feeds = model_tensor(path, pictures, arithmetic)
        within = 2e-2 if kind == "float16" else 1e-4  # a sum of float16 inputs, each of which may be rounded otherwise
        for batch in (pictures, pictures.astype(np.float32)):
            assert_same(context.infer(beside(feeds, image, batch)), expected(path, feeds), within)
    assert drawing.calls["launch"] > 0 or kind == "float64"  # which the kernel does not make
    context.close()
    engine.close()


def test_pictures_as_they_were_decoded_are_resized_on_the_device(drawing: OrtDriver, tmp_path: Path) -> None:
    path = tiny_models.yolov5(tmp_path / "m.onnx")
    image = image_of(path, IMAGENET, unprepared=True)
    engine = engine_on(drawing, path, image=image, max_batch_size=4)
    context = context_of(engine)
    recipe = Recipe((Letterbox((SIZE, SIZE)),))
    originals = [picture(height, width, 7) for height, width in ((64, 64), (97, 31), (300, 200), (128, 128))]
    batch = np.empty(len(originals), object)
    batch[:] = [recipe.on_gpu().prepare(each)[0][()] for each in originals]
    assert all(isinstance(each, Unprepared) for each in batch)
    prepared = np.stack([recipe.prepare(each)[0] for each in originals])
    feeds = model_tensor(path, prepared, IMAGENET)
    assert_same(context.infer({image.name: batch}), expected(path, feeds), 1e-4)
    context.close()
    engine.close()


def test_a_type_that_the_kernel_does_not_make_cannot_be_prepared_there(drawing: OrtDriver, tmp_path: Path) -> None:
    path = tiny_models.classifier(tmp_path / "m.onnx", size=SIZE, kind=TensorProto.DOUBLE)
    with pytest.raises(NotOnGpu, match="float64"):
        engine_on(drawing, path, image=image_of(path, IMAGENET, unprepared=True))


@pytest.mark.parametrize(
    ("name", "prepare_on"),
    [("yolov5n", "cpu"), ("yolov5n", "gpu"), ("yolov5n_dyn", "cpu"), ("picodet_s_320", "cpu")],  # cubic: not on the GPU
)
def test_real_detectors_find_the_boxes_that_they_find_on_the_cpu(
    name: str, prepare_on: str, testdata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawing: OrtDriver
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file in (testdata / "models" / name).iterdir():
        (folder / file.name).symlink_to(file)
    said = (folder / "model.yaml").read_text() if (folder / "model.yaml").exists() else ""
    (folder / "model.yaml").unlink(missing_ok=True)
    on_cpu = boxes_of(folder, said, testdata, "CPU")
    monkeypatch.setattr(OnnxRuntimeBackend, "load", lambda _, source, options: load_on_fake(drawing, source, options))
    on_gpu = boxes_of(folder, f"{said}\nruntime: {{prepare_on: {prepare_on}}}\n", testdata, "cuda:0")
    assert drawing.calls["launch"] > 0
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert len(theirs.boxes) > 1
        assert ours.label_ids == theirs.label_ids
        assert np.abs(np.array(ours.boxes) - np.array(theirs.boxes)).max() < 1e-2
        assert np.abs(np.array(ours.scores) - np.array(theirs.scores)).max() < 1e-4


def boxes_of(folder: Path, said: str, testdata: Path, where: str) -> list[DetectionResult]:
    (folder / "model.yaml").write_text(said or "{}")
    found = []
    with offline([folder], Defaults(device=where, backend="onnxruntime", workers=1), max_pixels=50_000_000) as service:
        (model,) = service.models
        for photo in ("bus.jpg", "dog.jpg"):
            image = cv2.imread(str(testdata / "images" / "photos" / photo))
            data = cv2.imencode(".png", image)[1].tobytes()
            result = asyncio.run(service.predict(model, data, Ask(NO_OPTIONS, timeout=100))).result
            assert isinstance(result, DetectionResult)
            found.append(result)
    return found


def load_on_fake(driver: FakeDriver, source: Source, options: LoadOptions) -> OnnxRuntimeEngine:
    return load_on(source, options, Provider(), Gpu(driver, 0))


# Failing and ending


def scenario(driver: FakeDriver, path: Path, image: ImageInput, feeds: Arrays, theirs: Arrays) -> None:
    engine = engine_on(driver, path, image=image)
    try:
        context = context_of(engine)
        try:
            first = context.begin(feeds)
            second = context.begin(feeds)
            assert_same(first.outputs(), theirs, 1e-4)
            assert_same(second.outputs(), theirs, 1e-4)
        finally:
            context.close()
    finally:
        engine.close()


@pytest.mark.parametrize("sticky", [False, True])
def test_a_call_of_the_driver_that_fails_is_told_and_leaves_nothing_behind(
    sticky: bool, kernel: CpuKernel, tmp_path: Path
) -> None:
    path = tiny_models.paddle_detector(tmp_path / "m.onnx")  # rows of a number that only a run tells
    image = image_of(path, IMAGENET)
    pictures = np.stack([picture(SIZE, SIZE, seed) for seed in range(2)])
    tensors = model_tensor(path, pictures, IMAGENET)
    feeds, theirs = beside(tensors, image, pictures), expected(path, tensors)
    for at in range(1, 1000):
        driver = OrtDriver(kernel)
        driver.fail("*", at, sticky=sticky)
        try:
            scenario(driver, path, image, feeds, theirs)
        except (CudaError, InvalidModel) as error:
            assert isinstance(error, CudaError) or "CUDA_ERROR" in str(error) or isinstance(error.__cause__, CudaError)
            assert driver.failed
        else:
            if not driver.failed:
                break
        driver.assert_clean()
    assert at > 40


@pytest.mark.parametrize(
    "call", ["upload", "record", "synchronize_event", "launch", "allocate", "allocate_pinned", "download"]
)
def test_the_batch_after_one_that_failed_is_as_good_as_ever(call: str, drawing: OrtDriver, tmp_path: Path) -> None:
    path = tiny_models.paddle_detector(tmp_path / "m.onnx")
    image = image_of(path, IMAGENET)
    engine = engine_on(drawing, path, image=image)
    context = context_of(engine)
    for round_, count in enumerate((1, 2, 3, 4, 5, 6)):  # larger ones, so that all of them take memory
        pictures = np.stack([picture(SIZE, SIZE, seed + round_) for seed in range(count)])
        tensors = model_tensor(path, pictures, IMAGENET)
        if round_ % 2 == 0:
            drawing.fail(call)
            with pytest.raises(CudaError):
                context.infer(beside(tensors, image, pictures))
        else:
            tensors[image.name] = IMAGENET.apply(pictures, image.layout, np.dtype(np.float32))  # to the last bit
            assert_same(context.infer(beside(tensors, image, pictures)), expected(path, tensors))
    drawing.forgive()
    context.close()
    engine.close()


def test_a_batch_for_which_there_is_no_memory_fails_and_smaller_ones_run(tmp_path: Path) -> None:
    driver = OrtDriver(memory=1 << 16)
    path = tiny_models.two_by_two(tmp_path / "m.onnx")
    engine = engine_on(driver, path)
    context = context_of(engine)
    with pytest.raises(OutOfMemory):
        context.infer({"a": floats(5000, 4), "b": floats(5000, 4)})
    good = {"a": floats(20, 4), "b": floats(20, 4)}
    for _ in range(3):
        assert_same(context.infer(good), expected(path, good))
    context.close()
    engine.close()
    driver.assert_clean()


def test_the_device_is_given_back_when_the_engine_and_its_last_context_are_closed(
    driver: OrtDriver, tmp_path: Path
) -> None:
    path = tiny_models.two_by_two(tmp_path / "m.onnx")
    engine = engine_on(driver, path)
    context, other, forgotten = (context_of(engine) for _ in range(3))
    given = {"a": floats(2, 4), "b": floats(2, 4)}
    pending = context.begin(given)
    forgotten.begin(given)
    other.close()
    other.close()
    engine.close()
    assert driver.held()["context"] == 1  # a worker that hangs still has it
    assert_same(pending.outputs(), expected(path, given))
    context.close()
    with pytest.raises(ValueError, match="closed"):
        context.begin(given)
    assert driver.held()["context"] == 1
    del forgotten, pending
    gc.collect()
    assert not driver.held()


def test_a_context_with_batches_under_way_can_be_closed(driver: OrtDriver, tmp_path: Path) -> None:
    engine = engine_on(driver, tiny_models.two_by_two(tmp_path / "m.onnx"))
    context = context_of(engine)
    for _ in range(2):
        context.begin({"a": floats(3, 4), "b": floats(3, 4)})
    context.close()
    engine.close()


def test_a_file_that_does_not_load_leaves_nothing_on_the_device(driver: OrtDriver, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(InvalidModel, match=r"cannot load m\.onnx"):
        engine_on(driver, tmp_path / "m.onnx")


def test_two_contexts_are_the_devices_habit(driver: OrtDriver, tmp_path: Path) -> None:
    path = tiny_models.two_by_two(tmp_path / "m.onnx")
    engine = engine_on(driver, path)
    assert engine.contexts == 2
    assert not engine.on_cpu
    assert engine.describe().device == "cuda:0"
    engine.close()
    asked = engine_on(driver, path, contexts=5)
    assert asked.contexts == 5
    asked.close()


# What is missing, and what is set


@pytest.fixture
def with_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if onnxruntime-gpu were installed."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])


def load(path: Path, where: str = "cuda:0", **options: Any) -> OnnxRuntimeEngine:
    return OnnxRuntimeBackend().load(Source(path), LoadOptions(device=where, **options))


def on_driver(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    monkeypatch.setattr(device, "open_driver", lambda: driver)


def test_without_onnxruntime_gpu_it_is_said_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"no CUDA provider \(pip uninstall onnxruntime; pip install .*cuda"):
        load(tiny_models.plain(tmp_path / "m.onnx"))


@pytest.mark.usefixtures("with_provider")
def test_without_a_driver_nothing_else_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_driver(monkeypatch, FakeDriver(there=False))
    monkeypatch.setattr(ort, "InferenceSession", None)  # which would touch CUDA
    with pytest.raises(NoDriver, match="no NVIDIA driver"):
        load(tiny_models.plain(tmp_path / "m.onnx"))


@pytest.mark.usefixtures("with_provider")
@pytest.mark.parametrize(("where", "devices"), [("cuda:2", 2), ("cuda:7", 1), ("cuda", 0)])
def test_a_device_that_is_not_there_is_named_with_those_that_are(
    where: str, devices: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver = FakeDriver(devices=devices)
    on_driver(monkeypatch, driver)
    monkeypatch.setattr(ort, "InferenceSession", None)
    sees = "Fake 0" if devices else "sees none"
    with pytest.raises(NoDriver, match=rf"there is no device cuda:{where[5:] or 0} .*{sees}"):
        load(tiny_models.plain(tmp_path / "m.onnx"), where)
    driver.assert_clean()


@pytest.mark.usefixtures("with_provider")
def test_a_provider_that_does_not_load_is_never_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The installed ONNX Runtime has no such provider, and would run on the CPU, as it does where cuDNN is missing."""
    driver = FakeDriver()
    on_driver(monkeypatch, driver)
    monkeypatch.setattr(libraries, "missing", lambda: "libcudnn.so.9")
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(
            BackendUnavailable, match=r"libcudnn\.so\.9 is missing \(pip install 'onnxruntime-gpu\[cuda,cudnn\]'"
        ),
    ):
        load(tiny_models.plain(tmp_path / "m.onnx"))
    driver.assert_clean()
    assert driver.kept == {0}  # what ONNX Runtime holds in the device's context outlives the session


def test_a_provider_whose_libraries_are_missing_from_the_start_is_told_from_one_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ort, "cuda_version", "13.0", raising=False)
    with pytest.raises(BackendUnavailable, match=r"does not load: its log says why \(.*CUDA 13 and cuDNN 9"):
        provider_for("cuda:0")


def test_the_library_that_a_provider_lacks_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "capi").mkdir()
    needed, provider = tmp_path / "libcudnn_of_a_test.so.9", tmp_path / "capi/libonnxruntime_providers_cuda.so"
    compile_library(needed, "int cudnn(void) { return 0; }")
    compile_library(provider, "int cudnn(void); int f(void) { return cudnn(); }", str(needed))
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    needed.unlink()
    assert libraries.missing() == needed.name
    assert needed.name in str(libraries.unusable())
    provider.unlink()
    assert libraries.missing() is None


def compile_library(path: Path, source: str, *links: str) -> None:
    code = path.with_suffix(".c")
    code.write_text(source)
    try:
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", str(code), *links, "-o", str(path)]
        subprocess.run(command, check=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("gcc is not installed")


def test_nvidias_wheels_are_looked_into_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ort, "preload_dlls", lambda: sys.stdout.write("no libcublas.so.12\n"), raising=False)
    libraries.preload()
    assert not capsys.readouterr().out  # a command's JSON goes there
    monkeypatch.delattr(ort, "preload_dlls")
    libraries.preload()


def test_the_survey_says_which_devices_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, with_provider: None
) -> None:
    survey = OnnxRuntimeSurvey(Source(tiny_models.plain(tmp_path / "m.onnx")), LoadOptions())
    on_driver(monkeypatch, FakeDriver(devices=2))
    assert survey.devices() == ("CPU", "cuda:0", "cuda:1")
    on_driver(monkeypatch, FakeDriver(there=False))
    assert survey.devices() == ("CPU",)
    told = survey.support("cuda:0")
    assert not told.available
    assert "no NVIDIA driver" in (told.note or "")


def test_options_of_the_provider_are_told_from_the_sessions() -> None:
    said = {"use_tf32": 1, "gpu_mem_limit": 1 << 30, "prefer_nhwc": True, "new": 2, "session.disable_prepacking": "1"}
    provider = Provider(CUDA, "cuda", 1)
    assert provider.tuned(said, dynamic=False).listed == [
        (
            CUDA,
            {
                "device_id": "1",
                "use_tf32": "1",
                "arena_extend_strategy": "kSameAsRequested",
                "gpu_mem_limit": str(1 << 30),
                "prefer_nhwc": "1",
                "new": "2",
            },
        ),
        "CPUExecutionProvider",
    ]
    assert provider.entries(said) == {"session.disable_prepacking": "1"}
    assert Provider().entries({"session.disable_prepacking": "1"}) == {"session.disable_prepacking": "1"}
    assert Provider().tuned(said, dynamic=True) == Provider()


def test_float32_is_float32_and_sizes_that_change_are_not_searched_for() -> None:
    still = dict(Provider(CUDA, "cuda").tuned({}, dynamic=False).options)
    assert still == {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    changing = dict(Provider(CUDA, "cuda").tuned({}, dynamic=True).options)
    assert changing == {**still, "cudnn_conv_algo_search": "HEURISTIC"}
    asked = {"cudnn_conv_algo_search": "EXHAUSTIVE"}
    assert Provider(CUDA, "cuda").tuned(asked, dynamic=True).options["cudnn_conv_algo_search"] == "EXHAUSTIVE"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("device_id", "say runtime.device"),
        ("enable_cuda_graph", "runtime.backend: tensorrt"),
        ("user_compute_stream", "an address in this process"),
        ("gpu_external_alloc", "an address in this process"),
    ],
)
def test_options_that_would_crash_or_contradict_are_refused(key: str, says: str) -> None:
    with pytest.raises(InvalidModel, match=rf"{key} is not to be set here \(.*{says}"):
        Provider(CUDA, "cuda").entries({key: 1})


@pytest.mark.parametrize("precision", ["f16", "bf16", "int8"])
def test_another_precision_is_built_and_then_run(precision: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"own precision.*visionpool build --backend tensorrt --precision f16"):
        load(tiny_models.plain(tmp_path / "m.onnx"), precision=precision)
