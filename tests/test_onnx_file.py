"""An ONNX file read without a runtime says what ONNX Runtime says of it; a damaged one is refused, and nothing worse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from visionpool.errors import InvalidModel
from visionpool_server.backends import TensorSpec
from visionpool_server.backends.onnx_file import OnnxFile, read_onnx, with_own_names

from tests import tensorrt_models, tiny_models

REAL = (
    *("yolov5n/yolov5n", "yolov5n_dyn/yolov5n_dyn", "yolov8n/yolov8n", "squeezenet/squeezenet1_1", "mnist/mnist"),
    *("picodet_s_320/picodet_s_320", "humanseg/pphumanseg_lite", "ppocr_det/ch_PP-OCRv3_det"),
    "ppocr_rec_en/en_number_mobile_v2.0_rec",
)


def session(path: Path) -> Any:
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 4
    return ort.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])


def assert_as_onnx_runtime_says(path: Path) -> OnnxFile:
    """Names, order, shapes, types, metadata."""
    file, other = read_onnx(path), session(path)
    for ours, theirs in ((file.inputs, other.get_inputs()), (file.outputs, other.get_outputs())):
        assert [spec.name for spec in ours] == [node.name for node in theirs]
        assert [spec.shape for spec in ours] == [
            tuple(size if isinstance(size, int) else None for size in node.shape) for node in theirs
        ]
        assert [spec.dtype for spec in ours] == [
            {"tensor(float)": "float32", "tensor(double)": "float64"}.get(node.type, node.type[7:-1]) for node in theirs
        ]
    assert file.metadata == other.get_modelmeta().custom_metadata_map
    return file


@pytest.mark.parametrize("name", REAL)
def test_real_exports_say_what_onnx_runtime_says(testdata: Path, name: str) -> None:
    assert_as_onnx_runtime_says(testdata / f"models/{name}.onnx")


@pytest.mark.parametrize(
    "make",
    [tiny_models.yolov5, tiny_models.yolov8, tiny_models.picodet, tiny_models.classifier, tensorrt_models.scaled],
)
def test_small_models_say_what_onnx_runtime_says(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    assert_as_onnx_runtime_says(make(tmp_path / "model.onnx"))


def test_what_was_written_beside_the_graph_is_told(tmp_path: Path) -> None:
    said = {"names": "{0: 'Katze', 1: 'chien ✓'}", "stride": "32", "empty": ""}
    file = assert_as_onnx_runtime_says(tensorrt_models.scores(tmp_path / "model.onnx", metadata=said))
    assert file.metadata == said
    assert file.endings == {"scores": "softmax"}
    assert file.operators == {"Conv", "Softmax"}
    assert not file.quantized


@pytest.mark.parametrize("dtype", ["UINT8", "INT8", "INT32", "INT64", "BOOL", "FLOAT16", "DOUBLE", "UINT16"])
def test_types_have_numpys_names(tmp_path: Path, dtype: str) -> None:
    file = assert_as_onnx_runtime_says(tensorrt_models.cast(tmp_path / "model.onnx", TensorProto.DataType.Value(dtype)))
    assert file.outputs == (TensorSpec("y", (1, 8), "float32"),)


def test_weights_among_the_inputs_are_none(tmp_path: Path) -> None:
    """Files of IR version 3 list them there."""
    path = tensorrt_models.scores(tmp_path / "model.onnx")
    model = onnx.load(str(path))
    for weight in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    onnx.save(model, str(path))
    assert [spec.name for spec in read_onnx(path).inputs] == ["images"]


def test_files_with_weights_are_named(tmp_path: Path) -> None:
    assert assert_as_onnx_runtime_says(tensorrt_models.apart(tmp_path / "model.onnx")).external == ("weights.bin",)


def test_graphs_within_nodes_count(tmp_path: Path) -> None:
    """Operators in the branches of an If, and weights that lie elsewhere."""
    path = tmp_path / "model.onnx"
    value = helper.make_tensor("w", TensorProto.FLOAT16, [1], [1.0])
    entry = value.external_data.add()
    entry.key, entry.value = "location", "elsewhere.bin"
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT16, [1])
    branch = helper.make_graph([helper.make_node("QuantizeLinear", ["w", "w"], ["z"])], "b", [], [out], [value])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1])]
    onnx.save(helper.make_model(helper.make_graph([node], "g", inputs, outputs)), str(path))
    file = read_onnx(path)
    assert file.operators == {"If", "QuantizeLinear"}
    assert file.quantized
    assert file.element_types == {"float16"}
    assert file.external == ("elsewhere.bin",)
    assert file.inputs == (TensorSpec("c", (), "bool"),)


def test_shapes_that_are_left_open(tmp_path: Path) -> None:
    """By a name, by -1 as Paddle writes it, by nothing, and with the rank open too."""
    path = tmp_path / "model.onnx"
    given_ = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", -1, None, 4])
    rank = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    scalar = helper.make_tensor_value_info("z", TensorProto.FLOAT, [])
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Identity", ["x"], [name]) for name in "yzs"]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [given_], [rank, scalar, sequence])), str(path))
    file = read_onnx(path)
    assert file.inputs[0].shape == (None, None, None, 4)
    assert [spec.shape for spec in file.outputs] == [None, (), None]
    assert file.outputs[2].dtype == "sequence"


def field(number: int, content: bytes) -> bytes:
    """Protobuf's, with bytes for content: nested deeper than its own library writes."""
    size, digits = len(content), bytearray()
    while size > 127:
        digits.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *digits, size]) + content


