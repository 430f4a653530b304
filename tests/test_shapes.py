"""Pictures of any size, and memory that does not grow with them: a bounded number of shapes stays compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import psutil
import pytest
import yaml
from visionpool.errors import InvalidModel
from visionpool_server.backends import Engine, ImageInput, LoadOptions, ShapeUse, Source, get_backend
from visionpool_server.backends.openvino.shape_cache import Shape, ShapeCache
from visionpool_server.imaging.draw import encode
from visionpool_server.imaging.recipe import Arithmetic

from tests import tiny_models
from tests.conftest import Serve
from tests.test_hetero import Elsewhere, elsewhere

__all__ = ["elsewhere"]  # the fixture: a process whose OpenVINO has a second device, SIMCPU

SIZES = ((32, 64), (64, 32), (96, 64), (32, 64), (64, 96), (32, 32), (96, 64))
ANY_SIZE = ImageInput("images", "NCHW", Arithmetic())


def classifier(path: Path, channels: int = 8, layers: int = 2) -> Path:
    """(N, 3, H, W) of any size -> (N, 3), by convolutions and a mean over the picture."""
    graph = tiny_models.Graph()
    features = graph.input("images", ["n", 3, "h", "w"])
    for inputs in (3, *[channels] * (layers - 1)):
        weights = graph.weights(channels, inputs, 3, 3, spread=0.3 / inputs)
        features = graph.add("Relu", graph.add("Conv", features, weights, kernel_shape=[3, 3], pads=[1] * 4))
    flat = graph.add("Flatten", graph.add("GlobalAveragePool", features))
    graph.add("Softmax", graph.add("MatMul", flat, graph.weights(channels, 3, spread=5)), output="scores", axis=1)
    graph.output("scores", ["n", 3])
    return graph.save(path)


def load(model: Path, device: str, **options: Any) -> Engine:
    return get_backend("openvino").load(
        Source(model), LoadOptions(image=ANY_SIZE, device=device, precision="f32", **options)
    )


def picture_of(size: tuple[int, int], seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return tiny_models.picture(*size, seed)[None]


def expected(model: Path, pictures: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
    batch = np.moveaxis(pictures, 3, 1).astype(np.float32) / 255
    return ort.InferenceSession(str(model)).run(None, {"images": batch})[0]


def answers(model: Path, device: str, **options: Any) -> tuple[list[Any], ShapeUse | None, str | None]:
    """For pictures of all `SIZES`, one after the other."""
    engine = load(model, device, **options)
    context = engine.clone()
    found = [np.array(context.infer({"images": picture_of(size)})["scores"]) for size in SIZES]
    return found, engine.shape_use(), engine.describe().advice


@pytest.mark.parametrize(("limit", "use"), [(8, ShapeUse(8, 6, 0)), (2, ShapeUse(2, 2, 6))])
def test_a_device_that_wants_fixed_shapes_gets_each_compiled_and_the_oldest_gives_way(
    tmp_path: Path, elsewhere: Elsewhere[..., Any], limit: int, use: ShapeUse
) -> None:
    """The first is what the engine was tried out with."""
    model = classifier(tmp_path / "m.onnx")
    found, used, _ = elsewhere(answers, model, "SIMCPU", max_shapes=limit, max_batch_size=1)
    assert used == use
    for size, scores in zip(SIZES, found, strict=True):
        np.testing.assert_allclose(scores, expected(model, picture_of(size)), atol=1e-5)


def test_the_advice_names_the_dynamic_input_and_values_for_it(tmp_path: Path, elsewhere: Elsewhere[..., Any]) -> None:
    _, _, advice = elsewhere(answers, classifier(tmp_path / "m.onnx"), "SIMCPU", max_batch_size=1)
    assert advice is not None
    assert "compiled for SIMCPU when it first comes, and 8 are kept" in advice
    assert "runtime: {shapes: {images: [1, 3, 640, 640]}}" in advice


def fixed_by_the_operator(model: Path) -> tuple[ShapeUse | None, str | None]:
    engine = load(model, "SIMCPU", shapes={"images": (1, 3, 64, 96)}, max_batch_size=1)
    engine.clone().infer({"images": picture_of((64, 96))})
    return engine.shape_use(), engine.describe().advice


def test_shapes_in_model_yaml_are_all_there_is(tmp_path: Path, elsewhere: Elsewhere[..., Any]) -> None:
    assert elsewhere(fixed_by_the_operator, classifier(tmp_path / "m.onnx")) == (None, None)


def own_tensors(model: Path, sizes: list[tuple[int, ...]]) -> tuple[list[Any], ShapeUse | None, str | None]:
    engine = get_backend("openvino").load(Source(model), LoadOptions(device="SIMCPU"))
    context = engine.clone()
    found = [np.array(context.infer({"x": np.arange(np.prod(s), dtype=np.float32).reshape(s)})["y"]) for s in sizes]
    return found, engine.shape_use(), engine.describe().advice


def test_a_models_own_tensors_are_compiled_for_in_their_shapes_too(
    tmp_path: Path, elsewhere: Elsewhere[..., Any]
) -> None:
    model = tiny_models.plain(tmp_path / "m.onnx", shape=(None, None, 2), op="Neg")
    sizes = [(1, 4, 2), (3, 5, 2), (1, 4, 2)]
    found, use, advice = elsewhere(own_tensors, model, sizes)
    assert use == ShapeUse(8, 3, 0)
    assert "x: [1, 1, 2]" in (advice or "")
    for size, value in zip(sizes, found, strict=True):
        np.testing.assert_array_equal(value, -np.arange(np.prod(size), dtype=np.float32).reshape(size))


def on_threads(model: Path) -> tuple[list[list[Any]], ShapeUse | None]:
    """Four threads, each with the sizes in an order of its own, and fewer shapes than sizes."""
    engine = load(model, "SIMCPU", max_shapes=3, max_batch_size=1, contexts=4)

    def work(number: int) -> list[Any]:
        context, order = engine.clone(), np.random.default_rng(number).permutation(len(SIZES))
        found = [(at, np.array(context.infer({"images": picture_of(SIZES[at])})["scores"])) for at in [*order] * 3]
        return [scores for _, scores in sorted(found[: len(SIZES)], key=lambda pair: int(pair[0]))]

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(work, range(4))), engine.shape_use()


def test_threads_share_what_is_compiled(tmp_path: Path, elsewhere: Elsewhere[..., Any]) -> None:
    model = classifier(tmp_path / "m.onnx")
    all_found, use = elsewhere(on_threads, model)
    assert use is not None
    assert (use.limit, use.compiled) == (3, 3)
    for found in all_found:
        for size, scores in zip(SIZES, found, strict=True):
            np.testing.assert_allclose(scores, expected(model, picture_of(size)), atol=1e-5)


A, B, C, D = (((size,),) for size in range(1, 5))


def test_what_is_compiled_is_found_while_another_shape_is_being_compiled() -> None:
    begun, go_on = Event(), Event()

    def compile_for(shape: Shape) -> Any:
        if shape == B:
            begun.set()
            assert go_on.wait(30)
        return object()

    cache = ShapeCache(8, compile_for)
    first = cache.get(A)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(cache.get, B) for _ in range(2)]
        assert begun.wait(30)
        assert cache.get(A) is first  # here, on the test's own thread: it would hang
        assert cache.use() == ShapeUse(8, 1, 0)
        go_on.set()
        made, found = (future.result() for future in waiting)
    assert made is found


def test_a_shape_that_cannot_be_compiled_takes_no_others_place() -> None:
    def compile_for(shape: Shape) -> Any:
        if shape == C:
            raise InvalidModel("no")
        return object()

    cache = ShapeCache(2, compile_for)
    first, second = cache.get(A), cache.get(B)
    for _ in range(3):
        with pytest.raises(InvalidModel):
            cache.get(C)
    assert (cache.get(A), cache.get(B), cache.use()) == (first, second, ShapeUse(2, 2, 0))
    assert cache.get(D) is not None
    assert cache.use() == ShapeUse(2, 2, 1)
    assert cache.get(B) is second  # A gave way


def refused_shape(model: Path) -> str:
    engine = load(model, "SIMCPU", max_batch_size=1)
    with pytest.raises(InvalidModel) as caught:
        engine.clone().infer({"images": picture_of((4, 4))})
    return str(caught.value)


def test_a_shape_that_the_graph_does_not_take_is_an_error_and_not_a_crash(
    tmp_path: Path, elsewhere: Elsewhere[..., Any]
) -> None:
    graph = tiny_models.Graph()
    features = graph.input("images", [1, 3, "h", "w"])
    graph.add("Conv", features, graph.weights(2, 3, 8, 8), output="scores", kernel_shape=[8, 8])
    graph.output("scores", [1, 2, "a", "b"])
    assert "does not take the shapes" in elsewhere(refused_shape, graph.save(tmp_path / "m.onnx"))


@pytest.fixture
def sizes() -> Iterator[Callable[[], bytes]]:
    """Pictures of random sizes, 32 to 256 pixels a side."""
    random = np.random.default_rng(7)
    large = tiny_models.picture(256, 256)

    def next_picture() -> bytes:
        height, width = random.integers(32, 257, 2)
        return encode(large[:height, :width], "jpeg")

    yield next_picture


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_memory_stays_flat_over_500_pictures_of_random_sizes(
    tmp_path: Path, serve: Serve, sizes: Callable[[], bytes], backend: str
) -> None:
    """With the bound taken away (max_shapes: 10000) OpenVINO takes 100 MB more, and goes on so. The largest comes first, to
    every worker: its activations are memory that is needed."""
    classifier(tmp_path / "any" / "any.onnx", channels=16, layers=24)
    config = {
        "task": "classification",
        "labels": ["a", "b", "c"],
        "preprocess": ["normalize"],
        "runtime": {"backend": backend, "max_shapes": 4},
    }
    (tmp_path / "any" / "model.yaml").write_text(yaml.safe_dump(config))
    server = serve(tmp_path / "any")
    process = psutil.Process(server.process.pid)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        largest = encode(tiny_models.picture(256, 256), "png")
        with ThreadPoolExecutor(4) as threads:
            for answer in threads.map(lambda _: client.post("/v1/models/any/predict", content=largest), range(32)):
                assert answer.status_code == 200, answer.text
        used = []
        for _ in range(500):
            answer = client.post("/v1/models/any/predict", content=sizes(), headers={"Content-Type": "image/jpeg"})
            assert answer.status_code == 200, answer.text
            used.append(process.memory_info().rss / 2**20)
        told = client.get("/v1/models/any").json()["workers"][0]["shapes"]
    assert max(used[100:]) < max(used[:100]) + 50  # MB
    assert max(used[300:]) < max(used[:300]) + 10
    if backend == "openvino":
        assert (told["limit"], told["compiled"]) == (4, 4)
        assert told["dropped"] > 100
    else:
        assert told is None
