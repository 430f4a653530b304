"""docs/intel.md for real: device strings, hints of precision, workers on two devices, shapes, and what is said without a device.

There is no GPU here. As in test_hetero, the CPU plugin is registered a second time, as the device SIMCPU, in another process.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import openvino as ov
import pytest
import yaml
from numpy.typing import NDArray
from visionpool.errors import BackendUnavailable, InvalidModel
from visionpool.results import Result
from visionpool_server.backends import LoadOptions, Placement, ShapeUse, Source, device_name, get_backend
from visionpool_server.backends.openvino import core, devices
from visionpool_server.backends.openvino.files import read_model
from visionpool_server.models.loader import Defaults

from tests import tiny_models
from tests.conftest import Serve
from tests.test_cli import failed, visionpool
from tests.test_detectors import PADDLE, write
from tests.test_hetero import Elsewhere, answer, batch, elsewhere, load
from tests.test_shapes import classifier
from tests.tiny_models import SIZE

__all__ = ["elsewhere"]  # the fixture: a process whose OpenVINO has a second device, SIMCPU

HINT = "INFERENCE_PRECISION_HINT"
PAGE = (Path(__file__).parent.parent / "docs/fastdeploy.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.yolov8(tmp_path_factory.mktemp("intel") / "m.onnx")


# Device strings


@pytest.mark.parametrize(
    ("device", "runs_on"),
    [
        ("SIMCPU", {"SIMCPU"}),
        ("HETERO:SIMCPU,CPU", {"SIMCPU"}),
        ("AUTO:SIMCPU,CPU", {"SIMCPU"}),
        ("AUTO:CPU,SIMCPU", {"CPU"}),
        ("MULTI:SIMCPU,CPU", {"SIMCPU", "CPU"}),
        ("AUTO", {"SIMCPU", "CPU"}),
        ("AUTO:-GPU,-NPU", {"SIMCPU", "CPU"}),
    ],
)
def test_every_kind_of_device_string_gives_the_same_answers(
    model: Path, elsewhere: Elsewhere[..., Any], device: str, runs_on: set[str]
) -> None:
    alone, _ = elsewhere(answer, model, 4, max_batch_size=4)
    output, placement = elsewhere(answer, model, 4, device=device, precision="f32", max_batch_size=4)
    assert {*placement.device.split(", ")} <= runs_on
    assert placement.precision == "f32"
    np.testing.assert_allclose(output, alone, atol=1e-4)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("cpu", "CPU"),
        (" Gpu.1 ", "GPU.1"),
        ("hetero: gpu, cpu", "HETERO:GPU,CPU"),
        ("auto:-npu", "AUTO:-NPU"),
        ("CUDA:0", "cuda:0"),
        ("cuda", "cuda"),
    ],
)
def test_case_and_spaces_of_a_device_do_not_matter(said: str, meant: str) -> None:
    assert device_name(said) == meant


def served(folder: Path, pictures: list[bytes], device: str = "CPU") -> tuple[list[Placement], list[Result]]:
    """Where a folder's model runs, and what it finds in pictures that are sent at once."""
    from visionpool_server.app import offline
    from visionpool_server.service import Ask

    async def all_at_once() -> list[Result]:
        found = await asyncio.gather(*(service.predict(served_model, each, Ask(timeout=60)) for each in pictures))
        return [prediction.result for prediction in found]

    with offline([folder], Defaults(device=device, precision="f32"), max_pixels=50_000_000) as service:
        (served_model,) = service.models
        return list(served_model.pool.placements), asyncio.run(all_at_once())


def bundle(folder: Path, **said: Any) -> Path:
    tiny_models.yolov8(folder / "m.onnx")
    (folder / "model.yaml").write_text(yaml.safe_dump(said))
    return folder


def files(count: int) -> list[bytes]:
    return [cv2.imencode(".png", tiny_models.picture(90, 120, seed))[1].tobytes() for seed in range(count)]


