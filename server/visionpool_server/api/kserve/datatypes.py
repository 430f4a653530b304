"""The protocol's data types, and tensors to and from their bytes on the wire (KServe v2, `Tensor Data Types`).

Everything is little-endian and row by row; an element of BYTES is led by its length in 4 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from struct import Struct
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidRequest

BYTES = "BYTES"
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    BYTES: np.dtype(object),
}
DATATYPES = {dtype.name: datatype for datatype, dtype in DTYPES.items()} | {"bytes": BYTES}  # by NumPy's name
_JSON_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a fraction",
    type(None): "null",
    dict: "an object",
}
_MAX_RANK = 32  # NumPy 1's limit, and more than any runtime takes
_BEYOND = 2**56  # elements
_LENGTH = Struct("<I")


def from_buffer(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> NDArray[Any]:
    """The tensor that lies in `data`, without a copy (of BYTES: an object array of `bytes`).

    Raises InvalidRequest where type, shape and length do not agree.
    """
    dtype, count = dtype_of(name, datatype), size_of(name, shape)
    if datatype == BYTES:
        return _objects(name, split_bytes(name, data, count), shape)
    if len(data) != count * dtype.itemsize:
        raise InvalidRequest(
            f"input {name[:80]!r}: {len(data)} bytes of data, and shape {list(shape)} of {datatype} takes "
            f"{count * dtype.itemsize}",
            hint="make shape, datatype and data agree",
        )
    flat = np.frombuffer(data, dtype)
    if datatype == "BOOL" and count and flat.view(np.uint8).max() > 1:
        flat = flat.view(np.uint8) != 0
    return flat.reshape(shape)


def from_values(name: str, datatype: str, shape: Sequence[int], values: Any) -> NDArray[Any]:
    """The tensor of nested or flat `values` (JSON). Raises InvalidRequest where they do not fit type or shape."""
    dtype, count = dtype_of(name, datatype), size_of(name, shape)
    flat = _flattened(name, values)
    if len(flat) != count:
        raise InvalidRequest(
            f"input {name[:80]!r}: {len(flat)} values, and shape {list(shape)} takes {count}",
            hint="make shape and data agree",
        )
    if datatype == BYTES:
        if not all(isinstance(value, str) for value in flat):
            raise InvalidRequest(
                f"input {name[:80]!r}: BYTES in JSON are strings", hint="binary data travel behind the JSON"
            )
        return _objects(name, [value.encode() for value in flat], shape)
    return _checked_numbers(name, datatype, dtype, flat).reshape(shape)


def to_buffer(array: NDArray[Any]) -> bytes:
    """The bytes of a tensor on the wire."""
    if array.dtype == object:
        return join_bytes([bytes(value) for value in array.reshape(-1)])
    return array.tobytes()


def dtype_of(name: str, datatype: str) -> np.dtype[Any]:
    """Raises InvalidRequest for a type that the protocol does not have."""
    if datatype not in DTYPES:
        raise InvalidRequest(
            f"tensor {name[:80]!r}: unknown datatype {datatype[:40]!r}", hint=f"known: {', '.join(DTYPES)}"
        )
    return DTYPES[datatype]


def size_of(name: str, shape: Sequence[int]) -> int:
    """How many elements a shape has. Raises InvalidRequest for one that makes no sense."""
    known = _elements(tuple(shape)) if len(shape) <= _MAX_RANK else None
    if known is None:
        raise _senseless(name[:80], shape)
    return known


@lru_cache(1024)
def _elements(shape: tuple[int, ...]) -> int | None:
    """None for a shape that makes no sense."""
    if any(not 0 <= size < 2**31 for size in shape):
        return None
    if prod(size or 1 for size in shape) >= _BEYOND:  # where one is 0, NumPy still multiplies the others
        return None
    return prod(shape)


def _senseless(name: str, shape: Sequence[int]) -> InvalidRequest:
    if len(shape) > _MAX_RANK:
        return InvalidRequest(f"input {name[:80]!r}: {len(shape)} dimensions, at most {_MAX_RANK} are read")
    if min(shape) < 0:
        return InvalidRequest(
            f"input {name[:80]!r}: shape {list(shape)} has a negative dimension", hint="send the real sizes"
        )
    if max(shape) >= 2**31:
        return InvalidRequest(f"input {name[:80]!r}: a dimension of {max(shape)} is beyond any tensor")
    return InvalidRequest(f"input {name[:80]!r}: shape {list(shape)} is beyond any tensor")


def split_bytes(name: str, data: bytes | memoryview, count: int) -> list[bytes]:
    """The `count` elements of a BYTES tensor. Raises InvalidRequest where their lengths do not add up."""
    view, elements, at = memoryview(data).cast("B"), [], 0
    if count > len(view) // 4:
        raise InvalidRequest(
            f"input {name[:80]!r}: {len(view)} bytes cannot hold {count} elements of BYTES", hint=_HINT_BYTES
        )
    for _ in range(count):
        start = at + 4
        if start > len(view):
            break
        at = start + _LENGTH.unpack_from(view, at)[0]
        elements.append(bytes(view[start:at]))
    if at != len(view) or len(elements) != count:
        raise InvalidRequest(
            f"input {name[:80]!r}: the lengths of its {count} BYTES elements do not add up to its {len(view)} bytes",
            hint=_HINT_BYTES,
        )
    return elements


_HINT_BYTES = "each element is 4 bytes of length, little-endian, and then its bytes"


def join_bytes(elements: Sequence[bytes]) -> bytes:
    """A BYTES tensor on the wire."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def _objects(name: str, elements: Sequence[bytes], shape: Sequence[int]) -> NDArray[Any]:
    array = np.empty(len(elements), object)
    array[:] = elements
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise InvalidRequest(f"input {name[:80]!r}: shape {list(shape)} does not fit its data") from error


def _flattened(name: str, values: Any) -> list[Any]:
    """Nested lists of JSON as one; they may be flat already, at any rank (KServe v2, `Tensor Data`)."""
    if not isinstance(values, list):
        raise InvalidRequest(f"input {name[:80]!r}: data is a list", hint="nest it as its shape says, or give it flat")
    flat: list[Any] = values
    while flat and isinstance(flat[0], list):
        if not all(isinstance(row, list) for row in flat):
            raise InvalidRequest(f"input {name[:80]!r}: data mixes lists and values")
        flat = [value for row in flat for value in row]
    if any(isinstance(value, list) for value in flat):
        raise InvalidRequest(f"input {name[:80]!r}: data mixes lists and values")
    return flat


def _checked_numbers(name: str, datatype: str, dtype: np.dtype[Any], flat: list[Any]) -> NDArray[Any]:
    kinds = {type(value) for value in flat}
    allowed = {bool} if datatype == "BOOL" else {int, float} if dtype.kind in "fV" else {int}
    if datatype == "BOOL" and kinds <= {int} and all(value in (0, 1) for value in flat):
        allowed = {int}
    if not kinds <= allowed:
        wrong = ", ".join(sorted({_JSON_NAMES.get(kind, kind.__name__) for kind in kinds - allowed}))
        raise InvalidRequest(f"input {name[:80]!r}: {wrong} in data, and its datatype is {datatype}")
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype)
    except (OverflowError, ValueError) as error:
        raise InvalidRequest(f"input {name[:80]!r}: a value is out of the range of {datatype}") from error
