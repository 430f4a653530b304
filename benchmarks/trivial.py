"""A model with next to nothing to compute, so that what is measured is the server around it.

Its input is (n, 3, 32, 32) float32, its output the mean of each plane, (n, 3) float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAME = "trivial"
INPUT, OUTPUT = "x", "y"
SHAPE = (1, 3, 32, 32)
RESULT = bytes(SHAPE[1] * 4)  # what zeros give: (1, 3) float32

# How a server that has no statistics describes itself and the model in KServe v2, as JSON.
SERVER: dict[str, Any] = {"name": "bare", "version": "1", "extensions": []}
MODEL: dict[str, Any] = {
    "name": NAME,
    "versions": ["1"],
    "platform": "bare",
    "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *SHAPE[1:]]}],
    "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, SHAPE[1]]}],
}
CONFIG: dict[str, Any] = {
    "name": NAME,
    "max_batch_size": 1,
    "input": [{"name": INPUT, "data_type": "TYPE_FP32", "dims": SHAPE[1:]}],
    "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": SHAPE[1:2]}],
}
STATISTICS: dict[str, Any] = {"model_stats": [{"name": NAME, "version": "1"}]}


def write(folder: Path) -> Path:
    """Writes `trivial.onnx` there; its path."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", [INPUT], ["means"]), helper.make_node("Flatten", ["means"], [OUTPUT])],
        NAME,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", *SHAPE[1:]])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", SHAPE[1]])],
    )
    path = folder / f"{NAME}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path
