"""ONNX Runtime's CUDA provider end to end: the CPU's numbers, over every transport, from two workers, and nothing stays."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from visionpool_server.backends import DeepContext, ImageInput, LoadOptions, Source
from visionpool_server.backends.onnxruntime.engine import OnnxRuntimeEngine, load_on
from visionpool_server.backends.onnxruntime.provider import CUDA, Provider
from visionpool_server.cuda.driver import Driver
from visionpool_server.cuda.gpu import Gpu
from visionpool_server.imaging.recipe import Arithmetic, Letterbox, Recipe

from tests import tiny_models
from tests.gpu.stand_in import STAND_IN
from tests.ort_sessions import reference_session
from tests.real_server import Server, serving
from tests.test_tensorrt_serving import body

LABELS = ["one", "two", "three"]
REQUESTS, AT_ONCE = 1000, 24
PATIENCE = 60.0
CLOSE = 1e-3  # relative and absolute, of f32 without TF32


@pytest.fixture
def loaded(any_driver: Driver, provider: Provider, tmp_path: Path) -> Iterator[tuple[OnnxRuntimeEngine, Path]]:
    onnx = tiny_models.two_by_two(tmp_path / "m.onnx")
    engine = engine_on(any_driver, provider, onnx)
    yield engine, onnx
    engine.close()


def engine_on(driver: Driver, provider: Provider, onnx: Path, **options: Any) -> OnnxRuntimeEngine:
    gpu = Gpu(driver, 0, for_libraries=True)
    try:
        return load_on(Source(onnx), LoadOptions(device="cuda:0", **options), provider, gpu)
    except BaseException:
        gpu.close()
        raise


def assert_close(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=CLOSE, atol=CLOSE)


def expected(onnx: Path, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    outputs: list[NDArray[Any]] = reference_session(onnx).run(None, feeds)
    return outputs


def test_the_model_runs_on_the_gpu(loaded: tuple[OnnxRuntimeEngine, Path], real: None) -> None:
    assert loaded[0]._session.get_providers()[0] == CUDA
    assert loaded[0].describe().device == "cuda:0"


def test_overlapping_batches_are_those_of_the_cpu(loaded: tuple[OnnxRuntimeEngine, Path]) -> None:
    engine, onnx = loaded
    context = engine.clone()
    assert isinstance(context, DeepContext)
    random, waiting = np.random.default_rng(2), []
    for rows in (1, 8, 3, 64, 2, 2, 17):
        feeds = {name: random.standard_normal((rows, 4), np.float32) for name in "ab"}
        waiting.append((context.begin(feeds), expected(onnx, feeds)))
        for array in feeds.values():
            array[...] = 0
        if len(waiting) == 2:
            check(*waiting.pop(0))
    check(*waiting.pop())
    context.close()


def check(pending: Any, wanted: list[NDArray[Any]]) -> None:
    for ours, theirs in zip(pending.outputs().values(), wanted, strict=True):
        assert_close(ours, theirs)


def test_contexts_on_threads_of_their_own_keep_apart(loaded: tuple[OnnxRuntimeEngine, Path]) -> None:
    engine, onnx = loaded

    def work(seed: int) -> None:
        context, random = engine.clone(), np.random.default_rng(seed)
        assert isinstance(context, DeepContext)
        for rows in range(1, 20):
            feeds = {name: random.standard_normal((rows, 4), np.float32) for name in "ab"}
            for ours, theirs in zip(context.infer(feeds).values(), expected(onnx, feeds), strict=True):
                assert_close(ours, theirs)
        context.close()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(4)))


def test_pictures_that_the_gpu_prepares_give_what_the_cpu_gives(
    any_driver: Driver, provider: Provider, tmp_path: Path
) -> None:
    onnx = tiny_models.yolov5(tmp_path / "m.onnx")
    side = tiny_models.SIZE
    recipe = Recipe((Letterbox((side, side)),), Arithmetic())
    image = ImageInput("images", "NCHW", recipe.arithmetic, (side, side), unprepared=True)
    engine = engine_on(any_driver, provider, onnx, image=image)
    context = engine.clone()
    assert isinstance(context, DeepContext)
    originals = [pixels(40 + 9 * seed, 90 - 7 * seed, seed) for seed in range(6)]
    unprepared = np.empty(len(originals), object)
    unprepared[:] = [recipe.on_gpu().prepare(one)[0][()] for one in originals]
    prepared = recipe.arithmetic.apply(
        np.stack([recipe.prepare(one)[0] for one in originals]), "NCHW", np.dtype(np.float32)
    )
    (ours,) = context.infer({"images": unprepared}).values()
    np.testing.assert_allclose(ours, expected(onnx, {"images": prepared})[0], rtol=0.02, atol=0.05)
    context.close()
    engine.close()


def pixels(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    blurred = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.asarray(cv2.normalize(blurred, blurred, 0, 255, cv2.NORM_MINMAX), np.uint8)


def test_memory_is_back_once_an_engine_is_closed(any_driver: Driver, provider: Provider, tmp_path: Path) -> None:
    onnx = tiny_models.classifier(tmp_path / "m.onnx", size=64)
    watch, after = Gpu(any_driver, 0, for_libraries=True), []
    for _ in range(4):
        engine = engine_on(any_driver, provider, onnx)
        context = engine.clone()
        assert isinstance(context, DeepContext)
        context.infer({"x": np.zeros((32, 3, 64, 64), np.float32)})
        context.close()
        engine.close()
        del context, engine
        gc.collect()
        after.append(watch.memory()[0])
    watch.close()
    assert after[1] - after[-1] <= 8 << 20, after  # the first loads what CUDA keeps for the process


# Servers


@pytest.fixture
def server(served_on: dict[str, Any], provider: Provider, tmp_path: Path) -> Iterator[Server]:
    """One detector thrice: by the CPU, and on the GPU with pictures prepared by either."""
    onnx = tiny_models.yolov5(tmp_path / "kept.onnx")
    write(tmp_path / "models", onnx, served_on)
    with serving(tmp_path / "models") as running:
        yield running


def write(folder: Path, onnx: Path, served_on: dict[str, Any], **more: Any) -> None:
    kinds = {"cpu": {"backend": "onnxruntime"}, "gpu": served_on, "whole": {**served_on, "prepare_on": "gpu"}}
    for name, runtime in kinds.items():
        if name == "whole" and STAND_IN:
            continue
        (folder / name).mkdir(parents=True)
        (folder / name / "model.onnx").symlink_to(onnx)
        said = {"family": "yolov5", "labels": LABELS, "workers": 2, **more, "runtime": runtime}
        (folder / name / "model.yaml").write_text(yaml.safe_dump({key: value for key, value in said.items() if value}))


def names() -> list[str]:
    return ["gpu"] if STAND_IN else ["gpu", "whole"]


def predicted(url: str, model: str, data: bytes, **options: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{url}/v1/models/{model}/predict", files={"image": ("picture", data)}, params=options, timeout=PATIENCE
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["results"][0]
    return found


def encoded(height: int, width: int, seed: int) -> bytes:
    written, data = cv2.imencode(".png", pixels(height, width, seed))
    assert written
    return bytes(data.tobytes())


def assert_boxes_alike(
    ours: dict[str, Any], theirs: dict[str, Any], *, pixel: float = 0.5, score: float = 1e-3
) -> None:
    """Each box has one of the same label there, within half a pixel."""
    assert len(ours["boxes"]) == len(theirs["boxes"])
    left = list(zip(theirs["boxes"], theirs["scores"], theirs["labels"], strict=True))
    for box, value, label in zip(ours["boxes"], ours["scores"], ours["labels"], strict=True):
        match = min(left, key=lambda other: np.abs(np.subtract(other[0], box)).max() + (other[2] != label) * 1e6)
        assert np.abs(np.subtract(match[0], box)).max() <= pixel and match[2] == label
        assert abs(match[1] - value) <= score
        left.remove(match)


def test_boxes_are_those_of_the_cpu(server: Server) -> None:
    found = 0
    for seed in range(12):
        data = encoded(40 + 13 * seed, 200 - 11 * seed, seed)
        wanted = predicted(server.url, "cpu", data, score_threshold=0.1)
        found += len(wanted["boxes"])
        for name in names():
            loose = {"pixel": 1.0, "score": 0.02} if name == "whole" else {}  # a step of a pixel may differ
            assert_boxes_alike(predicted(server.url, name, data, score_threshold=0.1), wanted, **loose)
    assert found > 12


def test_tensors_over_kserve_are_those_of_the_cpu(server: Server) -> None:
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    images = np.random.default_rng(5).random((3, 3, tiny_models.SIZE, tiny_models.SIZE), np.float32)
    answers = {name: infer(server.url, name, images) for name in ("cpu", "gpu")}
    assert_close(answers["gpu"], answers["cpu"])
    import grpc

    with grpc.insecure_channel(server.grpc) as channel:
        request = service_pb2.ModelInferRequest(model_name="gpu")
        request.inputs.add(name="images", datatype="FP32", shape=images.shape)
        request.raw_input_contents.append(images.tobytes())
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=PATIENCE)
    over_grpc = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answers["cpu"].shape)
    assert_close(over_grpc, answers["cpu"])


def infer(url: str, model: str, images: NDArray[np.float32]) -> NDArray[np.float32]:
    answer = httpx.post(f"{url}/v2/models/{model}/infer", json=body({"images": images}), timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def test_a_thousand_requests_of_every_kind_lose_nothing(server: Server) -> None:
    """Each answer is that of its own picture, whatever shared its batch."""
    pictures = [encoded(30 + 17 * seed, 170 - 9 * seed, seed) for seed in range(8)]
    wanted = [predicted(server.url, "cpu", data, score_threshold=0.1) for data in pictures]
    images = np.random.default_rng(8).random((2, 3, tiny_models.SIZE, tiny_models.SIZE), np.float32)
    tensors = infer(server.url, "cpu", images)
    refused = json.dumps({"inputs": [{"name": "images", "shape": [1], "datatype": "FP32", "data": [0]}]})

    def ask(index: int) -> str:
        name = names()[index % len(names())]
        match index % 4:
            case 3:
                assert_close(infer(server.url, name, images), tensors)
                return "tensors"
            case 2 if index % 40 == 2:
                answer = httpx.post(f"{server.url}/v2/models/{name}/infer", content=refused, timeout=PATIENCE)
                assert answer.status_code == 400, answer.text
                return "refused"
            case _:
                which = index % len(pictures)
                loose = {"pixel": 1.0, "score": 0.02} if name == "whole" else {}
                assert_boxes_alike(
                    predicted(server.url, name, pictures[which], score_threshold=0.1), wanted[which], **loose
                )
                return "picture"

    with ThreadPoolExecutor(AT_ONCE) as threads:
        kinds = list(threads.map(ask, range(80 if STAND_IN else REQUESTS)))
    assert set(kinds) == {"tensors", "refused", "picture"}


def test_yolov5n_finds_what_it_finds_on_the_cpu(
    served_on: dict[str, Any], provider: Provider, testdata: Path, tmp_path: Path
) -> None:
    onnx = testdata / "models/yolov5n_dyn/yolov5n_dyn.onnx"
    write(tmp_path, onnx, served_on, family=None, labels=None, input_size=[640, 640])
    with serving(tmp_path) as running:
        found = 0
        for name in ("bus.jpg", "dog.jpg", "humanseg_1.jpg"):
            data = (testdata / "images/photos" / name).read_bytes()
            wanted = predicted(running.url, "cpu", data)
            found += len(wanted["boxes"])
            assert_boxes_alike(predicted(running.url, "gpu", data), wanted)
        assert found >= 6
