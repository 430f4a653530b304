"""The runtimes behind their seam: the same answers from each, from any number of contexts and in any batch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import openvino.opset13 as ops
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from visionpool.errors import BackendUnavailable, InvalidModel, SetupError
from visionpool_server.assembly import stack
from visionpool_server.backends import (
    BACKENDS,
    Engine,
    ImageInput,
    LoadOptions,
    Signature,
    Source,
    Tensors,
    get_backend,
)
from visionpool_server.imaging.recipe import Arithmetic

from tests import tiny_models
from tests.tiny_models import SIZE, Graph, picture

REAL = ("openvino", "onnxruntime")
MODELS: dict[str, Callable[[Path], Path]] = {
    "yolov5": tiny_models.yolov5,
    "yolov8": tiny_models.yolov8,
    "picodet": tiny_models.picodet,
    "paddle_detector": tiny_models.paddle_detector,
    "classifier": lambda path: tiny_models.classifier(path, size=SIZE),
    "classifier NHWC": lambda path: tiny_models.classifier(path, size=SIZE, layout="NHWC"),
    "classifier of any size": lambda path: tiny_models.classifier(path, size=None),
}
every_backend = pytest.mark.parametrize("backend", REAL)
every_model = pytest.mark.parametrize("kind", MODELS)


def image_input(signature: Signature) -> ImageInput:
    spec = next(spec for spec in signature.inputs if spec.rank == 4)
    return ImageInput(spec.name, "NHWC" if spec.shape and spec.shape[3] == 3 else "NCHW", Arithmetic(), (SIZE, SIZE))


def load(path: Path, backend: str, **options: Any) -> tuple[Engine, Signature]:
    runtime = get_backend(backend)
    signature = runtime.read(Source(path))
    return runtime.load(Source(path), LoadOptions(image=image_input(signature), **options)), signature


def tensors(signature: Signature, seed: int = 0) -> dict[str, NDArray[Any]]:
    """One picture's tensors, without the batch dimension."""
    found: dict[str, NDArray[Any]] = {image_input(signature).name: picture(SIZE, SIZE, seed)}
    if any(spec.name == "scale_factor" for spec in signature.inputs):
        found["scale_factor"] = np.array([0.5, 0.25], np.float32)
    return found


def copied(outputs: Tensors) -> dict[str, NDArray[Any]]:
    return {name: np.array(value) for name, value in outputs.items()}


def assert_close(ours: Tensors, theirs: Tensors, within: float = 1e-4) -> None:
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, name
        assert np.allclose(value, theirs[name], rtol=within, atol=within), name


# The same answers


@every_model
def test_both_runtimes_read_and_answer_the_same(kind: str, tmp_path: Path) -> None:
    path = MODELS[kind](tmp_path / "m.onnx")
    answers, signatures = [], []
    for backend in REAL:
        engine, signature = load(path, backend)
        batch = {name: value[None] for name, value in tensors(signature).items()}
        answers.append(copied(engine.clone().infer(batch)))
        signatures.append(signature)
    ours, theirs = answers
    assert_close(ours, theirs)
    assert signatures[0].inputs == signatures[1].inputs
    assert [spec.name for spec in signatures[0].outputs] == [spec.name for spec in signatures[1].outputs]


@every_backend
@every_model
def test_contexts_on_threads_of_their_own_give_each_picture_its_own_answer(
    kind: str, backend: str, tmp_path: Path
) -> None:
    engine, signature = load(MODELS[kind](tmp_path / "m.onnx"), backend, contexts=4)
    batches = [{name: value[None] for name, value in tensors(signature, seed).items()} for seed in range(12)]
    alone = engine.clone()
    expected = [copied(alone.infer(batch)) for batch in batches]

    def work(start: int) -> None:
        context = engine.clone()
        for i in range(2 * len(batches)):
            index = (start + i) % len(batches)
            assert_close(context.infer(batches[index]), expected[index])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(0, 12, 3)))


# Batches


