"""`visionpool inspect`: what it counts against independent counts, what it says of devices against OpenVINO's own placement."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import openvino.opset13 as ops
import pytest
import yaml
from visionpool.errors import VisionpoolError
from visionpool_server.backends.openvino.graph import graph_of
from visionpool_server.backends.survey import Edge, Graph, Operator
from visionpool_server.cli import app
from visionpool_server.inspection.inspector import inspect_model
from visionpool_server.inspection.placement import move_to_cpu, split
from visionpool_server.models.files import find_models

from tests import ocr_models, tiny_models
from tests.real_server import Server
from tests.test_cli import failed, visionpool
from tests.test_hetero import register_simcpu

PAGE = Path(__file__).parent.parent / "docs/inspect.md"
HETERO = "HETERO:SIMCPU,CPU"


def inspected(path: Path, **asked: Any) -> dict[str, Any]:
    """The report, as its JSON says it."""
    (files,) = find_models(path)
    report: dict[str, Any] = json.loads(inspect_model(files, **asked).json())
    return report


def printed(monkeypatch: pytest.MonkeyPatch, *arguments: object, columns: int = 100) -> str:
    """What `visionpool inspect ARGUMENTS` prints. In this process: a new one costs seconds on a busy machine."""
    monkeypatch.setenv("COLUMNS", str(columns))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app(["inspect", *map(str, arguments)], standalone_mode=False)
    return out.getvalue()


def refused(path: Path, *says: str) -> None:
    """It ends with an error of ours, which `main` prints as a line and a hint."""
    with pytest.raises(VisionpoolError) as caught:
        app(["inspect", str(path)], standalone_mode=False)
    for words in says:
        assert words in f"{caught.value.message}\n{caught.value.hint}"


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[..., Any]]:
    """Calls a function in a process that has the device SIMCPU."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=register_simcpu) as process:
        yield lambda function, *arguments, **more: process.submit(function, *arguments, **more).result(120)


@pytest.fixture(scope="module")
def yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.yolov8(tmp_path_factory.mktemp("inspect") / "tiny.onnx")


def paddle_detector(folder: Path) -> Path:
    """Two inputs, and suppression in the graph."""
    tiny_models.paddle_detector(folder / "m.onnx")
    (folder / "model.yaml").write_text("preprocess: [{resize: 64}]")
    return folder


# What it is


def test_what_goes_in_and_out_and_why_it_is_what_it_is(yolo: Path) -> None:
    report = inspected(yolo)
    assert report["model"] == {
        "name": "tiny",
        "version": "1",
        "weights": str(yolo),
        "format": "ONNX",
        "bytes": yolo.stat().st_size,
        "config": None,
        "backend": "openvino",
    }
    assert report["inputs"] == [{"name": "images", "shape": [None, 3, 64, 64], "dtype": "float32", "dynamic": [0]}]
    assert report["outputs"] == [{"name": "output0", "shape": [None, 7, 64], "dtype": "float32", "dynamic": [0]}]
    identity = report["identity"]
    assert (identity["task"], identity["family"], identity["source"]) == (
        "detection",
        "yolov8",
        "the shape of its outputs",
    )
    assert "output0 [?, 7, 64]" in identity["reason"]
    assert report["preprocessing"]["steps"][0]["letterbox"]["size"] == [64, 64]
    assert report["model_yaml"] == ""


def test_a_model_yaml_is_named_as_the_source_where_it_says_so(tmp_path: Path) -> None:
    tiny_models.classifier(tmp_path / "m" / "m.onnx")
    written = {"task": "classification", "preprocess": [{"resize": 32}, {"normalize": {"scale": 1}}]}
    (tmp_path / "m" / "model.yaml").write_text(yaml.safe_dump(written))
    report = inspected(tmp_path / "m")
    assert report["identity"]["source"] == "model.yaml"
    assert report["identity"]["reason"] == "model.yaml says task: classification"
    assert [list(step) for step in report["preprocessing"]["steps"]] == [["resize"], ["normalize"]]
    from visionpool_server.models.preprocess import recipe_from

    assert recipe_from(report["preprocessing"]["steps"]).output_size() == (32, 32)  # as model.yaml takes them


