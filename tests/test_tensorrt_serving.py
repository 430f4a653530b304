"""A server whose models run by the tensorrt backend, real but for the driver and TensorRT: answers are those of ONNX Runtime.

The driver and TensorRT are fakes, on which work is done late and every race, leak and missing wait is noted; pictures go through
the kernel's own source, compiled for the CPU. It says nothing of speed, and of a GPU's own arithmetic.
"""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import onnxruntime as ort
import pytest
import uvicorn
import yaml
from visionpool.errors import InvalidModel
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.http import build_http
from visionpool_server.api.kserve.control import Control
from visionpool_server.api.kserve.protocol import Kserve
from visionpool_server.api.kserve.shared_memory import SharedMemory
from visionpool_server.api.kserve.switches import Tracing
from visionpool_server.api.urls import UrlFetcher
from visionpool_server.backends import Source
from visionpool_server.backends.onnxruntime import OnnxRuntimeBackend
from visionpool_server.backends.tensorrt import backend as backend_module
from visionpool_server.backends.tensorrt import deserialized, devices
from visionpool_server.backends.tensorrt.plans import write_plan
from visionpool_server.cuda.pictures import KERNEL
from visionpool_server.models.loader import Defaults
from visionpool_server.models.repository import Repository, load_all, locate
from visionpool_server.service import Service

from tests import tiny_models
from tests.cpu_kernels import CpuKernel, compiled_kernel, picture_spans
from tests.fake_cuda import FakeDriver
from tests.fake_tensorrt import FakeTensorRt, Range, make_plan
from tests.tensorrt_bench import sums, sums_batch

LABELS = ["one", "two", "three"]
ON_GPU = {"backend": "tensorrt", "device": "cuda:0"}
PLAIN = {"options": {"cuda_graphs": False}}  # of which a failed capture hides one of TensorRT's
PATIENCE = 60.0


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> CpuKernel:
    return compiled_kernel(tmp_path_factory.mktemp("kernel"))


@dataclass
class Fakes:
    driver: FakeDriver
    trt: FakeTensorRt


@pytest.fixture
def fakes(kernel: CpuKernel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fakes]:
    """In the place of the driver and of TensorRT; clean in the end."""
    driver = FakeDriver(seed=11)
    driver.kernel(KERNEL, kernel, picture_spans)
    trt = FakeTensorRt(driver)
    monkeypatch.setattr(devices, "open_driver", lambda: driver)
    for module in (backend_module, deserialized):
        monkeypatch.setattr(module, "find_api", lambda prefer=None: trt.api())
    yield Fakes(driver, trt)
    driver.assert_clean()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of all models in `folder`."""
    models, limits = Repository(), BodyLimits()
    service = Service(models)
    kserve = Kserve(
        service,
        Control(models, (folder,), Defaults(), explicit=False),
        Tracing(None, models),
        SharedMemory(allowed=False),
        limits=limits,
        ready=lambda: True,
    )
    try:
        for model in load_all(locate([folder]), Defaults()):
            models.add(model)
        web = build_http(service, kserve, limits, UrlFetcher((), 1), lambda: True)
        with socket.create_server(("127.0.0.1", 0)) as listener, running(web, listener):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        service.close()
        models.close()
        kserve.close()


@contextmanager
def running(web: Any, listener: socket.socket) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(web, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join()


def write_models(folder: Path, onnx: Path, shapes: Mapping[str, Range], **more: Any) -> None:
    """`gpu`, a plan for the fakes, and `cpu`, the ONNX file itself by ONNX Runtime, which are to answer alike."""
    runtime = more.pop("runtime", {})
    for name, said in (("gpu", ON_GPU | runtime), ("cpu", {"backend": "onnxruntime"})):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.yaml").write_text(yaml.safe_dump({**more, "runtime": said}))
    shutil.copy(onnx, folder / "cpu" / "model.onnx")
    signature = OnnxRuntimeBackend().read(Source(onnx))
    write_plan(folder / "gpu" / "model.plan", make_plan(onnx.read_bytes(), [shapes]), signature)


def picture(width: int, height: int, seed: int = 0) -> bytes:
    blurred = cv2.GaussianBlur(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8), (0, 0), 3)
    written, data = cv2.imencode(".png", cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX))
    assert written
    return bytes(data.tobytes())


def predicted(url: str, model: str, data: bytes, **options: Any) -> Any:
    answer = httpx.post(
        f"{url}/v1/models/{model}/predict",
        files={"image": ("picture", data)},
        params=options,
        timeout=PATIENCE,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def assert_alike(one: Any, other: Any) -> None:
    """The same fields, and numbers that differ by rounding at most."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_alike(left, right)
    else:
        assert one == (pytest.approx(other, abs=2e-3, rel=1e-4) if isinstance(other, float) else other)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.yolov5(tmp_path_factory.mktemp("detector") / "model.onnx")


def detector_shapes(side: int = tiny_models.SIZE) -> dict[str, Range]:
    return {"images": ((1, 3, side, side), (4, 3, side, side), (8, 3, side, side))}