@every_backend
@every_model
def test_a_batch_equals_its_pictures_one_by_one(kind: str, backend: str, tmp_path: Path) -> None:
    engine, signature = load(MODELS[kind](tmp_path / "m.onnx"), backend, max_batch_size=4)
    assert engine.max_batch_size == 4
    context = engine.clone()
    items = [tensors(signature, seed) for seed in range(4)]
    single = [copied(context.infer(stack([item], 1))) for item in items]
    for count in (1, 2, 3, 4):
        together = copied(context.infer(stack(items[:count], count)))
        joined = {name: np.concatenate([one[name] for one in single[:count]]) for name in single[0]}
        assert_close(together, joined)


@every_backend
def test_fixed_batch_sizes_are_padded_and_change_no_answer(backend: str, tmp_path: Path) -> None:
    engine, signature = load(tiny_models.yolov8(tmp_path / "m.onnx"), backend, batch_sizes=(4, 1, 2))
    assert sorted(engine.batch_sizes) == [1, 2, 4]
    assert engine.max_batch_size == 4
    assert list(engine.batch_sizes) == sorted(engine.batch_sizes)
    context = engine.clone()
    items = [tensors(signature, seed) for seed in range(3)]
    single = [copied(context.infer(stack([item], 1))) for item in items]
    padded = context.infer(stack(items, 4))["output0"]
    assert len(padded) == 4
    for row, one in zip(padded, single, strict=False):
        assert np.allclose(row, one["output0"][0], atol=1e-4)


@every_backend
def test_the_cpu_takes_single_pictures_unless_asked_for_more(backend: str, tmp_path: Path) -> None:
    engine, _ = load(tiny_models.yolov8(tmp_path / "m.onnx"), backend)
    assert engine.max_batch_size == 1
    assert engine.contexts >= 1
    engine, _ = load(tmp_path / "m.onnx", backend, contexts=3)
    assert engine.contexts == 3


def one_at_a_time(path: Path) -> Path:
    """A classifier with a token of its own for one picture, as vision transformers are exported with a batch of 1."""
    graph = Graph()
    tokens = graph.rows(graph.patches(graph.input("x", [1, 3, SIZE, SIZE]), 16, 16), 16)
    joined = graph.add("Concat", graph.weights(1, 1, 16), tokens, axis=1)
    mixed = graph.add("ReduceMean", joined, axes=[1], keepdims=0)
    graph.add("Gemm", mixed, graph.weights(16, 5), output="logits")
    graph.output("logits", [1, 5])
    return graph.save(path)


@every_backend
def test_a_model_that_fixes_its_batch_serves_single_pictures(backend: str, tmp_path: Path) -> None:
    engine, signature = load(one_at_a_time(tmp_path / "m.onnx"), backend)
    assert (engine.batch_sizes, engine.max_batch_size) == ((1,), 1)
    assert engine.clone().infer(stack([tensors(signature)], 1))["logits"].shape == (1, 5)


@every_backend
@pytest.mark.parametrize("asked", [{"max_batch_size": 4}, {"batch_sizes": (1, 4)}])
def test_a_model_that_fixes_its_batch_says_so_when_more_is_asked(backend: str, asked: Any, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidModel, match=r"batch.*\(export it with a dynamic batch dimension, or say batching.max_batch"
    ):
        load(one_at_a_time(tmp_path / "m.onnx"), backend, **asked)


@pytest.mark.parametrize("more", [{}, {"max_batch_size": 2}, {"batch_sizes": (1, 2)}])
def test_shapes_that_do_not_fit_are_not_blamed_on_the_batch(more: Any, tmp_path: Path) -> None:
    path = tiny_models.classifier(tmp_path / "m.onnx", size=None)
    with pytest.raises(InvalidModel, match=r"runtime.shapes gives 'x' 3 dimensions, the model has 4"):
        get_backend("openvino").load(Source(path), LoadOptions(shapes={"x": (1, 3, 32)}, **more))
    with pytest.raises(InvalidModel, match=r"does not take the shapes .*\(check runtime.shapes in model.yaml\)"):
        get_backend("openvino").load(Source(path), LoadOptions(shapes={"x": (1, 7, 32, 32)}, **more))


