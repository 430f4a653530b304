"""What the backend does and says on machines of all kinds: no driver, no library, another GPU, another version, no such profile.

Drivers and engines are stand-ins here (tests/fake_cuda.py, tests/fake_tensorrt.py); what is said without either is said for real.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from visionpool.errors import BackendUnavailable, InvalidModel, InvalidRequest
from visionpool_server.backends import ImageInput, LoadOptions, ShapeRange, Source, get_backend, onnx_precision
from visionpool_server.backends.tensorrt import backend as reading
from visionpool_server.backends.tensorrt import deserialized, devices, loading, messages
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.backend import TensorRtBackend
from visionpool_server.backends.tensorrt.plans import read_plan, write_plan
from visionpool_server.backends.tensorrt.settings import read_settings
from visionpool_server.cuda.driver import Properties
from visionpool_server.cuda.errors import NoDriver
from visionpool_server.cuda.pictures import KERNEL
from visionpool_server.imaging.recipe import Arithmetic

from tests import tensorrt_models
from tests.cpu_kernels import CpuKernel, compiled_kernel, picture_spans
from tests.fake_cuda import FakeDriver
from tests.fake_tensorrt import FakeTensorRt, make_plan
from tests.tensorrt_models import SIZE

TRT = Api(None, "tensorrt", (10, 16, 1, 11), rtx=False)
PLAIN = LoadOptions(device="cuda:0", max_batch_size=4)


class Machine:
    """A GPU, TensorRT, and a builder that notes what it builds."""

    def __init__(self, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.driver = driver
        self.trt = FakeTensorRt(driver)
        self.built: list[str] = []
        for module in (reading, deserialized):
            monkeypatch.setattr(module, "find_api", lambda prefer=None: self.trt.api())
        monkeypatch.setattr(devices, "open_driver", lambda: driver)
        monkeypatch.setattr(loading, "build_plan", self.build)

    def build(
        self, api: Api, path: Path, profiles: Sequence[Mapping[str, ShapeRange]], settings: Any, **more: Any
    ) -> bytes:
        self.built.append(path.name)
        return make_plan(path.read_bytes(), profiles)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(FakeDriver(devices=2), monkeypatch)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tensorrt_models.scores(tmp_path / "models" / "model.onnx")


def cached(tmp_path: Path) -> LoadOptions:
    return replace(PLAIN, cache_dir=tmp_path / "cache")


def load(path: Path, options: LoadOptions) -> Any:
    return TensorRtBackend().load(Source(path), options)


# Loading, from the file to what comes out.


def test_an_engine_computes_what_onnx_runtime_does(machine: Machine, weights: Path, tmp_path: Path) -> None:
    engine = load(weights, cached(tmp_path))
    context = engine.clone()
    tensors = np.random.default_rng(0).random((3, 3, SIZE, SIZE), np.float32)
    ours = context.infer({"images": tensors})["scores"].copy()
    theirs = ort.InferenceSession(str(weights)).run(None, {"images": tensors})[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    context.close()
    assert (engine.max_batch_size, engine.batched) == (4, True)
    engine.close()
    machine.driver.assert_clean()


def test_full_precision_is_told_to_be_slow(machine: Machine, weights: Path, tmp_path: Path) -> None:
    """And no other is, nor that of a file which says its own."""
    half = tensorrt_models.scores(tmp_path / "half.onnx")
    onnx_precision.to_half(weights, half)
    for path, changes, slow in (
        *((weights, {}, True), (weights, {"precision": "f32"}, True), (weights, {"options": {"tf32": True}}, False)),
        *((weights, {"precision": "f16"}, False), (half, {}, False)),
    ):
        engine = load(path, replace(cached(tmp_path), **changes))
        advice = engine.describe().advice
        assert (advice is not None and "runtime.precision: f16" in advice) == slow
        engine.close()


def test_an_engine_is_built_once(machine: Machine, weights: Path, tmp_path: Path) -> None:
    for _ in range(2):
        load(weights, cached(tmp_path)).close()
    assert machine.built == ["model.onnx"]
    kept = [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".plan"]
    assert len(kept) == 1
    assert kept[0].name.startswith("model-")
    assert read_plan(kept[0]).signature == TensorRtBackend().read(Source(weights))
    load(weights, replace(cached(tmp_path), max_batch_size=2)).close()
    assert machine.built == ["model.onnx"] * 2
    machine.driver.assert_clean()


def test_a_kept_engine_that_is_no_good_is_built_anew(
    machine: Machine, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(weights, cached(tmp_path)).close()
    machine.trt.fail("deserialize_cuda_engine")  # after a new driver, say
    with caplog.at_level(logging.WARNING):
        load(weights, cached(tmp_path)).close()
    assert machine.built == ["model.onnx"] * 2
    assert "is built anew: the engine was built for another GPU" in caplog.text
    machine.driver.assert_clean()


def test_nothing_is_left_of_an_engine_that_cannot_be_made(machine: Machine, weights: Path, tmp_path: Path) -> None:
    machine.trt.fail("deserialize_cuda_engine")
    with pytest.raises(BackendUnavailable, match="another GPU"):
        load(weights, cached(tmp_path))
    machine.driver.assert_clean()


def test_an_engine_that_fails_on_zeros_is_refused(machine: Machine, weights: Path, tmp_path: Path) -> None:
    machine.trt.fail("execute_async_v3")
    with pytest.raises(InvalidModel, match="the engine loads, but fails on zeros: TensorRT failed"):
        load(weights, cached(tmp_path))
    machine.driver.assert_clean()


def test_a_runtime_that_does_not_start_is_told(
    machine: Machine, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pybind says that the library gave nothing back."""

    def refuse(log: Any) -> None:
        log.log(SimpleNamespace(name="ERROR"), "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(machine.trt, "Runtime", refuse)
    with pytest.raises(BackendUnavailable, match=r"TensorRT 10\.16\.1\.11 does not start: CUDA initialization failure"):
        load(weights, cached(tmp_path))
    machine.driver.assert_clean()


def test_a_device_without_memory_is_told(machine: Machine, weights: Path, tmp_path: Path) -> None:
    machine.driver.fail("allocate_pinned", status="CUDA_ERROR_OUT_OF_MEMORY")
    with pytest.raises(BackendUnavailable, match="cuda:0 has not enough memory left for the model") as caught:
        load(weights, cached(tmp_path))
    assert "max_batch_size" in str(caught.value.hint)
    machine.driver.assert_clean()


@pytest.mark.parametrize("call", ["retain", "create_stream", "properties"])
def test_a_driver_that_refuses_is_told(machine: Machine, weights: Path, tmp_path: Path, call: str) -> None:
    machine.driver.fail(call)
    with pytest.raises(BackendUnavailable, match="CUDA_ERROR_UNKNOWN"):
        load(weights, cached(tmp_path))
    machine.driver.assert_clean()


def test_the_second_gpu_is_used_where_it_is_said(machine: Machine, weights: Path, tmp_path: Path) -> None:
    engine = load(weights, replace(cached(tmp_path), device="cuda:1"))
    assert engine.describe().device == "cuda:1"
    engine.close()


@pytest.mark.parametrize("device", ["cuda", "GPU"])
def test_the_first_gpu_has_further_names(machine: Machine, weights: Path, tmp_path: Path, device: str) -> None:
    engine = load(weights, replace(cached(tmp_path), device=device))
    assert engine.describe().device == "cuda:0"
    engine.close()


# Plan files.


def bare_plan(path: Path, weights: Path, head: bytes = b"") -> Path:
    """As trtexec writes it; `head` instead of its first bytes."""
    plan = make_plan(weights.read_bytes(), [{"images": ((1, 3, SIZE, SIZE), (2, 3, SIZE, SIZE), (4, 3, SIZE, SIZE))}])
    path.write_bytes(head + plan[len(head) :])
    return path


def header(rtx: bool = False, *version: int) -> bytes:
    return (b"vtrt" if rtx else b"ftrt") + bytes(20) + bytes(version or (10, 16, 1, 11))


def test_a_plan_is_asked_for_its_tensors(machine: Machine, weights: Path, tmp_path: Path) -> None:
    path = bare_plan(tmp_path / "model.plan", weights)
    signature = TensorRtBackend().read(Source(path))
    assert [(spec.name, spec.shape, spec.dtype) for spec in signature.inputs] == [
        ("images", (None, 3, SIZE, SIZE), "float32")
    ]
    assert [spec.name for spec in signature.outputs] == ["scores"]
    machine.driver.assert_clean()
    engine = load(path, PLAIN)
    assert engine.max_batch_size == 4
    assert machine.built == []
    engine.close()
    machine.driver.assert_clean()


def test_a_plan_of_another_gpu_says_so(machine: Machine, weights: Path, tmp_path: Path) -> None:
    path = bare_plan(tmp_path / "model.engine", weights)
    machine.trt.fail("deserialize_cuda_engine")
    with pytest.raises(
        BackendUnavailable, match=r"model\.engine: the engine was built for another GPU than "
    ) as caught:
        load(path, PLAIN)
    assert "compute capability" in caught.value.message
    assert "visionpool build MODEL.onnx --backend tensorrt -o OUT" in str(caught.value.hint)
    machine.driver.assert_clean()


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (header(False, 8, 6, 1, 0), r"was built by TensorRT 8\.6\.1\.0, and this is TensorRT 10\.16\.1\.11"),
        (
            header(True, 1, 7, 1, 116),
            r"was built by TensorRT-RTX 1\.7\.1\.116, and the library here is TensorRT 10\.16",
        ),
    ],
    ids=["version", "rtx"],
)
def test_a_plan_of_another_library_says_so(
    machine: Machine, weights: Path, tmp_path: Path, head: bytes, complaint: str
) -> None:
    path = bare_plan(tmp_path / "model.plan", weights, head)
    for attempt in (lambda: load(path, PLAIN), lambda: TensorRtBackend().read(Source(path))):
        with pytest.raises(BackendUnavailable, match=complaint) as caught:
            attempt()
        assert "visionpool build" in str(caught.value.hint)
    machine.driver.assert_clean()


