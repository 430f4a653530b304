"""Small ONNX files for the tests of the TensorRT backend, each for one thing that its builder has to get right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from tests.tiny_models import Batch, Graph

SIZE = 32


def scores(
    path: Path,
    *,
    shape: Sequence[Batch] = ("batch", 3, SIZE, SIZE),
    dtype: int = TensorProto.FLOAT,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Input images, output scores (batch, 4, H / 8, W / 8) after softmax: dimensions that are names stay open."""
    graph = Graph()
    picture = graph.input("images", shape, dtype)
    if dtype != TensorProto.FLOAT:
        picture = graph.add("Cast", picture, to=TensorProto.FLOAT)
    graph.add("Softmax", graph.patches(picture, 4, 8), output="scores", axis=1)
    rows = [size // 8 if isinstance(size, int) else None for size in shape[2:]]
    graph.output("scores", [shape[0], 4, *rows])
    return graph.save(path, metadata)


def scaled(path: Path, *, batch: Batch = "batch") -> Path:
    """Inputs images and scale_factor (batch, 2), as PaddleDetection's exports have them; output (batch, 2)."""
    graph = Graph()
    features = graph.patches(graph.input("images", [batch, 3, SIZE, SIZE]), 2, 8)
    pooled = graph.add("ReduceMean", features, axes=[2, 3], keepdims=0)
    graph.add("Mul", pooled, graph.input("scale_factor", [batch, 2]), output="out")
    graph.output("out", [batch, 2])
    return graph.save(path)


def with_operator(path: Path, kind: str, **attributes: Any) -> Path:
    """One node of this type, which ONNX has and TensorRT may not, from (1, 3, 8, 8) to an output of any shape."""
    graph = Graph()
    graph.add(kind, graph.input("x", [1, 3, 8, 8]), output="y", **attributes)
    graph.output("y", [None, None])
    return graph.save(path)


def cast(path: Path, dtype: int) -> Path:
    """Input x (1, 8) of a type, output y in float32."""
    graph = Graph()
    graph.add("Cast", graph.input("x", [1, 8], dtype), output="y", to=TensorProto.FLOAT)
    graph.output("y", [1, 8])
    return graph.save(path)


def apart(path: Path) -> Path:
    """`scores`, with its weights in weights.bin beside it."""
    model = onnx.load(str(scores(path)))
    onnx.save_model(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def quantized(path: Path, out: Path, feed: Mapping[str, Any]) -> Path:
    """By ONNX Runtime's quantiser as TensorRT wants it: symmetric, biases left in float32."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Once(CalibrationDataReader):  # type: ignore[misc]  # it publishes no types
        def __init__(self) -> None:
            self._rows = iter([feed])

        def get_next(self) -> Any:
            return next(self._rows, None)

    quantize_static(
        *(str(path), str(out), Once()),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    return out