@every_backend
def test_pictures_of_other_channels_than_the_model_takes_are_refused_at_the_start(backend: str, tmp_path: Path) -> None:
    path = tiny_models.classifier(tmp_path / "m.onnx", size=SIZE, channels=1)
    with pytest.raises(InvalidModel, match="preprocess"):
        get_backend(backend).load(Source(path), LoadOptions(image=ImageInput("x", "NCHW", Arithmetic(), (SIZE, SIZE))))


# Names


def test_outputs_without_a_name_get_a_stable_one(tmp_path: Path) -> None:
    """YOLOv8's own OpenVINO export has one."""
    parameter = ops.parameter([1, 3, SIZE, SIZE], np.float32, name="images")
    parameter.output(0).get_tensor().set_names({"images"})
    named = ops.relu(parameter)
    named.output(0).get_tensor().set_names({"named"})
    model = openvino.Model([ops.negative(parameter), named], [parameter], "unnamed")
    openvino.save_model(model, tmp_path / "m.xml", compress_to_fp16=False)
    text = (tmp_path / "m.xml").read_text()
    (tmp_path / "m.xml").write_text(re.sub(r' (output_)?names="Result_\d+"', "", text))
    engine, signature = load(tmp_path / "m.xml", "openvino")
    assert [spec.name for spec in signature.outputs] == ["output_0", "named"]
    outputs = engine.clone().infer(stack([tensors(signature)], 1))
    assert list(outputs) == ["output_0", "named"]
    assert np.allclose(outputs["output_0"], -outputs["named"])


@every_backend
def test_names_are_the_files_own_even_behind_an_identity(backend: str, tmp_path: Path) -> None:
    graph = Graph()
    inner = graph.add("Relu", graph.input("pictures", ["batch", 3, SIZE, SIZE]), output="a")
    graph.add("Identity", inner, output="the_output")
    graph.output("the_output", ["batch", 3, SIZE, SIZE])
    engine, signature = load(graph.save(tmp_path / "m.onnx", {"names": "['x']"}), backend)
    assert [spec.name for spec in signature.outputs] == ["the_output"]
    assert list(engine.clone().infer(stack([tensors(signature)], 1))) == ["the_output"]
    assert signature.metadata["names"] == "['x']"


@every_backend
def test_shapes_that_the_file_leaves_open_are_read_as_far_as_they_are_fixed(backend: str, tmp_path: Path) -> None:
    graph = Graph()
    features = graph.patches(graph.input("images", ["batch", 3, "height", "width"]), 8, 32)
    graph.rows(features, 8, output="y")
    graph.output("y", ["batch", "anchors", "values"])
    signature = get_backend(backend).read(Source(graph.save(tmp_path / "m.onnx")))
    assert signature.outputs[0].shape == (None, None, 8)


# Precision, device, shapes


def test_the_cpu_computes_in_f32_unless_told_otherwise(tmp_path: Path) -> None:
    path = tiny_models.yolov8(tmp_path / "m.onnx")
    engine, signature = load(path, "openvino")
    assert engine.describe().precision == "f32"
    assert engine.describe().devices["CPU"]
    batch = stack([tensors(signature)], 1)
    exact = copied(engine.clone().infer(batch))
    assert_close(exact, load(path, "onnxruntime")[0].clone().infer(batch))
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16, so that nothing can go wrong")
    rough, _ = load(path, "openvino", precision="bf16")
    assert rough.describe().precision == "bf16"
    assert np.abs(rough.clone().infer(batch)["output0"] - exact["output0"]).max() > 1e-3


def test_shapes_fix_what_the_file_leaves_open(tmp_path: Path) -> None:
    path = tiny_models.classifier(tmp_path / "m.onnx", size=None)
    context = get_backend("openvino").load(Source(path), LoadOptions(shapes={"x": (1, 3, 48, 40)})).clone()
    assert context.infer({"x": np.zeros((1, 3, 48, 40), np.float32)})["logits"].shape == (1, 5)
    with pytest.raises(RuntimeError):
        context.infer({"x": np.zeros((1, 3, 64, 64), np.float32)})