def test_the_onnx_file_beside_such_a_plan_is_built(
    machine: Machine, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = bare_plan(weights.with_suffix(".plan"), weights, header(False, 8, 6, 1, 0))
    with caplog.at_level(logging.WARNING):
        engine = load(path, cached(tmp_path))
    assert machine.built == ["model.onnx"]
    assert "model.plan: the engine was built by TensorRT 8.6.1.0" in caplog.text
    assert "an engine is built of model.onnx instead" in caplog.text
    engine.close()
    machine.driver.assert_clean()


def test_the_library_is_the_one_that_wrote_the_plan(
    machine: Machine, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def find(prefer: str | None = None) -> Api:
        asked.append(prefer)
        return machine.trt.api()

    monkeypatch.setattr(reading, "find_api", find)
    with pytest.raises(BackendUnavailable):
        load(bare_plan(tmp_path / "model.plan", weights, header(True, 1, 7, 1, 116)), PLAIN)
    load(bare_plan(tmp_path / "model.plan", weights), PLAIN).close()
    said = replace(PLAIN, options={"library": "tensorrt_rtx"})
    load(tmp_path / "model.plan", said).close()
    assert asked == ["tensorrt_rtx", "tensorrt", "tensorrt_rtx"]


@pytest.mark.parametrize(
    ("reason", "complaint"),
    [
        ("old cuda driver", r"the NVIDIA driver is too old for TensorRT 10\.16\.1\.11: old cuda driver"),
        ("CUDA error: out of memory", "does not fit into the memory of NVIDIA H100"),
        ("Serialization assertion failed", "was built for another GPU than NVIDIA H100 .compute capability 9.0"),
    ],
)
def test_why_a_plan_is_not_taken(reason: str, complaint: str) -> None:
    error = messages.unusable(TRT, header() + b"plan", (9, 0), "NVIDIA H100", reason)
    assert isinstance(error, messages.UnusablePlan)
    with pytest.raises(BackendUnavailable, match=complaint):
        raise error


# Devices and drivers.


@pytest.mark.parametrize("device", ["CPU", "NPU", "HETERO:GPU,CPU"])
def test_other_devices_are_refused(weights: Path, device: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"runs on NVIDIA GPUs, not on {device}") as caught:
        load(weights, replace(PLAIN, device=device))
    assert "runtime.device: cuda:0" in str(caught.value.hint)


def test_a_driver_without_devices(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(FakeDriver(devices=0), monkeypatch)
    with pytest.raises(NoDriver, match="there is no device cuda:0") as caught:
        load(weights, PLAIN)
    assert "CUDA_VISIBLE_DEVICES" in str(caught.value.hint)


def test_a_gpu_that_is_not_there(machine: Machine, weights: Path) -> None:
    with pytest.raises(NoDriver, match="there is no device cuda:2") as caught:
        load(weights, replace(PLAIN, device="cuda:2"))
    assert "cuda:1" in str(caught.value.hint)
    assert machine.trt.calls.total() == 0


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA GPU")
def test_without_a_driver_nothing_crashes(weights: Path, tmp_path: Path) -> None:
    """For real, in a process of its own: TensorRT-RTX's runtime would end it if it were asked first."""
    plan = tmp_path / "bare.plan"
    plan.write_bytes(header(True, 1, 7, 1, 116) + bytes(1000))
    code = f"""
from pathlib import Path
from visionpool.errors import BackendUnavailable
from visionpool_server.backends import ImageInput, LoadOptions, Source, get_backend
backend = get_backend("tensorrt")
assert backend.read(Source(Path({str(weights)!r}))).inputs
for attempt in (
    lambda: backend.load(Source(Path({str(weights)!r})), LoadOptions(device="cuda:0")),
    lambda: backend.load(Source(Path({str(plan)!r})), LoadOptions(device="cuda:0")),
    lambda: backend.read(Source(Path({str(plan)!r}))),
):
    try:
        attempt()
    except BackendUnavailable as error:
        print(type(error).__name__, bool(error.hint))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["NoDriver True"] * 3 + [""]), done.stderr


def rtx(trt: Any = None) -> Api:
    members = dict.fromkeys(["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"])
    trt = trt or SimpleNamespace(ComputeCapability=SimpleNamespace(__members__=members))
    return Api(trt, "tensorrt_rtx", (1, 7, 1, 116), rtx=True)


def gpu_of(*capability: int) -> Properties:
    return Properties("NVIDIA H100 80GB HBM3", (capability[0], capability[1]), 80 << 30, 132, "0000:3b:00.0")


def test_a_gpu_that_rtx_has_no_code_for() -> None:
    with pytest.raises(
        BackendUnavailable, match=r"has no code for NVIDIA H100 80GB HBM3: its .* is 9\.0, and not 7\.5, 8\.0,"
    ) as caught:
        loading.Loading(rtx(), PLAIN, read_settings({}))._for(gpu_of(9, 0))
    assert "visionpool[server,tensorrt]" in str(caught.value.hint)


def test_who_insists_may_try_it() -> None:
    said = read_settings({"compute_capability": "current"})
    assert loading.Loading(rtx(), PLAIN, said)._for(gpu_of(9, 0)) is said


def test_rtx_builds_for_the_oldest_gpu_only_where_it_is_told() -> None:
    asked = loading.Loading(rtx(), PLAIN, read_settings({}))
    assert asked._for(gpu_of(7, 5)).capabilities == ((7, 5),)
    assert asked._for(gpu_of(8, 9)).capabilities == ()


# What it does not read, and does not have.


@pytest.mark.parametrize("name", ["model.pdmodel", "model.xml", "model.tflite", "model.pb", "saved_model"])
def test_files_of_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    for attempt in (lambda: TensorRtBackend().read(Source(tmp_path / name)), lambda: load(tmp_path / name, PLAIN)):
        with pytest.raises(InvalidModel, match=rf"reads \.onnx, \.plan and \.engine files, not {name}") as caught:
            attempt()
        assert "runtime.backend: openvino" in str(caught.value.hint)
    with pytest.raises(InvalidModel, match="not nothing"):
        TensorRtBackend().read(Source())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cpu_operators": ("NonMaxSuppression",)}, "cpu_operators is OpenVINO's"),
        ({"options": {"PERFORMANCE_HINT": "LATENCY"}}, "unknown key 'PERFORMANCE_HINT'"),
        ({"profiles": ({"image": ShapeRange((1,), (1,), (1,))},)}, "there is no input 'image'"),
        ({"plugins": (Path("/none/libfoo.so"),)}, "libfoo.so is no file"),
    ],
    ids=["cpu_operators", "options", "profiles", "plugins"],
)
def test_what_makes_no_sense_here_is_refused(
    machine: Machine, weights: Path, tmp_path: Path, options: Any, complaint: str
) -> None:
    with pytest.raises(InvalidModel, match=complaint):
        load(weights, replace(cached(tmp_path), **options))
    assert machine.built == []
    machine.driver.assert_clean()


def test_the_backend_is_registered() -> None:
    assert isinstance(get_backend("tensorrt"), TensorRtBackend)


# Words that others say.


def test_a_shape_without_a_profile() -> None:
    ranges = [
        ShapeRange((1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 64, 64)),
        ShapeRange((1, 3, 9, 9), (1, 3, 9, 9), (1, 3, 9, 9)),
    ]
    error = messages.no_profile("images", (16, 3, 32, 32), ranges)
    assert isinstance(error, InvalidRequest)
    assert error.message == (
        "the engine has no profile for input 'images' of shape [16, 3, 32, 32]: it takes "
        "[1, 3, 32, 32] to [8, 3, 64, 64] or [1, 3, 9, 9] to [1, 3, 9, 9]"
    )
    assert "runtime.profiles: [{images: {min: [16, 3, 32, 32], opt:" in str(error.hint)


def test_examples_are_what_model_yaml_takes() -> None:
    import yaml
    from visionpool_server.models.bundle import Bundle

    said = messages.profile_example({"images": (None, 3, None, None), "scale_factor": (None, 2)})
    text = said.removeprefix("say ").replace("runtime.profiles", "profiles", 1)
    bundle = Bundle.checked("test", {"runtime": yaml.safe_load(text)})
    assert bundle.runtime.profiles[0]["images"].max == (8, 3, 1280, 1280)


@pytest.mark.parametrize(
    ("reasons", "kind", "complaint"),
    [
        (["CUDA initialization failure with error: 35"], BackendUnavailable, "cannot use the GPU to build x.onnx"),
        (["Unable to load library: libnvinfer_lean.so.10"], BackendUnavailable, "to be version compatible"),
        (["Cuda Runtime (cudaError 35)", "no tactic"], InvalidModel, "an engine of x.onnx: no tactic$"),
        ([], InvalidModel, "it does not say why"),
    ],
)
def test_why_a_build_failed(reasons: list[str], kind: type[Exception], complaint: str) -> None:
    error = messages.failed_build(TRT, "x.onnx", reasons)
    assert isinstance(error, kind)
    assert re.search(complaint, getattr(error, "message", ""))


def test_written_plans_are_served(machine: Machine, weights: Path, tmp_path: Path) -> None:
    """As `visionpool build` leaves them: what the ONNX file said is there, without a GPU."""
    signature = TensorRtBackend().read(Source(weights))
    plan = make_plan(weights.read_bytes(), [{"images": ((1, 3, SIZE, SIZE),) * 3}])
    write_plan(tmp_path / "model.plan", plan, signature)
    assert TensorRtBackend().read(Source(tmp_path / "model.plan")) == signature
    assert machine.driver.calls["retain"] == 0
    engine = load(tmp_path / "model.plan", replace(PLAIN, max_batch_size=1))
    assert engine.max_batch_size == 1
    engine.close()
    machine.driver.assert_clean()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> CpuKernel:
    return compiled_kernel(tmp_path_factory.mktemp("kernel"))


def test_pictures_are_what_the_engine_takes(machine: Machine, weights: Path, tmp_path: Path, kernel: CpuKernel) -> None:
    """From bytes to scores, with the arithmetic on the device, as the recipe says it."""
    machine.driver.kernel(KERNEL, kernel, picture_spans)
    image = ImageInput("images", "NCHW", Arithmetic(1 / 255), (SIZE, SIZE))
    engine = load(weights, replace(cached(tmp_path), image=image))
    context = engine.clone()
    pictures = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    ours = context.infer({"images": pictures})["scores"].copy()
    tensors = (pictures / np.float32(255)).transpose(0, 3, 1, 2).astype(np.float32)
    theirs = ort.InferenceSession(str(weights)).run(None, {"images": tensors})[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    context.close()
    engine.close()
    machine.driver.assert_clean()
