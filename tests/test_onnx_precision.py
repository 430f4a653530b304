"""ONNX in half precision and in INT8: what comes out is typed right, computes nearly the same, and TensorRT takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from visionpool.errors import InvalidModel
from visionpool_server.backends import ShapeRange, onnx_graph
from visionpool_server.backends.onnx_precision import to_half
from visionpool_server.backends.onnx_quantization import quantize

from tests import tiny_models
from tests.tiny_models import Graph

Array = NDArray[Any]


def run(path: Path, inputs: Mapping[str, Array], outputs: list[str] | None = None) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    found: list[Array] = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(
        outputs, dict(inputs)
    )
    return found


def nodes(path: Path, kind: str) -> list[Any]:
    return [node for node in onnx.load(path).graph.node if node.op_type == kind]


def types(path: Path) -> dict[str, int]:
    """Of every tensor, as onnx infers them: independent of what the converter believes."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def photo(height: int, width: int, seed: int = 0) -> Array:
    """(1, 3, H, W) float32 in 0..1."""
    picture = tiny_models.picture(height, width, seed).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(picture, np.float32) / 255


class TestHalf:
    def test_layers_compute_in_half_and_what_follows_them_does_not(self, tmp_path: Path) -> None:
        source, target = tiny_models.yolov5(tmp_path / "a.onnx"), tmp_path / "b.onnx"
        to_half(source, target)
        known = types(target)
        for conv in nodes(target, "Conv"):
            assert {known[name] for name in (*conv.input, *conv.output)} == {TensorProto.FLOAT16}
        last = onnx.load(target).graph.node[-1]
        assert known[last.output[0]] == TensorProto.FLOAT
        assert "Cast" not in {last.op_type}
        inputs = {"images": photo(64, 64)}
        before, after = run(source, inputs)[0], run(target, inputs)[0]
        assert after.dtype == np.float32
        assert 0 < np.abs(after - before).max() < 0.01 * np.abs(before).max()

    def test_scales_of_a_resize_stay_in_full_and_its_picture_does_not(self, tmp_path: Path) -> None:
        graph = Graph()
        x = graph.patches(graph.input("x", [1, 3, 16, 16]), 8, 2)
        scales = graph.constant([1, 1, 2.0, 2.0])
        y = graph.add("Resize", x, "", scales, mode="nearest")
        graph.add("Conv", y, graph.weights(8, 8, 3, 3), output="y", kernel_shape=[3, 3])
        graph.output("y", [1, 8, 14, 14])
        to_half(graph.save(tmp_path / "a.onnx"), tmp_path / "b.onnx")
        (resize,) = nodes(tmp_path / "b.onnx", "Resize")
        known = types(tmp_path / "b.onnx")
        assert [known[resize.input[0]], known[resize.input[2]]] == [TensorProto.FLOAT16, TensorProto.FLOAT]

    def test_what_half_precision_cannot_hold_is_computed_in_full(self, tmp_path: Path) -> None:
        """A million becomes infinite, an epsilon of 1e-12 zero, and 3.4e38 as a limit is no limit."""
        graph = Graph()
        x = graph.patches(graph.input("x", [1, 3, 16, 16]), 8, 2)
        large = graph.add("Div", graph.add("Mul", x, graph.constant(1e6)), graph.constant(1e6))
        zero = graph.add("Sub", large, large)
        one = graph.add("Div", graph.add("Add", zero, graph.constant(1e-12)), graph.constant(1e-12))
        clipped = graph.add("Clip", graph.add("Mul", one, x), graph.constant(0), graph.constant(3.4e38))
        graph.add("Conv", clipped, graph.weights(64, 8, 1, 1), output="y")
        graph.output("y", [1, 64, 8, 8])
        source, target = graph.save(tmp_path / "a.onnx"), tmp_path / "b.onnx"
        to_half(source, target)
        inputs = {"x": photo(16, 16)}
        before, after = run(source, inputs)[0], run(target, inputs)[0]
        assert np.abs(after - before).max() < 0.01 * np.abs(before).max()
        known = types(target)
        assert known[nodes(target, "Clip")[0].output[0]] == TensorProto.FLOAT16

    def test_batch_norms_of_tiny_variance_are_folded_or_spread(self, tmp_path: Path) -> None:
        graph = Graph()
        x = graph.input("x", [1, 3, 16, 16])
        first = graph.add("Conv", x, graph.weights(8, 3, 3, 3), kernel_shape=[3, 3])
        norm = [graph.weights(8), graph.weights(8), graph.weights(8, spread=1e-3), graph.constant([1e-9] * 8)]
        second = graph.add("BatchNormalization", first, *norm, epsilon=1e-8)
        again = graph.add("BatchNormalization", graph.add("Relu", second), *norm, epsilon=1e-8)
        graph.add("Conv", again, graph.weights(8, 8, 3, 3), output="y", kernel_shape=[3, 3])
        graph.output("y", [1, 8, 12, 12])
        source, target = graph.save(tmp_path / "a.onnx"), tmp_path / "b.onnx"
        model = onnx_graph.read(source)
        from visionpool_server.backends.onnx_batch_norm import fold_batch_norms

        fold_batch_norms(model)
        onnx_graph.write(model, target, source)
        assert not nodes(target, "BatchNormalization")
        assert len(nodes(target, "Mul")) == 1
        inputs = {"x": photo(16, 16)}
        np.testing.assert_allclose(run(target, inputs)[0], run(source, inputs)[0], rtol=2e-3, atol=1e3)

    def test_graphs_within_nodes_read_what_they_did(self, tmp_path: Path) -> None:
        """An If whose branches read a tensor outside, which is computed in half."""
        graph = Graph()
        x = graph.patches(graph.input("x", [1, 3, 16, 16]), 8, 2)
        y = graph.add("Relu", x)
        branches = {}
        for name, kind in (("then_branch", "Neg"), ("else_branch", "Abs")):
            value = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
            node = helper.make_node(kind, [y], [f"{name}_y"])
            branches[name] = helper.make_graph([node], name, [], [value])
        chosen = graph.add("If", graph.constant(True, np.bool_), **branches)
        graph.add("Conv", chosen, graph.weights(32, 8, 1, 1), output="y")
        graph.output("y", [1, 32, 8, 8])
        source, target = graph.save(tmp_path / "a.onnx"), tmp_path / "b.onnx"
        to_half(source, target)
        inputs = {"x": photo(16, 16)}
        before, after = run(source, inputs)[0], run(target, inputs)[0]
        assert np.abs(after - before).max() < 0.01 * np.abs(before).max()

    def test_a_file_in_half_stays_as_it_is(self, tmp_path: Path) -> None:
        to_half(tiny_models.yolov5(tmp_path / "a.onnx"), tmp_path / "b.onnx")
        to_half(tmp_path / "b.onnx", tmp_path / "c.onnx")
        inputs = {"images": photo(64, 64)}
        np.testing.assert_array_equal(run(tmp_path / "b.onnx", inputs)[0], run(tmp_path / "c.onnx", inputs)[0])
        assert len(nodes(tmp_path / "b.onnx", "Cast")) == len(nodes(tmp_path / "c.onnx", "Cast"))

    def test_weights_beside_the_file_are_read_and_large_ones_written_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = tiny_models.yolov5(tmp_path / "a.onnx")
        (tmp_path / "split").mkdir()
        split, target = tmp_path / "split" / "a.onnx", tmp_path / "half.onnx"
        onnx.save(onnx.load(source), str(split), save_as_external_data=True, location="a.data", size_threshold=0)
        monkeypatch.setattr(onnx_graph, "_ONE_FILE", 100)
        to_half(split, target)
        assert (tmp_path / "half.onnx.data").stat().st_size > 0
        inputs = {"images": photo(64, 64)}
        before, after = run(source, inputs)[0], run(target, inputs)[0]
        assert np.abs(after - before).max() < 0.01 * np.abs(before).max()

    @pytest.mark.parametrize("data", [b"", b"junk", b"\x08\x07"])
    def test_what_is_no_onnx_file_is_refused(self, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_bytes(data)
        with pytest.raises(InvalidModel, match=r"a\.onnx"):
            to_half(tmp_path / "a.onnx", tmp_path / "b.onnx")


def noisy_net(path: Path) -> Path:
    """Two convolutions, the second after a channel a thousand times as loud as the others, which it does not use."""
    graph = Graph()
    x = graph.input("x", [1, 3, 32, 32])
    weights = graph.random.normal(0, 0.3, (32, 3, 3, 3))
    weights[0] *= 1000
    y = graph.add("Conv", x, graph.constant(weights), kernel_shape=[3, 3])
    second = graph.random.normal(0, 0.3, (32, 32, 3, 3))
    second[:, 0] = 0
    z = graph.add("Conv", graph.add("Relu", y), graph.constant(second), kernel_shape=[3, 3])
    last = graph.add("Conv", graph.add("Relu", z), graph.weights(16, 32, 3, 3, spread=0.1), kernel_shape=[3, 3])
    graph.add("Sigmoid", last, output="y")
    graph.output("y", [1, 16, 26, 26])
    return graph.save(path, {"names": "{0: 'a'}"})


class TestInt8:
    @pytest.mark.parametrize("half", [True, False])
    def test_weights_are_integers_by_channel_and_what_follows_the_layers_is_not(
        self, half: bool, tmp_path: Path
    ) -> None:
        source, target = tiny_models.yolov5(tmp_path / "a.onnx"), tmp_path / "b.onnx"
        found = quantize(source, target, range(8), lambda seed: {"images": photo(64, 64, seed)}, half=half)
        model, known = onnx.load(target), types(target)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        makers = {node.output[0]: node for node in model.graph.node}
        layers = [node for node in nodes(target, "Conv") if node.input[1] in makers]
        assert len(layers) == found.layers > 0
        wanted = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        for node in layers:
            rounded = makers[node.input[1]]
            assert rounded.op_type == "DequantizeLinear"
            assert weights[rounded.input[0]].data_type == TensorProto.INT8
            scales = numpy_helper.to_array(weights[rounded.input[1]])
            assert scales.shape == (weights[rounded.input[0]].dims[0],)
            assert all(numpy_helper.to_array(weights[name]).any() == 0 for name in rounded.input[2:])
            assert makers[node.input[0]].op_type == "DequantizeLinear"
            assert known[node.input[2]] == known[node.output[0]] == wanted  # the bias is not quantised
        outputs = {value.name for value in model.graph.output}
        last = makers[outputs.pop()]
        assert not {"QuantizeLinear", "DequantizeLinear"} & {makers[n].op_type for n in last.input if n in makers}
        inputs = {"images": photo(64, 64, 100)}
        before, after = run(source, inputs)[0], run(target, inputs)[0]
        assert after.dtype == np.float32
        assert 0 < np.abs(after - before).mean() < 0.05 * np.abs(before).mean()

    def test_it_computes_what_rounding_by_hand_does(self, tmp_path: Path) -> None:
        """One layer, in NumPy: ranges from the largest absolute value, 127 steps to either side."""
        graph = Graph()
        weights = graph.random.normal(0, 1, (16, 16)).astype(np.float32)
        graph.add("MatMul", graph.input("x", [4, 16]), graph.constant(weights), output="y")
        graph.output("y", [4, 16])
        samples = [graph.random.normal(0, 1, (4, 16)).astype(np.float32) for _ in range(5)]
        quantize(
            graph.save(tmp_path / "a.onnx"),
            tmp_path / "b.onnx",
            range(5),
            lambda index: {"x": samples[index]},
            half=False,
        )
        step = max(np.abs(sample).max() for sample in samples) / 127
        x = np.clip(np.rint(samples[0] / step), -127, 127) * step
        steps = np.abs(weights).max(axis=0) / 127
        expected = x @ (np.rint(weights / steps) * steps)
        found = run(tmp_path / "b.onnx", {"x": samples[0]})[0]
        plain = np.abs(samples[0] @ weights - expected).max()
        assert np.abs(found - expected).max() < 0.1 * plain

    def test_a_layer_that_would_drown_stays_in_floating_point(self, tmp_path: Path) -> None:
        source = noisy_net(tmp_path / "a.onnx")
        tensors: Callable[[int], dict[str, Array]] = lambda seed: {"x": photo(32, 32, seed)}  # noqa: E731  typed
        kept = quantize(source, tmp_path / "b.onnx", range(6), tensors)
        forced = quantize(source, tmp_path / "c.onnx", range(6), tensors, quietest=-100)
        assert (kept.layers, len(kept.noisy), forced.layers, forced.noisy) == (2, 1, 3, ())
        inputs = tensors(50)
        before = run(source, inputs)[0]
        errors = [float(np.abs(run(tmp_path / f"{n}.onnx", inputs)[0] - before).mean()) for n in "bc"]
        assert errors[0] < 0.3 * errors[1]
        assert {entry.key: entry.value for entry in onnx.load(tmp_path / "b.onnx").metadata_props}["names"]

    def test_one_sample_is_in_memory_at_a_time(self, tmp_path: Path) -> None:
        import gc
        import weakref

        alive: list[weakref.ref[Array]] = []
        most = 0

        def tensors(seed: int) -> dict[str, Array]:
            nonlocal most
            made = photo(64, 64, seed)
            alive.append(weakref.ref(made))
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
            return {"images": made}

        quantize(tiny_models.yolov5(tmp_path / "a.onnx"), tmp_path / "b.onnx", range(4), tensors)
        assert len(alive) >= 4
        assert most <= 2

    def test_nothing_to_quantise_is_said(self, tmp_path: Path) -> None:
        source = tiny_models.two_by_two(tmp_path / "a.onnx")
        with pytest.raises(InvalidModel, match="nothing in the model can be quantised"):
            quantize(source, tmp_path / "b.onnx", [0], lambda _: {})

    def test_nothing_is_printed_and_no_warning_logged(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        quantize(
            tiny_models.yolov5(tmp_path / "a.onnx"),
            tmp_path / "b.onnx",
            range(2),
            lambda s: {"images": photo(64, 64, s)},
        )
        assert capfd.readouterr() == ("", "")
        assert not caplog.records


class TestTensorRt:
    """TensorRT-RTX, which builds engines without a GPU."""

    @pytest.mark.parametrize("precision", ["f16", "int8"])
    def test_it_builds_an_engine(self, precision: str, tmp_path: Path) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        from visionpool_server.backends.tensorrt.api import find_api
        from visionpool_server.backends.tensorrt.builder import build_plan

        source, target = tiny_models.yolov5(tmp_path / "a.onnx", batch="n"), tmp_path / "b.onnx"
        if precision == "f16":
            to_half(source, target)
        else:
            quantize(source, target, range(4), lambda seed: {"images": photo(64, 64, seed)})
        shape = (3, 64, 64)
        plan = build_plan(
            find_api("tensorrt_rtx"),
            target,
            ({"images": ShapeRange((1, *shape), (2, *shape), (4, *shape))},),
        )
        assert len(plan) > 10_000


# -- real weights ---------------------------------------------------------------------------------------------

_PICTURES = {"humanseg": (224, 398), "ppocr_det": (160, 320), "yolov5n": (640, 640), "yolov8n": (640, 640)}
_PICTURES |= {"squeezenet": (224, 224), "picodet_s_320": (320, 320), "ppocr_cls": (48, 192)}


@pytest.mark.parametrize("name", _PICTURES)
def test_real_models_answer_nearly_the_same_in_half(name: str, testdata: Path, tmp_path: Path) -> None:
    (source,) = (testdata / "models" / name).glob("*.onnx")
    target = tmp_path / "half.onnx"
    to_half(source, target)
    assert target.stat().st_size < 0.55 * source.stat().st_size
    pixels = photo(*_PICTURES[name])
    inputs = {ort.InferenceSession(str(source)).get_inputs()[0].name: pixels * 4 - 2 if name != "yolov5n" else pixels}
    for before, after in zip(run(source, inputs), run(target, inputs), strict=True):
        assert after.dtype == before.dtype
        assert np.abs(after - before).mean() < 0.02 * np.abs(before).mean() + 1e-6