def assert_alike(ours: list[Result], theirs: list[Result]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        mine, wanted = one.to_dict(), other.to_dict()
        assert len(wanted["boxes"]) > 3
        assert mine["label_ids"] == wanted["label_ids"]
        np.testing.assert_allclose(mine["boxes"], wanted["boxes"], atol=0.01)
        np.testing.assert_allclose(mine["scores"], wanted["scores"], atol=1e-4)


@pytest.mark.parametrize("where", ["model.yaml", "the flag", "workers"])
def test_a_device_in_lower_case_is_understood_wherever_it_is_said(
    tmp_path: Path, elsewhere: Elsewhere[..., Any], where: str
) -> None:
    device = "hetero:simcpu, cpu"
    said: dict[str, Any] = {"model.yaml": {"runtime": {"device": device}}, "workers": {"workers": [{"device": device}]}}
    folder = bundle(tmp_path / "m", **said.get(where, {}))
    (placement,), _ = elsewhere(served, folder, files(1), device if where == "the flag" else "CPU")
    assert placement.device == "SIMCPU"


def test_an_empty_device_is_the_default(tmp_path: Path) -> None:
    (placement,), _ = served(bundle(tmp_path / "m", runtime={"device": ""}), files(1))
    assert placement.device == "CPU"


# Devices that are not there


def without(device: str) -> None:
    if any(name.startswith(device) for name in core().available_devices):
        pytest.skip(f"this machine has a {device}")


@pytest.mark.parametrize(
    ("device", "missing", "hint"),
    [
        ("GPU", "GPU", r"libOpenCL.so.1.*/dev/dri"),
        ("GPU.1", "GPU.1", r"libOpenCL.so.1.*/dev/dri"),
        ("AUTO:GPU,CPU", "GPU", "libOpenCL"),
        ("MULTI:CPU,GPU.1", "GPU.1", "libOpenCL"),
        ("HETERO:GPU,CPU", "GPU", "libOpenCL"),
        ("NPU", "NPU", r"libze_loader.so.1.*/dev/accel"),
        ("AUTO:CPU,NPU", "NPU", "libze_loader"),
        ("XPU", "XPU", r"a device is CPU, GPU, GPU.1, NPU or AUTO, or several: HETERO:GPU,CPU"),
        ("BATCH:CPU", "BATCH:CPU", "a device is"),
        ("HETERO:AUTO,CPU", "AUTO", "a device is"),
        ("HETERO:-GPU,CPU", "-GPU", "a device is"),
        ("cuda:0", "cuda:0", r"cuda:0 is a device of runtime.backend: onnxruntime"),
        ("CPU.1", "CPU.1", None),
    ],
)
def test_a_device_that_is_missing_is_named_with_those_that_are_there(
    model: Path, device: str, missing: str, hint: str | None
) -> None:
    without("GPU")
    without("NPU")
    with pytest.raises(BackendUnavailable) as caught:
        load(model, device=device)
    assert caught.value.message == f"OpenVINO finds no device {missing!r} on this machine; it finds CPU"
    assert re.search(hint, caught.value.hint or "") if hint else caught.value.hint is None


@pytest.mark.parametrize("device", ["HETERO", "MULTI", "HETERO:", "AUTO:", "HETERO:CPU,", "MULTI:,CPU"])
def test_a_device_string_that_names_no_devices_is_refused(model: Path, device: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"device '{device}' does not name its devices .*HETERO:GPU,CPU"):
        load(model, device=device)


@pytest.mark.parametrize(
    ("listed", "ids", "here", "missing"),
    [
        (["CPU", "GPU"], ["0"], ("GPU", "GPU.0"), ("GPU.1", "CPU.0", "NPU")),
        (["CPU", "GPU.0", "GPU.1"], ["0", "1"], ("GPU", "GPU.0", "GPU.1"), ("GPU.2", "CPU.0")),
        (["CPU"], [], ("CPU",), ("GPU", "GPU.0")),
    ],
)
def test_a_lone_gpu_goes_by_its_number_too(
    monkeypatch: pytest.MonkeyPatch, listed: list[str], ids: list[str], here: tuple[str, ...], missing: tuple[str, ...]
) -> None:
    """A stand-in answers as OpenVINO does with GPUs: of a kind with one device it lists the name alone (its core_impl.cpp,
    `get_available_devices`)."""
    answers = {"CPU": [""], "GPU": ids}
    stand_in = SimpleNamespace(available_devices=listed, get_property=lambda device, _: answers[device])
    monkeypatch.setattr(devices, "core", lambda: stand_in)
    assert all(map(devices.is_here, here))
    assert not any(map(devices.is_here, missing))


@pytest.mark.parametrize("device", ["GPU.7", "hetero:gpu.7,cpu"])
def test_serving_on_a_missing_device_ends_with_one_line(model: Path, device: str) -> None:
    done = visionpool("serve", model, "--device", device)
    failed(done, "error: m: OpenVINO finds no device 'GPU.7' on this machine; it finds CPU")
    assert done.stderr.count("error:") == 1


def test_the_environment_names_the_device_too(model: Path) -> None:
    done = visionpool("serve", model, environment={"VISIONPOOL_DEVICE": "NPU.7"})
    failed(done, "OpenVINO finds no device 'NPU.7'")


def test_inspecting_for_a_device_in_lower_case_is_for_that_device(model: Path) -> None:
    done = visionpool("inspect", model, "--device", "hetero:cpu,gpu.7", "--json")
    assert done.returncode == 0, done.stderr
    told = yaml.safe_load(done.stdout)
    assert [each["device"] for each in told["devices"]][:2] == ["CPU", "GPU.7"]


# Precision


def precisions(model: Path, device: str, precision: Any) -> tuple[str, dict[str, str]]:
    """What the engine says, and what OpenVINO says of a model that it compiled with that hint, on each device alone."""
    properties = {HINT: precision} if precision else {}
    alone = {
        name: core().compile_model(read_model(model), name, properties).get_property(HINT).get_type_name()
        for name in ("SIMCPU", "CPU")
    }
    engine = load(model, device=device, precision=precision, cpu_operators=("Sigmoid",) if "HETERO" in device else ())
    return engine.describe().precision, alone


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16", None])
def test_a_hint_reaches_a_device(model: Path, elsewhere: Elsewhere[..., Any], precision: str | None) -> None:
    told, alone = elsewhere(precisions, model, "SIMCPU", precision)
    assert told == alone["SIMCPU"]
    assert told == "f32" or precision != "f32"


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
def test_a_hint_reaches_all_devices_of_a_string(model: Path, elsewhere: Elsewhere[..., Any], precision: str) -> None:
    for device in ("HETERO:SIMCPU,CPU", "AUTO:SIMCPU,CPU", "MULTI:SIMCPU,CPU"):
        told, alone = elsewhere(precisions, model, device, precision)
        assert {told} == {*alone.values()}


def test_without_a_hint_the_cpu_is_in_f32_and_others_as_they_like(model: Path, elsewhere: Elsewhere[..., Any]) -> None:
    told, alone = elsewhere(precisions, model, "HETERO:SIMCPU,CPU", None)
    assert told == "/".join(dict.fromkeys([alone["SIMCPU"], "f32"]))
    assert elsewhere(precisions, model, "CPU", None)[0] == "f32"
    assert elsewhere(precisions, model, "AUTO:CPU", None)[0] == "f32"


# Operators and properties


@pytest.mark.parametrize(
    ("device", "advice"),
    [
        ("AUTO:SIMCPU,CPU", "HETERO:SIMCPU,CPU"),
        ("MULTI:CPU,SIMCPU", "HETERO:SIMCPU,CPU"),
        ("AUTO", "HETERO:GPU,CPU"),
        ("AUTO:-GPU", "HETERO:GPU,CPU"),
    ],
)
def test_cpu_operators_on_other_strings_are_answered_with_hetero(
    model: Path, elsewhere: Elsewhere[..., Any], device: str, advice: str
) -> None:
    with pytest.raises(InvalidModel) as caught:
        elsewhere(answer, model, 1, device=device, cpu_operators=("Sigmoid",))
    assert f"the device is {device} (say runtime.device: {advice}, or leave" in str(caught.value)


@pytest.mark.parametrize("value", [{"NO_SUCH_PROPERTY": "1"}, {"PERFORMANCE_HINT": "QUICK"}])
def test_a_property_that_the_device_refuses_is_named(
    model: Path, elsewhere: Elsewhere[..., Any], value: dict[str, str]
) -> None:
    with pytest.raises(InvalidModel, match=rf"{next(iter(value))}.*check runtime.options in model.yaml"):
        elsewhere(answer, model, 1, device="SIMCPU", options=value)


def contexts_with(model: Path, device: str, options: dict[str, str]) -> int:
    return load(model, device=device, options=options, max_batch_size=1).contexts


@pytest.mark.parametrize("device", ["CPU", "SIMCPU", "HETERO:SIMCPU,CPU", "AUTO:SIMCPU,CPU"])
def test_a_property_wins_over_the_usual_one(model: Path, elsewhere: Elsewhere[..., Any], device: str) -> None:
    assert elsewhere(contexts_with, model, device, {"PERFORMANCE_HINT": "LATENCY"}) == 1


def cached(model: Path, folder: Path, operators: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[Any], int]:
    options: dict[str, Any] = {"device": "HETERO:SIMCPU,CPU", "precision": "f32", "batch_sizes": (1,)}
    engine = load(model, cpu_operators=operators, cache_dir=folder, **options)
    output = np.array(engine.clone().infer(batch(1))["output0"])
    return engine.describe().devices["CPU"], output, len(list(folder.iterdir()))


def test_each_placement_has_an_entry_of_its_own_in_the_cache(
    model: Path, tmp_path: Path, elsewhere: Elsewhere[..., Any]
) -> None:
    alone, _ = elsewhere(answer, model, 1)
    for kept, operators in [(1, ("Sigmoid",)), (1, ("Sigmoid",)), (2, ("Convolution",)), (2, ("Sigmoid",))]:
        on_cpu, output, count = elsewhere(cached, model, tmp_path / "cache", operators)
        assert (on_cpu, count) == (operators, kept)
        np.testing.assert_allclose(output, alone, atol=1e-4)


# Workers on several devices


def test_workers_on_two_devices_share_a_queue_and_answer_alike(tmp_path: Path, elsewhere: Elsewhere[..., Any]) -> None:
    both = bundle(
        tmp_path / "both",
        workers=[{"device": "SIMCPU", "count": 1}, {"device": "CPU", "count": 1}],
        batching={"max_batch_size": 2},
    )
    placements, ours = elsewhere(served, both, files(24))
    assert [placement.device for placement in placements] == ["SIMCPU", "CPU"]
    _, theirs = elsewhere(served, bundle(tmp_path / "alone"), files(24))
    assert_alike(ours, theirs)


# Shapes


def open_detector(folder: Path) -> Path:
    """As PaddleDetection exports PP-YOLOE for any size: `image` (-1, 3, -1, -1), `scale_factor` (-1, 2), MulticlassNms."""
    from tests.detector_models import paddle_nms
    from tests.test_paddle_detectors import NMS

    folder.mkdir(parents=True)
    made = paddle_nms(folder / "made.xml", nms=NMS["as PP-YOLOE"])
    network = ov.Core().read_model(made)
    sizes = {"image": ov.PartialShape([-1, 3, -1, -1]), "scale_factor": ov.PartialShape([-1, 2])}
    network.reshape(sizes)
    ov.save_model(network, folder / "model.xml", compress_to_fp16=False)
    del network
    for file in folder.glob("made.*"):
        file.unlink()
    write(folder, "infer_cfg.yml", PADDLE)
    return folder


def worked_example() -> dict[str, Any]:
    """The first model.yaml of docs/fastdeploy.md, for SIMCPU and the size of the tiny model."""
    text = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0]
    assert "HETERO:GPU,CPU" in text and "[1, 3, 640, 640]" in text
    said: dict[str, Any] = yaml.safe_load(text.replace("GPU", "SIMCPU").replace("640", str(SIZE)))
    return said