def test_plain_tensors_come_with_what_to_write_for_more(tmp_path: Path) -> None:
    report = inspected(tiny_models.classifier(tmp_path / "m.onnx"))
    assert (report["identity"]["task"], report["identity"]["family"]) == ("tensor", None)
    assert "task: classification" in report["identity"]["advice"]
    assert report["preprocessing"] is None
    (shape,) = report["shapes"]
    assert (shape["shape"], shape["needed"], shape["guessed"]) == ([1, 3, 32, 32], True, False)


# Shapes


def test_a_picture_of_any_size_gets_that_of_the_preprocessing_and_the_server_sets_it_itself(tmp_path: Path) -> None:
    tiny_models.classifier(tmp_path / "m" / "m.onnx", size=None)
    written = {"task": "classification", "preprocess": [{"resize_short": 40}, {"center_crop": 32}]}
    (tmp_path / "m" / "model.yaml").write_text(yaml.safe_dump(written))
    (shape,) = inspected(tmp_path / "m")["shapes"]
    assert shape == {
        "input": "x",
        "shape": [1, 3, 32, 32],
        "source": "one picture, the preprocessing",
        "guessed": False,
        "needed": False,
    }


def test_a_guess_is_marked_and_has_to_be_written_down(tmp_path: Path) -> None:
    report = inspected(tiny_models.classifier(tmp_path / "m.onnx", size=None), device="GPU")
    (shape,) = report["shapes"]
    assert (shape["shape"], shape["needed"], shape["guessed"]) == ([1, 3, 224, 224], True, True)
    assert yaml.safe_load(report["model_yaml"]) == {"runtime": {"device": "GPU", "shapes": {"x": [1, 3, 224, 224]}}}


def test_shapes_of_model_yaml_are_kept(tmp_path: Path) -> None:
    tiny_models.classifier(tmp_path / "m" / "m.onnx", size=None)
    (tmp_path / "m" / "model.yaml").write_text("runtime: {shapes: {x: [1, 3, 96, 64]}}")
    report = inspected(tmp_path / "m")
    (shape,) = report["shapes"]
    assert (shape["shape"], shape["source"], shape["guessed"], shape["needed"]) == (
        [1, 3, 96, 64],
        "model.yaml",
        False,
        False,
    )
    assert report["cost"]["shapes"] == {"x": [1, 3, 96, 64]}


# Cost


def by_kind(report: dict[str, Any]) -> dict[str, int]:
    return {entry["kind"]: entry["flops"] for entry in report["cost"]["operators"]}


def test_flops_and_weights_of_a_small_net_are_those_counted_by_hand(tmp_path: Path) -> None:
    report = inspected(tiny_models.classifier(tmp_path / "m.onnx"))
    flops = by_kind(report)
    assert flops["Convolution"] == 2 * (16 * 4 * 4) * (3 * 8 * 8)  # outputs, and what is summed for each
    assert flops["MatMul"] == 2 * 5 * 16
    assert flops["Relu"] == 16 * 4 * 4
    assert flops["Add"] == 16 * 4 * 4 + 5  # two biases
    assert flops["ReduceMean"] == 16 * 4 * 4
    assert report["cost"]["flops"] == sum(flops.values())
    numbers = 16 * 3 * 8 * 8 + 16 + 16 * 5 + 5 + 2  # the last two are Gemm's alpha and beta
    floats = next(entry for entry in report["cost"]["weights"] if entry["dtype"] == "float32")
    assert floats == {"dtype": "float32", "elements": numbers, "bytes": 4 * numbers}
    assert report["cost"]["parameters"] == numbers