@pytest.mark.parametrize(
    ("backend", "device", "says"),
    [
        ("openvino", "GPU.7", r"no device 'GPU.7' on this machine; it finds .*CPU"),
        ("openvino", "HETERO:GPU.7,CPU", r"no device 'GPU.7'"),
        ("openvino", "AUTO:CPU,XPU", r"no device 'XPU'"),
        ("openvino", "", r"no device ''"),
        ("openvino", "cpu", r"no device 'cpu'"),
        ("onnxruntime", "GPU", r"runs on CPU or cuda:N, not on GPU"),
        ("onnxruntime", "cuda:one", r"cuda:one"),
        ("onnxruntime", "cuda:0", r"no CUDA provider \(pip "),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_what_there_is(
    backend: str, device: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        load(tiny_models.yolov8(tmp_path / "m.onnx"), backend, device=device)
    assert re.search(says, str(caught.value))


@pytest.mark.parametrize("device", ["CPU", "AUTO", "AUTO:CPU", "HETERO:CPU", "MULTI:CPU"])
def test_any_device_string_of_openvinos_works(device: str, tmp_path: Path) -> None:
    path = tiny_models.yolov8(tmp_path / "m.onnx")
    engine, signature = load(path, "openvino", device=device, max_batch_size=2)
    assert "CPU" in engine.describe().device
    items = [tensors(signature, seed) for seed in range(2)]
    expected = load(path, "openvino", max_batch_size=2)[0].clone().infer(stack(items, 2))
    assert_close(engine.clone().infer(stack(items, 2)), expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "f16"}, r"own precision, not f16 \(export the model in that precision"),
        ({"cpu_operators": ("Sigmoid",)}, r"cpu_operators is OpenVINO's"),
    ],
)
def test_onnxruntime_refuses_what_it_cannot_do(options: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=says):
        load(tiny_models.yolov8(tmp_path / "m.onnx"), "onnxruntime", **options)


def test_the_runtimes_own_options_are_passed_through(tmp_path: Path) -> None:
    path = tiny_models.yolov8(tmp_path / "m.onnx")
    load(path, "openvino", options={"INFERENCE_NUM_THREADS": "1"})
    with pytest.raises(InvalidModel, match="NO_SUCH"):
        load(path, "openvino", options={"NO_SUCH": "1"})
    load(path, "onnxruntime", options={"session.disable_prepacking": "1"})
    with pytest.raises(InvalidModel, match="'NO_SUCH' is no option of ONNX Runtime on the CPU"):
        load(path, "onnxruntime", options={"NO_SUCH": "1"})


def test_compiled_models_are_kept_in_the_cache_folder(tmp_path: Path) -> None:
    path = tiny_models.yolov8(tmp_path / "m.onnx")
    answers = []
    for _ in range(2):
        engine, signature = load(path, "openvino", cache_dir=tmp_path / "cache")
        answers.append(copied(engine.clone().infer(stack([tensors(signature)], 1))))
    assert list((tmp_path / "cache").iterdir())
    ours, theirs = answers
    assert_close(ours, theirs)


@every_backend
def test_closing_an_engine_leaves_a_running_context_alone(backend: str, tmp_path: Path) -> None:
    engine, signature = load(tiny_models.yolov8(tmp_path / "m.onnx"), backend)
    context = engine.clone()
    engine.close()
    assert context.infer(stack([tensors(signature)], 1))["output0"].shape == (1, 7, 64)


# Files that cannot be read