def detections(folder: Path, pictures: list[bytes]) -> tuple[Placement, ShapeUse | None, list[Result]]:
    from visionpool_server.app import offline
    from visionpool_server.service import Ask

    with offline([folder], Defaults(precision="f32"), max_pixels=1_000_000) as service:
        (found,) = service.models
        engine = found.pool.groups[0].engine
        results = [asyncio.run(service.predict(found, each, Ask(timeout=60))).result for each in pictures]
        return found.pool.placements[0], engine.shape_use(), results


def test_fastdeploys_example_for_intel_gpus_answers_as_on_the_cpu(
    tmp_path: Path, elsewhere: Elsewhere[..., Any]
) -> None:
    """PP-YOLOE with its MulticlassNms on the CPU, by the model.yaml of docs/fastdeploy.md."""
    split, whole, bare = (open_detector(tmp_path / name) for name in ("split", "whole", "bare"))
    write(split, "model.yaml", worked_example())
    write(bare, "model.yaml", {"runtime": {"device": "HETERO:SIMCPU,CPU"}})
    placement, use, ours = elsewhere(detections, split, files(3))
    assert placement.devices["CPU"] == ("MulticlassNms",)
    assert (placement.advice, use) == (None, None)
    _, _, theirs = elsewhere(detections, whole, files(3))
    assert_alike(ours, theirs)
    bare_placement, use, without_shapes = elsewhere(detections, bare, files(3))
    assert (bare_placement.advice, use) == (None, None)  # infer_cfg.yml has the size
    assert_alike(without_shapes, theirs)