def test_the_memory_of_activations_is_what_lives_at_once(tmp_path: Path) -> None:
    """Picture and features of the first convolution, before the picture is let go."""
    report = inspected(tiny_models.classifier(tmp_path / "m.onnx"))
    picture, features = 4 * 3 * 32 * 32, 4 * 16 * 4 * 4
    assert report["cost"]["activation_bytes"] == picture + features
    assert report["cost"]["memory_bytes"] == picture + features + report["cost"]["weight_bytes"]


def parameter(*shape: int) -> Any:
    return ops.parameter(list(shape), np.float32)


def weights(*shape: int) -> Any:
    return ops.constant(np.ones(shape, np.float32))


def counted(result: Any, *inputs: Any) -> dict[str, int | None]:
    graph = graph_of(ov.Model([result], list(inputs)), {}, fixed=True)
    return {operator.kind: operator.flops for operator in graph.operators}


def test_flops_of_grouped_and_transposed_convolutions() -> None:
    x = parameter(1, 8, 10, 12)
    window = ([1, 1], [0, 0], [0, 0], [1, 1])
    grouped = ops.group_convolution(x, weights(4, 3, 2, 3, 3), *window)  # 4 groups, 2 channels to 3 each
    assert counted(grouped, x) == {"GroupConvolution": 2 * (12 * 8 * 10) * (2 * 3 * 3)}
    strided = ([2, 2], [0, 0], [0, 0], [1, 1])
    backwards = ops.convolution_backprop_data(x, weights(8, 5, 2, 2), strides=[2, 2])
    assert counted(backwards, x) == {"ConvolutionBackpropData": 2 * (8 * 10 * 12) * (5 * 2 * 2)}
    both = ops.group_convolution_backprop_data(x, weights(2, 4, 3, 2, 2), strides=strided[0])
    assert counted(both, x) == {"GroupConvolutionBackpropData": 2 * (8 * 10 * 12) * (3 * 2 * 2)}


def test_flops_of_products_pooling_and_a_recurrent_layer() -> None:
    a = parameter(2, 3, 7, 5)
    product = ops.matmul(a, weights(2, 3, 7, 4), True, False)  # (5, 7) x (7, 4)
    assert counted(product, a) == {"MatMul": 2 * (2 * 3 * 5 * 4) * 7}
    x = parameter(1, 8, 10, 12)
    pooled = ops.avg_pool(x, [2, 2], [0, 0], [0, 0], [2, 3], True)
    assert counted(pooled, x) == {"AvgPool": (8 * 5 * 5) * 6}
    sequence, state = parameter(1, 6, 10), parameter(1, 2, 4)
    lengths = ops.constant(np.array([6], np.int64))
    lstm = ops.lstm_sequence(
        sequence, state, state, lengths, weights(2, 16, 10), weights(2, 16, 4), weights(2, 16), 4, "bidirectional"
    )
    assert counted(lstm.output(0), sequence, state) == {"LSTMSequence": 2 * 6 * 2 * 4 * 4 * (10 + 4)}


def test_branches_count_as_the_larger_one_and_loops_by_their_trips() -> None:
    condition, x = ops.parameter([], np.bool_), parameter(2, 8)
    then_x, else_x = parameter(2, 8), parameter(2, 8)
    branch = ops.if_op(condition)
    branch.set_then_body(ov.Model([ops.matmul(then_x, weights(8, 8), False, False)], [then_x]))
    branch.set_else_body(ov.Model([ops.relu(else_x)], [else_x]))
    branch.set_input(x.output(0), then_x, else_x)
    then_body, else_body = branch.get_function(0), branch.get_function(1)
    result = branch.set_output(then_body.results[0], else_body.results[0])
    assert counted(result, condition, x) == {"If": 2 * 2 * 8 * 8}