@every_backend
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pb", ".tflite", ".pdmodel", ".txt"])
@pytest.mark.parametrize(
    "content", [b"", b"junk", b"\0" * 1000, b"<net>", b"<?xml version='1.0'?><net name='x' version='11'/>"]
)
def test_a_file_that_is_no_model_is_refused_with_its_name(
    suffix: str, content: bytes, backend: str, tmp_path: Path
) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(InvalidModel) as caught:
        get_backend(backend).read(Source(path))
        get_backend(backend).load(Source(path), LoadOptions())
    assert "broken" in str(caught.value)
    assert caught.value.hint or backend == "onnxruntime"


@every_backend
def test_no_weights_at_all_are_refused(backend: str) -> None:
    with pytest.raises(InvalidModel):
        get_backend(backend).read(Source())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_models.yolov8(tmp_path_factory.mktemp("whole") / "m.onnx").read_bytes()


def try_to_load(path: Path, backend: str) -> None:
    runtime = get_backend(backend)
    signature = runtime.read(Source(path))
    inputs = {spec.name for spec in signature.inputs if spec.rank == 4}
    image = ImageInput("images", "NCHW", Arithmetic(), (SIZE, SIZE)) if "images" in inputs else None
    runtime.load(Source(path), LoadOptions(image=image))


@every_backend
@given(share=st.floats(0, 0.999))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_file_is_refused(backend: str, share: float, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SetupError):
        try_to_load(path, backend)


@every_backend
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_loads_or_is_refused(
    backend: str, changes: list[tuple[float, int]], whole: bytes, tmp_path: Path
) -> None:
    data = bytearray(whole)
    for where, value in changes:
        data[int(where * len(data))] = value
    path = tmp_path / "damaged.onnx"
    path.write_bytes(data)
    try:
        try_to_load(path, backend)
    except SetupError as error:
        assert error.message


# The registry


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidModel, match=f"unknown backend 'torch' .known: {', '.join(BACKENDS)}"):
        get_backend("torch")


@every_backend
def test_a_backend_that_is_not_installed_says_what_to_install(backend: str) -> None:
    code = f"""if True:
        import sys
        sys.modules[{backend!r}] = None
        from visionpool.errors import BackendUnavailable
        from visionpool_server.backends import get_backend
        try:
            get_backend({backend!r})
        except BackendUnavailable as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert f"needs the Python package '{backend}' (pip install 'visionpool[server,{backend}]')" in done.stdout


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_runtime_leaves_no_trace_under_home(tmp_path: Path, name: str) -> None:
    """Their usage statistics would write there, and OpenVINO's ask the network."""
    home = tmp_path / "home"
    home.mkdir()
    path = tiny_models.yolov8(tmp_path / "m.onnx")
    code = f"""if True:
        import sys
        from pathlib import Path
        from visionpool_server.backends import LoadOptions, Source, get_backend
        get_backend({name!r}).load(Source(Path({str(path)!r})), LoadOptions(max_batch_size=1))
        assert sys.modules.get("openvino_telemetry") is None
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "CI", "ORT_"))}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)
    assert list(home.rglob("*")) == []


def test_a_precision_is_no_part_of_a_models_own_options() -> None:
    assert replace(LoadOptions(), precision="f16").options == {}


_UNALIGNED = """
import sys
import numpy as np
from pathlib import Path
from visionpool_server.backends import LoadOptions, Source, get_backend

context = get_backend("openvino").load(Source(Path(sys.argv[1])), LoadOptions(contexts=1)).clone()
for offset in (1, 3, 0, 2, 1, 4):
    for value in (1.0, 2.0):
        data = bytes(offset) + np.full((1, 65536), value, np.float32).tobytes()
        array = np.frombuffer(memoryview(data)[offset:], np.float32).reshape(1, 65536)
        outputs = context.infer({"a": array, "b": array})
        assert (next(iter(outputs.values())) == 2 * value).all(), (offset, value)
print("fine")
"""


def test_large_tensors_at_odd_addresses_live_until_they_are_read(tmp_path: Path) -> None:
    """As they come behind JSON of any length. Freed memory goes back to the system at once here: reading it is a crash."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        "sum",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 65536]) for name in ("a", "b")],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 65536])],
    )
    path = tmp_path / "sum.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", _UNALIGNED, str(path)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