def tensors(folder: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[str | None, ShapeUse | None, NDArray[Any]]:
    """Of the detector's own tensors, on a device that wants fixed shapes."""
    options = LoadOptions(device="SIMCPU", precision="f32", shapes=shapes)
    engine = get_backend("openvino").load(Source(folder / "model.xml"), options)
    image = np.ascontiguousarray(np.moveaxis(batch(1)["images"], 3, 1), np.float32) / 255
    found = engine.clone().infer({"image": image, "scale_factor": np.ones((1, 2), np.float32)})
    return engine.describe().advice, engine.shape_use(), np.array(next(iter(found.values())))


def test_shapes_fix_the_picture_and_its_scale_factor(tmp_path: Path, elsewhere: Elsewhere[..., Any]) -> None:
    folder = open_detector(tmp_path / "open")
    fixed = {"image": (1, 3, SIZE, SIZE), "scale_factor": (1, 2)}
    advice, use, rows = elsewhere(tensors, folder, fixed)
    assert (advice, use) == (None, None)
    image = np.ascontiguousarray(np.moveaxis(batch(1)["images"], 3, 1), np.float32) / 255
    compiled = ov.Core().compile_model(folder / "model.xml", "CPU", {HINT: "f32"})
    expected = compiled({"image": image, "scale_factor": np.ones((1, 2), np.float32)})[0]
    assert len(rows) > 10
    np.testing.assert_allclose(rows, expected, atol=1e-3)


def dynamic_advice(folder: Path, shapes: dict[str, tuple[int, ...]]) -> str | None:
    options = LoadOptions(device="SIMCPU", shapes=shapes)
    return get_backend("openvino").load(Source(folder), options).describe().advice


def two_inputs(path: Path) -> Path:
    """`image` (n, 3, h, w) and `scale_factor` (n, 2), as PP-YOLOE's; a mean a channel, times the scale."""
    graph = tiny_models.Graph()
    picture, scale = graph.input("image", ["n", 3, "h", "w"]), graph.input("scale_factor", ["n", 2])
    means = graph.add("Flatten", graph.add("GlobalAveragePool", picture))
    graph.add("Concat", means, scale, output="y", axis=1)
    graph.output("y", ["n", 5])
    return graph.save(path)


@pytest.mark.parametrize(
    ("shapes", "proposed"),
    [
        ({}, "image: [1, 3, 640, 640], scale_factor: [1, 2]"),
        ({"image": (1, 3, 320, -1)}, "image: [1, 3, 320, 640], scale_factor: [1, 2]"),
        ({"image": (1, 3, 64, 64)}, "image: [1, 3, 64, 64], scale_factor: [1, 2]"),
        ({"image": (1, 3, 64, 64), "scale_factor": (1, 2)}, None),
    ],
)
def test_what_stays_open_is_named_with_values_for_it(
    tmp_path: Path, elsewhere: Elsewhere[..., Any], shapes: dict[str, tuple[int, ...]], proposed: str | None
) -> None:
    advice = elsewhere(dynamic_advice, two_inputs(tmp_path / "m.onnx"), shapes)
    if proposed is None:
        assert advice is None
    else:
        names = ", ".join(name for name in ("image", "scale_factor") if -1 in shapes.get(name, (-1,)))
        assert advice.startswith(
            f"{names}: dynamic, so each new shape is compiled for SIMCPU when it first comes, and 8 are"
        )
        assert advice.endswith(f"runtime: {{shapes: {{{proposed}}}}}")


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"picture": [1, 3, 64, 64]}, r"runtime.shapes names 'picture'; the model's inputs are image, scale_factor"),
        ({"image": [3, 64, 64]}, r"runtime.shapes gives 'image' 3 dimensions, and the model has 4"),
        ({"image": [1, 4, 64, 64]}, r"the model does not take the shapes .*check runtime.shapes"),
        ({"image": [1, 3, 96, 96]}, r"preprocess ends in pictures of 64x64 .*input 'image' takes 96x96"),
        ({"scale_factor": [1, 3, 1]}, r"runtime.shapes gives 'scale_factor' 3 dimensions, and the model has 2"),
    ],
)
def test_shapes_that_the_model_does_not_take_are_explained(tmp_path: Path, shapes: dict[str, Any], says: str) -> None:
    folder = open_detector(tmp_path / "m")
    write(folder, "model.yaml", {"runtime": {"shapes": shapes}})
    with pytest.raises(InvalidModel, match=says):
        served(folder, [])


def test_the_start_says_what_is_dynamic_and_what_to_write(tmp_path: Path, serve: Serve) -> None:
    """AUTO is a device that gets fixed shapes, even where it can only choose the CPU."""
    classifier(tmp_path / "any.onnx")
    server = serve(tmp_path / "any.onnx", "--device", "auto:cpu")
    log = server.log()
    assert re.search(r"any  tensor .* openvino \S*CPU f32, \d+ worker", log)
    assert (
        "      images: dynamic, so each new shape is compiled for AUTO:CPU when it first comes, and 8 are kept." in log
    )
    assert "runtime: {shapes: {images: [1, 3, 640, 640]}}" in log