def test_what_follows_from_constants_alone_costs_nothing(tmp_path: Path) -> None:
    """As the decompression of int8 weights: it is done once."""
    x = parameter(1, 4)
    scaled = ops.multiply(ops.convert(ops.constant(np.ones((4, 6), np.int8)), np.float32), weights(1))
    flops = counted(ops.matmul(x, scaled, False, False), x)
    assert flops == {"Convert": 0, "Multiply": 0, "MatMul": 2 * 6 * 4}
    path = tmp_path / "m.xml"
    ov.save_model(ov.Model([ops.matmul(x, scaled, False, False)], [x]), str(path), compress_to_fp16=False)
    report = inspected(path)
    assert {entry["dtype"]: entry["elements"] for entry in report["cost"]["weights"]}["int8"] == 24
    assert report["model"]["bytes"] == path.stat().st_size + path.with_suffix(".bin").stat().st_size


def test_sizes_that_follow_from_values_are_said_to(tmp_path: Path) -> None:
    report = inspected(paddle_detector(tmp_path / "m"))
    assert "NonMaxSuppression" in report["cost"]["by_value"]
    assert report["identity"]["family"] == "paddle_detection"


@pytest.mark.parametrize(("name", "published"), [("yolov8n", 8.7e9), ("yolov5n", 4.5e9)])
def test_flops_of_real_models_are_those_that_were_published(testdata: Path, name: str, published: float) -> None:
    report = inspected(testdata / "models" / name)
    assert report["cost"]["flops"] == pytest.approx(published, rel=0.03)


def test_the_convolutions_of_a_real_model_are_those_of_its_onnx_file(testdata: Path) -> None:
    """Counted a second time, by onnx's own shape inference."""
    path = testdata / "models/yolov8n/yolov8n.onnx"
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.value_info, *model.graph.output)
    }
    filters = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    total = sum(
        2 * int(np.prod(shapes[node.output[0]])) * int(np.prod(filters[node.input[1]][1:]))
        for node in model.graph.node
        if node.op_type == "Conv"
    )
    assert by_kind(inspected(path))["Convolution"] == total


# Devices


def test_a_device_that_is_not_here_is_said_to_be_missing_and_the_rest_is_told(tmp_path: Path) -> None:
    report = inspected(paddle_detector(tmp_path / "m"), device="HETERO:GPU,CPU")
    gpu, cpu = report["devices"]
    assert (gpu["device"], gpu["available"]) == ("GPU", False)
    assert "not on this machine" in gpu["note"]
    assert cpu["available"] and not cpu["unsupported"]
    assert report["placement"]["now"] is None
    assert "GPU is not on this machine" in report["placement"]["note"]
    assert "NonMaxSuppression" in report["placement"]["note"]
    assert report["cost"]["flops"] > 0
    assert yaml.safe_load(report["model_yaml"])["runtime"]["device"] == "HETERO:GPU,CPU"


def test_each_operator_of_a_model_is_supported_by_the_cpu(yolo: Path) -> None:
    report = inspected(yolo)
    (cpu,) = report["devices"]
    assert sum(cpu["supported"].values()) == sum(entry["count"] for entry in report["cost"]["operators"])
    assert cpu["supported"]["Convolution"] == 1
    assert report["placement"]["now"]["devices"] == {"CPU": cpu["supported"]}


def split_for_real(path: Path, operators: tuple[str, ...]) -> int:
    """How many parts OpenVINO makes of the model with these on the CPU."""
    from visionpool_server.backends import LoadOptions
    from visionpool_server.backends.openvino import core
    from visionpool_server.backends.openvino.devices import place

    model = core().read_model(path)
    model.reshape({0: [1, 3, 64, 64]})
    place(model, LoadOptions(device=HETERO, cpu_operators=operators))
    return int(core().compile_model(model, HETERO).get_property("HETERO_NUMBER_OF_SUBMODELS"))