def nested(depth: int) -> bytes:
    """A model whose graph has a node with a graph, and so on."""
    graph = field(1, field(4, b"Identity"))
    for _ in range(depth):
        graph = field(1, field(4, b"Loop") + field(5, field(6, graph)))
    return field(7, graph + field(12, field(1, b"y")))


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(nested(32))
    assert read_onnx(path).operators == {"Loop", "Identity"}
    for depth in (33, 5000):
        path.write_bytes(nested(depth))
        with pytest.raises(InvalidModel, match="nested too deeply"):
            read_onnx(path)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"junk",
        b"<html><body>404</body></html>",
        b"\x00" * 100,
        b"\xff" * 100,
        b"PK\x03\x04" + bytes(50),
        b"\x3a\x7f",
    ],
)
def test_junk_is_refused(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(junk)
    with pytest.raises(InvalidModel, match="no ONNX file, or a damaged one"):
        read_onnx(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="cannot be read: no such file"):
        read_onnx(tmp_path / "model.onnx")
    with pytest.raises(InvalidModel, match="cannot be read: is a directory"):
        read_onnx(tmp_path)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.onnx"
    if not (tmp_path / "good").exists():
        (tmp_path / "good").write_bytes(tiny_models.yolov5(path, size=16).read_bytes())
    damaged = bytearray((tmp_path / "good").read_bytes())
    match data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
        case "flip":
            for _ in range(data.draw(st.integers(1, 8))):
                damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        case "cut":
            del damaged[data.draw(st.integers(0, len(damaged))) :]
        case "insert":
            at = data.draw(st.integers(0, len(damaged)))
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=12))
        case "repeat":
            damaged *= 2
    path.write_bytes(damaged)
    try:
        file = read_onnx(path)
    except InvalidModel:
        return
    assert file.outputs


def test_open_dimensions_without_a_name_of_their_own_get_one(tmp_path: Path) -> None:
    def saved(shape: list[int | str], name: str) -> Path:
        value = onnx.helper.make_tensor_value_info
        node = onnx.helper.make_node("Relu", ["x"], ["y"])
        x, y = value("x", onnx.TensorProto.FLOAT, shape), value("y", onnx.TensorProto.FLOAT, shape)
        path = tmp_path / name
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), path)
        return path

    assert with_own_names(saved(["N", 3, "S", "S"], "named.onnx")) is None
    assert with_own_names(saved(["?", 3, 8, 8], "one.onnx")) is None
    renamed = with_own_names(saved(["?", 3, "?", "side"], "several.onnx"))
    assert renamed is not None
    names = [size.dim_param for size in onnx.load_from_string(renamed).graph.input[0].type.tensor_type.shape.dim]
    assert len(set(names)) == 4
    assert names[3] == "side"
