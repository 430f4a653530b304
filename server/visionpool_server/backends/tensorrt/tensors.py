"""An engine's tensors: what its plan says of their names, types, shapes and places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from visionpool.errors import InvalidModel

from visionpool_server.backends import numpy_dtype
from visionpool_server.backends.tensorrt.api import Api

_DTYPES = {  # trt.DataType -> NumPy's name
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or an output. `shape`: -1 where it is open. `on_host`: TensorRT reads or writes it in RAM, as it does shapes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_input: bool
    on_host: bool

    def size(self, shape: Sequence[int]) -> int:
        """Bytes of an array of that shape."""
        return prod(shape) * self.dtype.itemsize


def tensors_of(api: Api, engine: Any) -> tuple[Tensor, ...]:
    """In the order of the plan. Raises InvalidModel for types and memory layouts that no array has."""
    found = []
    for index in range(engine.num_io_tensors):  # no comprehension, which would keep the engine where this fails
        found.append(_tensor(api, engine, engine.get_tensor_name(index)))
    return tuple(found)


def _tensor(api: Api, engine: Any, name: str) -> Tensor:
    trt = api.trt
    dtype = engine.get_tensor_dtype(name).name
    if dtype not in _DTYPES:
        raise InvalidModel(
            f"tensor {name!r} is of TensorRT's type {dtype}, which cannot be sent",
            hint=f"build the engine with one of {', '.join(_DTYPES)} there",
        )
    if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
        raise InvalidModel(
            f"tensor {name!r} is laid out as {engine.get_tensor_format(name).name} in this engine",
            hint="build it with linear inputs and outputs, which is what trtexec does without --inputIOFormats",
        )
    return Tensor(
        name,
        tuple(engine.get_tensor_shape(name)),
        numpy_dtype(_DTYPES[dtype]),
        engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
        engine.get_tensor_location(name) == trt.TensorLocation.HOST,
    )