@pytest.mark.parametrize("operators", [("Sigmoid",), ("Convolution",), ("Add", "Sigmoid"), ("Transpose", "Concat")])
def test_a_split_is_the_one_that_openvino_makes(
    tmp_path: Path, elsewhere: Callable[..., Any], operators: tuple[str, ...]
) -> None:
    path = tiny_models.yolov8(tmp_path / "m" / "m.onnx")
    (tmp_path / "m" / "model.yaml").write_text(yaml.safe_dump({"runtime": {"cpu_operators": list(operators)}}))
    report = elsewhere(inspected, tmp_path / "m", device=HETERO)
    now = report["placement"]["now"]
    assert now["cpu_operators"] == list(operators)
    assert set(now["devices"]["CPU"]) == set(operators)
    assert not set(now["devices"]["SIMCPU"]) & set(operators)
    assert now["subgraphs"] == now["compiled_subgraphs"] == elsewhere(split_for_real, path, operators)
    assert now["hops"] >= 1 and now["hop_bytes"] > 0
    assert [entry["device"] for entry in report["devices"]] == ["SIMCPU", "CPU"]


def test_hops_are_tensors_handed_over_each_to_a_device_once() -> None:
    """a -> b -> c, and a -> c: with b elsewhere, a's output goes there, and b's comes back."""
    graph = chain([("a", []), ("b", [0]), ("c", [0, 1]), ("d", [1, 2])])
    found = split(graph, {"a": "GPU", "b": "CPU", "c": "GPU", "d": "GPU"})
    assert (found.hops, found.hop_bytes) == (2, 20)  # c and d take b's output by one hand-over
    assert found.subgraphs == 3  # a; b; c and d


def chain(nodes: list[tuple[str, list[int]]], flops: dict[str, int] | None = None) -> Graph:
    """Operators whose type is their name without digits."""
    operators = tuple(
        Operator(
            name, re.sub(r"\d", "", name), tuple(Edge(i, 0, 10) for i in sources), (flops or {}).get(name, 1), False
        )
        for name, sources in nodes
    )
    return Graph({}, operators, (), 0)


def test_islands_between_operators_that_the_device_lacks_are_proposed_for_the_cpu() -> None:
    """conv, then Lacking, Small, Lacking, Small: the small ones cost a hop each way."""
    names = ["Conv1", "Lacking1", "Small1", "Lacking2", "Small2", "Lacking3"]
    graph = chain([(name, [i - 1] if i else []) for i, name in enumerate(names)], {"Conv1": 1000})
    where = {name: "CPU" if name.startswith("Lacking") else "GPU" for name in names}
    assert split(graph, where).hops == 5
    assert move_to_cpu(graph, where, "GPU") == ("Lacking", "Small")


def test_the_bulk_of_the_arithmetic_is_not_moved_for_the_sake_of_hops() -> None:
    names = ["Conv1", "Lacking1", "Conv2", "Lacking2", "Conv3"]
    graph = chain([(name, [i - 1] if i else []) for i, name in enumerate(names)], {f"Conv{i}": 1000 for i in (1, 2, 3)})
    where = {name: "CPU" if name.startswith("Lacking") else "GPU" for name in names}
    assert move_to_cpu(graph, where, "GPU") == ()
    assert move_to_cpu(graph, dict.fromkeys(names, "GPU"), "GPU") == ()


# Measured


def test_a_run_says_where_the_time_went(yolo: Path) -> None:
    run = inspected(yolo, run_seconds=0.3)["run"]
    assert run["device"] == "CPU" and run["precision"] == "f32"
    assert run["runs"] >= 1 and run["throughput"] > 0 and run["contexts"] >= 1
    assert (
        0 < run["latency_ms"]["min"] <= run["latency_ms"]["p50"] <= run["latency_ms"]["p90"] <= run["latency_ms"]["p99"]
    )
    kinds = {timing["kind"]: timing for timing in run["timings"]}
    assert kinds["Convolution"]["count"] == 1 and kinds["Convolution"]["device"] == "CPU"
    assert run["operators_ms"] == pytest.approx(sum(timing["ms"] for timing in run["timings"]), abs=0.01)