@pytest.mark.parametrize("prepare_on", ["cpu", "gpu"])
def test_a_detectors_boxes_are_those_of_onnxruntime(
    fakes: Fakes, detector: Path, tmp_path: Path, prepare_on: str
) -> None:
    more = {"family": "yolov5", "labels": LABELS, "runtime": {"prepare_on": prepare_on}}
    write_models(tmp_path, detector, detector_shapes(), **more)
    sizes = [(64, 64), (100, 50), (33, 97), (640, 480), (31, 15), (200, 200)] * 4
    with serving(tmp_path) as url, ThreadPoolExecutor(12) as many:
        asked = [picture(*size, seed) for seed, size in enumerate(sizes)]
        answers = list(many.map(lambda data: predicted(url, "gpu", data, score_threshold=0.1), asked))
        found = 0
        for data, answer in zip(asked, answers, strict=True):
            wanted = predicted(url, "cpu", data, score_threshold=0.1)
            found += len(wanted[0]["boxes"])
            assert_alike(answer, wanted)
        assert found > len(asked)
    assert fakes.trt.deserialised >= 1
    fakes.driver.assert_no_mistakes()


def test_tensors_come_and_go_over_kserve(fakes: Fakes, detector: Path, tmp_path: Path) -> None:
    write_models(tmp_path, detector, detector_shapes(), family="yolov5", labels=LABELS)
    images = np.random.default_rng(4).random((2, 3, 64, 64), np.float32)
    session = ort.InferenceSession(str(detector), providers=["CPUExecutionProvider"])
    with serving(tmp_path) as url:
        described = httpx.get(f"{url}/v2/models/gpu").json()
        assert described["platform"] and {tensor["name"] for tensor in described["inputs"]} >= {"images"}
        answer = infer(url, "gpu", {"images": images})
        np.testing.assert_allclose(answer["output0"], session.run(None, {"images": images})[0], rtol=1e-5, atol=1e-5)
        refused = httpx.post(f"{url}/v2/models/gpu/infer", json=body({"images": np.zeros((9, 3, 64, 64), np.float32)}))
        assert refused.status_code == 400
    assert fakes.trt.deserialised == 2  # one that takes pictures, and one that takes tensors


def test_a_plain_model_is_served_with_its_own_tensors(fakes: Fakes, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.yaml").write_text(yaml.safe_dump({"runtime": ON_GPU | PLAIN, "task": "tensor"}))
    (tmp_path / "plain" / "model.plan").write_bytes(sums().plan)  # which says nothing of itself: the engine is asked
    with serving(tmp_path) as url, ThreadPoolExecutor(8) as many:
        batches = [sums_batch(1 + seed % 8, seed) for seed in range(32)]
        for batch, answer in zip(batches, many.map(lambda each: infer(url, "plain", each), batches), strict=True):
            expected = sums().expected(batch)
            np.testing.assert_allclose(answer["mixed"], expected["mixed"], rtol=1e-6)
            np.testing.assert_array_equal(answer["above"], expected["above"])
        refused = httpx.post(f"{url}/v2/models/plain/infer", json=body(sums_batch(9)))
        assert refused.status_code == 400 and "runtime.profiles" in refused.text and "[1, 6] to [8, 6]" in refused.text
        fakes.trt.fail("execute_async_v3")
        failed = httpx.post(f"{url}/v2/models/plain/infer", json=body(sums_batch(2)), timeout=PATIENCE)
        assert failed.status_code == 500
        np.testing.assert_allclose(infer(url, "plain", sums_batch(2))["mixed"], sums().expected(sums_batch(2))["mixed"])
    assert fakes.trt.deserialised == 2  # once for its tensors' names, once to serve
    assert fakes.driver.kept == {0}  # what TensorRT holds in the device's context outlives the model


KINDS = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}


def body(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": KINDS[array.dtype.name],
                "data": array.ravel().tolist(),
            }
            for name, array in batch.items()
        ]
    }


def infer(url: str, model: str, batch: Mapping[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v2/models/{model}/infer", json=body(batch), timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return {out["name"]: np.array(out["data"]).reshape(out["shape"]) for out in answer.json()["outputs"]}


def test_a_plan_that_cannot_be_served_leaves_nothing(fakes: Fakes, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.plan").write_bytes(make_plan(sums().model, layout="CHW4"))
    with pytest.raises(InvalidModel, match="CHW4") as kept, serving(tmp_path):
        pass
    fakes.driver.assert_clean()
    assert kept.tb


def test_yolov5n_finds_what_it_finds_with_onnxruntime(fakes: Fakes, testdata: Path, tmp_path: Path) -> None:
    onnx = testdata / "models/yolov5n_dyn/yolov5n_dyn.onnx"
    shapes: dict[str, Range] = {"images": ((1, 3, 640, 640), (1, 3, 640, 640), (2, 3, 640, 640))}
    write_models(tmp_path, onnx, shapes, input_size=[640, 640], runtime={"prepare_on": "gpu"}, workers=1)
    names = ("bus.jpg", "dog.jpg", "humanseg_1.jpg")
    with serving(tmp_path) as url:
        found = 0
        for name in names:
            data = (testdata / "images/photos" / name).read_bytes()
            wanted = predicted(url, "cpu", data)
            found += len(wanted[0]["boxes"])
            assert_alike(predicted(url, "gpu", data), wanted)
        assert found >= 6
    fakes.driver.assert_no_mistakes()
