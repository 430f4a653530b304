"""An inference over HTTP and our messages: JSON, and behind it the tensors that travel in binary.

    {"inputs": [{"name", "datatype", "shape", "parameters": {"binary_data_size": 12288}}, ...]}<12288 bytes>...

`Inference-Header-Content-Length` says where the JSON ends (KServe v2, and Triton's binary tensor data extension); 0 is a raw
binary request, one tensor and nothing else. Keys that the protocol does not know are ignored; what it knows has to be of the
right type.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import orjson
from tritonclient.grpc import model_config_pb2 as mc
from visionpool.errors import InvalidRequest

from visionpool_server.api.kserve.datatypes import BYTES, dtype_of, from_values, join_bytes, size_of, split_bytes
from visionpool_server.api.kserve.http_json import kind_of, loads_object, parameters_of, typed
from visionpool_server.api.kserve.messages import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    InputTensor,
    OutputTensor,
    Parameters,
    RequestedOutput,
    check_counts,
)

_HINT = 'send {"inputs": [{"name": ..., "datatype": "FP32", "shape": [...], "data": [...]}]}, or binary data behind the JSON'
_HINT_BINARY = (
    "Inference-Header-Content-Length is the length of the JSON, binary_data_size that of each tensor behind it"
)
_HINT_RAW = "send the inference header, JSON with the input's shape, and its length in Inference-Header-Content-Length"


def read_request(model: str, version: str, body: bytes, head_size: int) -> InferRequest:
    """What `body` asks, its first `head_size` bytes being JSON; tensors behind that are slices of `body`, not copies.

    Raises InvalidRequest.
    """
    view = memoryview(body)
    said = loads_object(view[:head_size])
    if "inputs" not in said:
        raise InvalidRequest("the request has no inputs", hint=_HINT)
    given, wanted = _objects(said, "inputs"), _objects(said, "outputs")
    check_counts(len(given), len(wanted))
    inputs: list[InputTensor] = []
    at = head_size
    for entry in given:
        tensor, at = _input(entry, view, at)
        inputs.append(tensor)
    if at != len(view):
        raise InvalidRequest(f"{len(view) - at} bytes behind the JSON belong to no input", hint=_HINT_BINARY)
    outputs = [_requested(entry) for entry in wanted]
    parameters = parameters_of(said, "the request")
    _flag(parameters, "binary_data_output", "the request")
    return InferRequest(model, version, inputs, outputs, typed(said, "id", str, "the request") or "", parameters)


def read_raw(model: str, version: str, body: bytes, config: Any) -> InferRequest:
    """A raw binary request: `body` is the one input of the model whose `ModelConfig` is given, in a batch of one, and all
    outputs are wanted in binary. Its one free dimension is as long as the body makes it.

    An element of BYTES comes without its length. Raises InvalidRequest for a model whose input cannot be known from its
    size (Triton's binary tensor data extension, `Raw Binary Request`).
    """
    if len(config.input) != 1:
        raise InvalidRequest(
            f"{model} has {len(config.input)} inputs, and a raw binary request brings one", hint=_HINT_RAW
        )
    (port,) = config.input
    datatype = BYTES if port.data_type == mc.TYPE_STRING else mc.DataType.Name(port.data_type).removeprefix("TYPE_")
    shape = [1, *port.dims] if config.max_batch_size else [*port.dims]
    free = [axis for axis, size in enumerate(shape) if size < 0]
    known = prod(size for size in shape if size >= 0)
    if len(free) > 1 or (datatype == BYTES and (free or known != 1)):
        raise InvalidRequest(
            f"input {port.name!r} of {model} is {datatype} of shape {shape}, which the size of a body does not tell",
            hint=_HINT_RAW,
        )
    for axis in free:
        shape[axis] = len(body) // (dtype_of(port.name, datatype).itemsize * (known or 1))
    data = join_bytes([body]) if datatype == BYTES else body
    tensor = InputTensor(port.name, datatype, tuple(shape), data)
    return InferRequest(model, version, [tensor], parameters={"binary_data_output": True})


def head_size_of(header: bytes | None, size: int) -> int:
    """How many of a body's `size` bytes are JSON: what `Inference-Header-Content-Length` says, or all. Raises
    InvalidRequest."""
    if header is None:
        return size
    if not header.isdigit() or len(header) > 19 or int(header) > size:
        raise InvalidRequest(
            f"Inference-Header-Content-Length is {header[:40].decode('latin-1')!r}, and the body has {size} bytes",
            hint=_HINT_BINARY,
        )
    return int(header)


def write_response(request: InferRequest, response: InferResponse) -> tuple[bytes, int | None]:
    """The body of an answer, and how many of its bytes are JSON where tensors follow in binary.

    JSON has neither NaN nor infinity: both are null there. Raises InvalidRequest for a tensor that JSON cannot hold.
    """
    outputs: list[dict[str, Any]] = []
    tails: list[bytes] = []
    binary = _BinaryOutputs(request)
    for tensor in response.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        parameters = tensor.parameters
        if tensor.data is None:
            parameters = NO_PARAMETERS  # as Triton: its HTTP clients take any for a sign of binary data
        elif binary.holds(tensor.name):
            parameters = {**parameters, "binary_data_size": len(tensor.data)}
            tails.append(tensor.data)
        else:
            entry["data"] = _values(tensor, tensor.data)
        if parameters:
            entry["parameters"] = parameters
        outputs.append(entry)
    head: dict[str, Any] = {"model_name": response.model, "model_version": response.version, "outputs": outputs}
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = response.parameters
    encoded = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((encoded, *tails)), len(encoded)) if tails else (encoded, None)


def json_bytes(request: InferRequest, response: InferResponse) -> int:
    """How many bytes of tensors an answer has to write as JSON."""
    binary = _BinaryOutputs(request)
    return sum(len(tensor.data) for tensor in response.outputs if tensor.data and not binary.holds(tensor.name))


class _BinaryOutputs:
    """Which outputs a request wants in binary: as each says, or else as the request says for all, or else none."""

    def __init__(self, request: InferRequest) -> None:
        self._all = bool(request.parameters.get("binary_data_output", False))
        self._said = {output.name: output.parameters.get("binary_data", self._all) for output in request.outputs}

    def holds(self, name: str) -> bool:
        return bool(self._said.get(name, self._all))


def _input(entry: dict[str, Any], view: memoryview, at: int) -> tuple[InputTensor, int]:
    """One input, and where the binary data of the next one begin."""
    name, datatype, shape = _named(entry, "input"), typed(entry, "datatype", str, "an input"), entry.get("shape")
    where = f"input {name[:80]!r}"
    if not datatype:
        raise InvalidRequest(f"{where} has no datatype", hint=_HINT)
    if type(shape) is not list or not {int}.issuperset(map(type, shape)):
        raise InvalidRequest(f"{where}: shape has to be a list of integers", hint=_HINT)
    size_of(name, shape)
    parameters, values = parameters_of(entry, where), entry.get("data")
    size, region = parameters.get("binary_data_size"), parameters.get("shared_memory_region")
    if (values is not None) + (size is not None) + (region is not None) != 1:
        raise InvalidRequest(
            f"{where} has to have one of data, binary_data_size and shared_memory_region, and only one", hint=_HINT
        )
    if size is not None:
        end = at + _checked_size(size, len(view) - at, where)
        return InputTensor(name, datatype, tuple(shape), view[at:end], parameters), end
    data = None if values is None else from_values(name, datatype, shape, values)
    return InputTensor(name, datatype, tuple(shape), data, parameters), at


def _checked_size(size: Any, left: int, where: str) -> int:
    if type(size) is not int or size < 0 or size > left:
        raise InvalidRequest(
            f"{where}: binary_data_size is {str(size)[:40]}, and {left} bytes are left behind the JSON",
            hint=_HINT_BINARY,
        )
    return size


def _requested(entry: dict[str, Any]) -> RequestedOutput:
    name = _named(entry, "output")
    parameters = parameters_of(entry, f"output {name[:80]!r}")
    _flag(parameters, "binary_data", f"output {name[:80]!r}")
    return RequestedOutput(name, parameters)


def _named(entry: dict[str, Any], what: str) -> str:
    name = typed(entry, "name", str, f"an {what}")
    if not name:
        raise InvalidRequest(f"an {what} has no name", hint=_HINT)
    return name


def _objects(said: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = typed(said, key, list, "the request") or []
    for entry in entries:
        if type(entry) is not dict:
            raise InvalidRequest(f"{key} has to be a list of objects, and holds a JSON {kind_of(entry)}", hint=_HINT)
    return entries


def _flag(parameters: Parameters, name: str, where: str) -> None:
    if not isinstance(parameters.get(name, False), bool):
        raise InvalidRequest(f"{where}: {name} has to be true or false")


def _values(tensor: OutputTensor, data: bytes) -> Any:
    """The elements of a tensor, flat, as orjson writes them."""
    dtype = dtype_of(tensor.name, tensor.datatype)
    if tensor.datatype == BYTES:
        try:
            return [element.decode() for element in split_bytes(tensor.name, data, prod(tensor.shape))]
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"output {tensor.name!r} holds bytes that are not UTF-8, and so cannot be JSON",
                hint='ask for it in binary: "parameters": {"binary_data": true}',
            ) from error
    values = np.frombuffer(data, dtype)
    return values.astype(np.float32) if tensor.datatype == "BF16" else values