def test_a_run_of_a_split_model_tells_the_devices_apart(tmp_path: Path, elsewhere: Callable[..., Any]) -> None:
    tiny_models.yolov8(tmp_path / "m" / "m.onnx")
    (tmp_path / "m" / "model.yaml").write_text("runtime: {cpu_operators: [Convolution]}")
    run = elsewhere(inspected, tmp_path / "m", device=HETERO, run_seconds=0.3)["run"]
    assert {timing["device"] for timing in run["timings"]} == {"SIMCPU", "CPU"}
    assert [timing["device"] for timing in run["timings"] if timing["kind"] == "Convolution"] == ["CPU"]


def test_onnxruntime_tells_its_operators_and_where_the_time_went(yolo: Path) -> None:
    report = inspected(yolo, backend="onnxruntime", run_seconds=0.3)
    (cpu,) = report["devices"]
    expected = Counter(node.op_type for node in onnx.load(str(yolo)).graph.node)
    assert Counter(cpu["supported"]) == expected and not cpu["unsupported"]
    assert report["cost"]["flops"] == inspected(yolo)["cost"]["flops"]
    assert any("OpenVINO" in note for note in report["notes"])
    assert {"Conv"} <= {timing["kind"].removeprefix("Fused") for timing in report["run"]["timings"]}
    assert {timing["device"] for timing in report["run"]["timings"]} == {"CPU"}


# The command


def test_the_command_prints_a_report_within_a_hundred_columns(yolo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = printed(monkeypatch, yolo, "--run", "--seconds", 0.3)
    for words in (
        "tiny  detection  (yolov8)",
        "output0",
        "letterbox",
        "Convolution",
        "FLOPs",
        "Measured on CPU",
        "p50",
    ):
        assert words in told
    assert max(map(len, told.splitlines())) <= 100


def test_a_demo_model_goes_by_its_name_and_json_is_all_of_stdout() -> None:
    done = visionpool("inspect", "shapes", "--json")
    assert json.loads(done.stdout)["model"]["name"] == "shapes"


def test_the_placement_of_a_missing_device_is_printed_and_is_no_error(
    yolo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = printed(monkeypatch, yolo, "--device", "HETERO:GPU,CPU")
    assert "not on this machine" in told and "device: HETERO:GPU,CPU" in told


def test_a_run_on_a_device_that_is_not_here_is_left_out_and_all_else_is_told(
    yolo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.loads(printed(monkeypatch, yolo, "--device", "GPU", "--run", "--json"))
    assert report["run"] is None and report["cost"]["flops"] > 0
    assert "not measured: OpenVINO finds no device 'GPU' on this machine; it finds CPU" in report["notes"]


def test_wrong_files_fail_as_with_other_commands(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    refused(tmp_path / "bad.onnx", "bad: ")
    failed(visionpool("inspect", tmp_path / "none.onnx"), "none.onnx does not exist")
    for name in ("a", "b"):
        tiny_models.plain(tmp_path / "several" / name / "m.onnx")
    refused(tmp_path / "several", "holds several models: a, b", "name one of them")


# Pipelines, and models elsewhere


def test_of_a_pipeline_each_step_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ocr_models.pipeline(tmp_path / "ocr")
    report = inspected(folder, run_seconds=0.3)
    assert (report["model"]["name"], report["model"]["format"], report["cost"]) == ("ocr", "pipeline", None)
    assert report["identity"]["reason"] == "model.yaml makes a pipeline of detect, classify, read"
    steps = {step["model"]["name"]: step for step in report["steps"]}
    assert list(steps) == ["ocr.detect", "ocr.classify", "ocr.read"]
    assert report["model"]["bytes"] == sum(path.stat().st_size for path in folder.glob("*/model.onnx"))
    assert [step["identity"]["family"] for step in steps.values()] == [
        "ocr_detection",
        "ocr_direction",
        "ocr_recognition",
    ]
    for step in steps.values():
        assert step["cost"]["flops"] > 0 and step["run"]["throughput"] > 0 and step["run"]["timings"]
    told = printed(monkeypatch, folder, columns=80)
    assert all(f"  {name}  " in told for name in ("ocr", *steps))
    assert "weights   those of its steps" in told
    assert max(map(len, told.splitlines())) <= 80


def test_steps_that_are_models_of_their_own_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.yaml").write_text("{name: both, steps: {detect: finder, read: reader}}")
    report = inspected(tmp_path)
    assert report["notes"] == ["its step detect is the model finder", "its step read is the model reader"]
    assert report["steps"] == []
    assert "its step read is the model reader" in printed(monkeypatch, tmp_path)


def test_no_width_of_lines_is_proposed_as_the_only_one(tmp_path: Path) -> None:
    """A fixed shape would leave a recogniser with lines of one width."""
    ocr_models.recogniser(tmp_path / "m.onnx")
    said = {"task": "ocr", "family": "ocr_recognition", "labels": list(ocr_models.LETTERS)}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(said))
    report = inspected(tmp_path, device="GPU")
    assert yaml.safe_load(report["model_yaml"]) == {"runtime": {"device": "GPU"}}
    (shape,) = report["shapes"]
    assert (shape["shape"], shape["guessed"], shape["needed"]) == ([1, 3, 32, 320], False, False)


def test_a_model_on_another_server_tells_its_tensors_and_how_long_it_takes(
    demo_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"runtime": {"backend": "remote", "url": f"grpc://{demo_server.grpc}", "model": "shapes"}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"name": "far", **said}))
    report = inspected(tmp_path, run_seconds=0.3)
    assert (report["model"]["backend"], report["model"]["format"]) == ("remote", "served elsewhere, as shapes")
    assert (report["identity"]["task"], report["identity"]["family"]) == ("detection", "yolov8")
    assert [spec["name"] for spec in report["outputs"]] == ["output0"]
    assert report["cost"] is None and report["run"]["throughput"] > 0 and report["run"]["timings"] == []
    assert "served elsewhere, as shapes" in printed(monkeypatch, tmp_path)


def test_a_model_without_files_tells_what_it_can(tmp_path: Path) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "model.yaml").write_text("{runtime: {backend: fake}, task: tensor}")
    report = inspected(tmp_path / "fake")
    assert report["model"]["weights"] is None and report["cost"] is None and report["devices"] == []
    assert "fake" in report["notes"][0]


