"""A request as KServe v2 carries it over gRPC, and its answer as arrays, held against what the server said of the model.

Numbers are little-endian and row by row, as they lie in memory; an element of BYTES is led by its length.
"""

from __future__ import annotations

import struct
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from visionpool_server.backends import Tensors, TensorSpec
from visionpool_server.typed_contents import TYPED_CONTENTS

_RAW_TAG = bytes(
    [pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2]
)  # 2: protobuf's type of what has a length


class Mismatch(Exception):
    """What is to be sent cannot be, or what comes back is not what the far server said of the model."""


def spec_of(tensor: Any) -> TensorSpec:
    """The spec of a TensorMetadata message."""
    dtype = _dtype(tensor.datatype)
    shape = tuple(size if size >= 0 else None for size in tensor.shape)
    return TensorSpec(tensor.name, shape, tensor.datatype if dtype is None else _name(dtype))


def request(model: str, tensors: Tensors) -> bytes:
    """A serialised ModelInferRequest: its head, and the bytes of the tensors laid behind it. Raises Mismatch."""
    head = pb.ModelInferRequest(model_name=model)
    tail: list[bytes | memoryview] = []
    for name, array in tensors.items():
        datatype = np_to_triton_dtype(array.dtype)
        if datatype is None:
            raise Mismatch(f"input {name!r} of {array.dtype} cannot be sent in KServe v2")
        head.inputs.add(name=name, datatype=datatype, shape=array.shape)
        content = _bytes_of(array, datatype)
        tail += (_RAW_TAG, _varint(len(content)), content)
    return b"".join((head.SerializeToString(), *tail))


def answer(response: Any, specs: tuple[TensorSpec, ...], rows: int | None) -> dict[str, NDArray[Any]]:
    """The model's outputs, in its order, of a ModelInferResponse. `rows`: how many each must have. Raises Mismatch."""
    found, raw = {output.name: output for output in response.outputs}, response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise Mismatch(f"it answers {len(response.outputs)} outputs with the data of {len(raw)}")
    data = dict(zip([output.name for output in response.outputs], raw, strict=False))
    arrays = {}
    for spec in specs:
        if spec.name not in found:
            raise Mismatch(f"output {spec.name!r} is missing from its answer, which has {', '.join(found) or 'none'}")
        _check(found[spec.name], spec, rows)
        arrays[spec.name] = _array(found[spec.name], data.get(spec.name))
    return arrays


def _check(output: Any, spec: TensorSpec, rows: int | None) -> None:
    given, shape = spec_of(output), spec.shape or ()
    if given.dtype != spec.dtype:
        raise Mismatch(f"output {spec.name!r} comes as {given.dtype}, declared is {spec.dtype}")
    expected = shape if rows is None else (rows, *shape[1:])
    sizes = list(output.shape)
    fits = len(sizes) == len(expected) and all(
        got >= 0 and size in (None, got) for size, got in zip(expected, sizes, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise Mismatch(f"output {spec.name!r} comes with shape {sizes}, expected is [{wanted}]")


def _array(output: Any, raw: bytes | None) -> NDArray[Any]:
    """The tensor of an output: its raw bytes, not copied, or the typed values that some servers send instead."""
    dtype, shape = _dtype(output.datatype), tuple(output.shape)
    try:
        if dtype is None or (raw is None and output.datatype not in TYPED_CONTENTS):
            raise ValueError
        if raw is None:
            values = getattr(output.contents, TYPED_CONTENTS[output.datatype])
            flat = np.fromiter(values, dtype, len(values))
        else:
            flat = deserialize_bytes_tensor(raw) if output.datatype == "BYTES" else np.frombuffer(raw, dtype)
    except (ValueError, OverflowError, struct.error):
        raise Mismatch(f"the data of output {output.name!r} cannot be read as {output.datatype}") from None
    if flat.size != prod(shape):
        raise Mismatch(f"output {output.name!r} says shape {list(shape)} and brings {flat.size} values")
    return cast(NDArray[Any], flat.reshape(shape))


def _dtype(datatype: str) -> np.dtype[Any] | None:
    kind = triton_to_np_dtype(datatype)
    return None if kind is None else np.dtype(kind)


def _name(dtype: np.dtype[Any]) -> str:
    return "bytes" if dtype.kind == "O" else dtype.name


def _bytes_of(array: NDArray[Any], datatype: str) -> bytes | memoryview:
    if datatype == "BYTES":
        return cast(bytes, serialize_byte_tensor(array).item()) if array.size else b""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _varint(number: int) -> bytes:
    """Protobuf's integers: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
