"""What a `ModelInferRequest` holds, seen on the wire before it is parsed: two bytes there can become eighty in memory.

Tensors in `raw_input_contents` stay as large as they are; everything else grows.
"""

from __future__ import annotations

from tritonclient.grpc import service_pb2 as pb
from visionpool.errors import InvalidRequest

_MOST_FIELDS = 2**14  # at the top: each input, output, parameter and raw tensor is one
_VARINT, _EIGHT_BYTES, _SIZED, _GROUP, _GROUP_END, _FOUR_BYTES = range(6)  # wire types
_RAW = pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | _SIZED
_LONGEST = 10  # bytes of a varint
_FIXED = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4, _GROUP: 0, _GROUP_END: 0}


def growing_bytes(raw: bytes) -> int:
    """How many bytes of a request are no raw tensors. What is broken is left to the parser, which gets no further than this.

    Raises InvalidRequest for more fields than any request needs.
    """
    at = tensors = 0
    for _ in range(_MOST_FIELDS):
        if at >= len(raw):
            return len(raw) - tensors
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == _SIZED:
            size, at = _varint(raw, at)
            if tag == _RAW:
                tensors += max(0, min(size, len(raw) - at))
            at += size
        elif kind == _VARINT:
            _, at = _varint(raw, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            return len(raw) - tensors
    if at >= len(raw):
        return len(raw) - tensors
    raise InvalidRequest(
        f"the request has more than {_MOST_FIELDS} fields", hint="send fewer inputs, outputs and parameters"
    )


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends; beyond the end of `raw` for one that does not end."""
    number = 0
    for index, byte in enumerate(raw[at : at + _LONGEST]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, at + index + 1
    return 0, len(raw) + 1