@pytest.mark.parametrize(
    "name",
    [
        "yolov8n_int8_ir",
        "picodet_s_320_paddle",
        "squeezenet_tf",
        "squeezenet_saved_model",
        "dummy_tflite",
        "ppocr_rec_en_paddle",
    ],
)
def test_every_format_is_told_of(testdata: Path, name: str) -> None:
    report = inspected(testdata / "models" / name)
    assert report["cost"]["flops"] > 0 and report["model"]["bytes"] > 0
    assert not report["cost"]["uncounted"]
    assert report["devices"][0]["unsupported"] == {}


# The page


FREE = re.compile(r"(supported|now\.devices|now\.flops|unplaced|steps|by_value|uncounted|cost\.shapes)$")


def keys(value: Any, path: str = "") -> set[str]:
    """Every path of keys; what maps names of operators, devices or tensors ends there."""
    if isinstance(value, list):
        return set[str]().union(*(keys(item, path) for item in value))
    if not isinstance(value, dict) or FREE.search(path):
        return {path}
    return {path}.union(*(keys(item, f"{path}.{key}") for key, item in value.items()))


def test_the_example_of_the_page_has_the_keys_of_a_report(yolo: Path) -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    shown = json.loads(example)
    demo = Path(__file__).parent.parent / "server/visionpool_server/demo/shapes"
    real = inspected(demo, run_seconds=0.2)
    assert list(shown) == list(real)
    assert keys(shown) == keys(real)
    assert shown["cost"]["flops"] == real["cost"]["flops"]
    assert shown["inputs"] == real["inputs"] and shown["identity"] == real["identity"]
