"""Heterogeneous execution for real, without a GPU: the CPU plugin is registered a second time, as the device SIMCPU.

OpenVINO then splits the graph between two devices just as between a GPU and the CPU. All of it runs in a process of its
own, because a registered plugin stays for as long as the process lives.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool.results import Result
from visionpool_server.backends import Engine, ImageInput, LoadOptions, Placement, Source, get_backend
from visionpool_server.imaging.recipe import Arithmetic

from tests import tiny_models
from tests.tiny_models import SIZE

HETERO = "HETERO:SIMCPU,CPU"
IMAGE = ImageInput("images", "NCHW", Arithmetic(), (SIZE, SIZE))

P = ParamSpec("P")
T = TypeVar("T")
Elsewhere = Callable[Concatenate[Callable[P, T], P], T]


def register_simcpu() -> None:
    """Runs once, in the other process."""
    import openvino
    from visionpool_server.backends.openvino import core

    library = next(Path(openvino.__file__).parent.glob("libs/*openvino_intel_cpu_plugin.*"))
    core().register_plugin(str(library), "SIMCPU")
    core().add_extension(_custom_operator())


def _custom_operator() -> Any:
    """An operator that no device can run, as a new one is to an old plugin."""
    import openvino

    class Swirl(openvino.Op):  # type: ignore[misc]
        class_type_info = openvino.DiscreteTypeInfo("Swirl", "extension")

        def __init__(self, inputs: Any = None) -> None:
            if inputs is None:
                super().__init__(self)
            else:
                super().__init__(self, inputs)

        def validate_and_infer_types(self) -> None:
            self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

        def clone_with_new_inputs(self, new_inputs: Any) -> Any:
            return Swirl(new_inputs)

        def get_type_info(self) -> Any:
            return Swirl.class_type_info

        def visit_attributes(self, visitor: Any) -> bool:
            return True

    return Swirl


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere[..., Any]]:
    """Calls a function in the process that has SIMCPU."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=register_simcpu) as process:

        def call(function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
            return process.submit(function, *arguments, **more).result(120)

        yield call


def batch(count: int, first: int = 0) -> dict[str, NDArray[Any]]:
    return {"images": np.stack([tiny_models.picture(SIZE, SIZE, seed) for seed in range(first, first + count)])}


def load(model: Path, **options: Any) -> Engine:
    return get_backend("openvino").load(Source(model), LoadOptions(image=IMAGE, **options))


def answer(model: Path, count: int = 1, **options: Any) -> tuple[NDArray[Any], Placement]:
    engine = load(model, **options)
    return np.array(engine.clone().infer(batch(count))["output0"]), engine.describe()


def on_threads(model: Path, contexts: int, **options: Any) -> list[NDArray[Any]]:
    engine = load(model, contexts=contexts, **options)

    def work(seed: int) -> NDArray[Any]:
        context = engine.clone()
        return np.array([np.array(context.infer(batch(1, seed))["output0"]) for _ in range(5)])

    with ThreadPoolExecutor(contexts) as threads:
        return list(threads.map(work, range(contexts)))


def predicted(folder: Path, pictures: list[bytes]) -> list[Result]:
    from visionpool_server.app import offline
    from visionpool_server.models.loader import Defaults
    from visionpool_server.service import Ask

    with offline([folder], Defaults(precision="f32"), max_pixels=50_000_000) as service:
        (model,) = service.models
        return [asyncio.run(service.predict(model, picture, Ask(timeout=60))).result for picture in pictures]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.yolov8(tmp_path_factory.mktemp("hetero") / "m.onnx")


@pytest.fixture(scope="module")
def alone(model: Path, elsewhere: Elsewhere[..., Any]) -> NDArray[Any]:
    """What the CPU alone answers to four pictures."""
    output, _ = elsewhere(answer, model, 4, max_batch_size=4)
    return np.asarray(output)


@pytest.mark.parametrize("operators", [("Sigmoid",), ("Transpose", "Concat"), ("Convolution",)])
def test_the_named_operators_run_on_the_cpu_and_the_others_on_the_device(
    model: Path, alone: NDArray[Any], elsewhere: Elsewhere[..., Any], operators: tuple[str, ...]
) -> None:
    options = {"device": HETERO, "cpu_operators": operators, "precision": "f32", "max_batch_size": 4}
    output, placement = elsewhere(answer, model, 4, **options)
    assert set(placement.device.split(", ")) == {"SIMCPU", "CPU"}
    assert placement.devices["CPU"] == tuple(sorted(operators))
    others = {"Sigmoid", "Transpose", "Concat", "Convolution", "Multiply", "Add", "Slice"} - set(operators)
    assert others <= set(placement.devices["SIMCPU"])
    assert np.allclose(output, alone, atol=1e-4)


def test_without_named_operators_all_run_on_the_first_device_that_can(
    model: Path, alone: NDArray[Any], elsewhere: Elsewhere[..., Any]
) -> None:
    output, placement = elsewhere(answer, model, 4, device=HETERO, precision="f32", max_batch_size=4)
    assert list(placement.devices) == ["SIMCPU"]
    assert np.allclose(output, alone, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_batch_size_is_split_alike(
    model: Path, alone: NDArray[Any], elsewhere: Elsewhere[..., Any], count: int
) -> None:
    sizes = {"batch_sizes": (1, 2, 3, 4)}
    options = {"device": HETERO, "cpu_operators": ("Sigmoid",), "precision": "f32", **sizes}
    output, _ = elsewhere(answer, model, count, **options)
    assert np.allclose(output, alone[:count], atol=1e-4)


def test_the_part_on_the_cpu_is_in_f32_whatever_the_other_device_does(
    model: Path, alone: NDArray[Any], elsewhere: Elsewhere[..., Any]
) -> None:
    """A CPU with bf16 would else use it in its part."""
    operators = ("Convolution", "Sigmoid", "Multiply", "Add", "Concat", "Transpose", "Slice", "Reshape")
    output, placement = elsewhere(answer, model, 4, device=HETERO, cpu_operators=operators, max_batch_size=4)
    assert "Convolution" in placement.devices["CPU"]
    assert np.allclose(output, alone, atol=1e-4)


def test_contexts_of_a_split_model_work_side_by_side(
    model: Path, alone: NDArray[Any], elsewhere: Elsewhere[..., Any]
) -> None:
    options = {"device": HETERO, "cpu_operators": ("Sigmoid",), "precision": "f32", "batch_sizes": (1,)}
    for seed, outputs in enumerate(elsewhere(on_threads, model, 4, **options)):
        assert np.allclose(outputs, alone[seed], atol=1e-4)


def test_a_model_split_by_its_model_yaml_answers_as_on_the_cpu_alone(
    tmp_path: Path, elsewhere: Elsewhere[..., Any]
) -> None:
    pictures = [cv2.imencode(".png", tiny_models.picture(90, 120, seed))[1].tobytes() for seed in range(3)]
    for name, runtime in {"split": {"device": HETERO, "cpu_operators": ["Sigmoid"]}, "whole": {}}.items():
        tiny_models.yolov8(tmp_path / name / "m.onnx")
        (tmp_path / name / "model.yaml").write_text(yaml.safe_dump({"runtime": runtime}))
    split, whole = (elsewhere(predicted, tmp_path / name, pictures) for name in ("split", "whole"))
    for ours, theirs in zip(split, whole, strict=True):
        assert len(ours.boxes) > 3
        assert ours.label_ids == theirs.label_ids
        assert np.allclose(ours.boxes, theirs.boxes, atol=0.01)
        assert np.allclose(ours.scores, theirs.scores, atol=1e-4)


# What goes wrong


def refusal(elsewhere: Elsewhere[..., Any], model: Path, **options: Any) -> str:
    with pytest.raises(InvalidModel) as caught:
        elsewhere(answer, model, 1, **options)
    return str(caught.value)


def test_an_operator_that_the_model_does_not_have_is_answered_with_those_it_has(
    model: Path, elsewhere: Elsewhere[..., Any]
) -> None:
    message = refusal(elsewhere, model, device=HETERO, cpu_operators=("MulticlassNms", "Sigmoid"))
    assert message.startswith(
        "cpu_operators names MulticlassNms, which the model does not have (it has Add, Concat, Conv"
    )
    assert "Parameter" not in message


@pytest.mark.parametrize(
    ("device", "advice"),
    [("SIMCPU", "say runtime.device: HETERO:SIMCPU,CPU"), ("CPU", "HETERO:GPU,CPU, or leave cpu_operators out")],
)
def test_cpu_operators_need_two_devices(model: Path, elsewhere: Elsewhere[..., Any], device: str, advice: str) -> None:
    message = refusal(elsewhere, model, device=device, cpu_operators=("Sigmoid",))
    assert f"the device is {device}" in message
    assert advice in message


@pytest.fixture(scope="module")
def swirling(tmp_path_factory: pytest.TempPathFactory, elsewhere: Elsewhere[..., Any]) -> Path:
    path = tmp_path_factory.mktemp("swirl") / "m.xml"
    elsewhere(write_swirling, path)
    return path


def write_swirling(path: Path) -> None:
    import openvino
    import openvino.opset13 as ops

    parameter = ops.parameter(openvino.PartialShape([-1, 3, SIZE, SIZE]), openvino.Type.f32, name="images")
    parameter.output(0).get_tensor().set_names({"images"})
    swirl = _custom_operator()([parameter.output(0)])
    openvino.serialize(openvino.Model([ops.relu(swirl)], [parameter], "swirling"), str(path))


def test_an_operator_missing_on_the_device_is_named_with_the_setting_that_fixes_it(
    swirling: Path, elsewhere: Elsewhere[..., Any]
) -> None:
    message = refusal(elsewhere, swirling, device="SIMCPU")
    assert message == (
        "SIMCPU cannot run Swirl (say runtime.device: HETERO:SIMCPU,CPU in model.yaml, with runtime.cpu_operators: [Swirl])"
    )


@pytest.mark.parametrize(
    "options", [{"device": "CPU"}, {"device": HETERO}, {"device": HETERO, "cpu_operators": ("Swirl",)}]
)
def test_an_operator_missing_on_all_devices_is_named_with_what_is_left(
    swirling: Path, elsewhere: Elsewhere[..., Any], options: dict[str, Any]
) -> None:
    message = refusal(elsewhere, swirling, **options)
    assert f"{options['device']} cannot run Swirl (" in message
    assert "runtime.backend: onnxruntime" in message


def pinned_picodet(testdata: Path) -> dict[str, tuple[str, ...]]:
    model = testdata / "models" / "picodet_s_320_paddle" / "model.pdmodel"
    image = ImageInput("image", "NCHW", Arithmetic(), (320, 320))
    options = LoadOptions(image=image, device=HETERO, cpu_operators=("Concat", "Transpose"))
    engine = get_backend("openvino").load(Source(model), options)
    picture: dict[str, NDArray[Any]] = {
        "image": np.zeros((1, 320, 320, 3), np.uint8),
        "scale_factor": np.ones((1, 2), np.float32),
    }
    engine.clone().infer(picture)
    return dict(engine.describe().devices)


def test_weights_stay_with_the_operators_that_they_are_for(testdata: Path, elsewhere: Elsewhere[..., Any]) -> None:
    """Left on the other device, they would reach a convolution as a tensor, which no plugin takes."""
    assert elsewhere(pinned_picodet, testdata)["CPU"] == ("Concat", "Transpose")
