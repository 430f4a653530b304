"""KServe v2 between protobuf and `messages`. The messages are those that tritonclient ships: one process, one copy.

Outputs always travel as `raw_output_contents`; inputs may come raw or in the typed fields of `InferTensorContents`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidRequest

from visionpool_server.api.kserve.datatypes import BYTES, dtype_of, size_of
from visionpool_server.api.kserve.messages import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    InputTensor,
    Parameters,
    RequestedOutput,
    check_counts,
)
from visionpool_server.typed_contents import TYPED_CONTENTS


def read_request(message: Any) -> InferRequest:
    """From a `ModelInferRequest`. Raises InvalidRequest where it contradicts itself."""
    check_counts(max(len(message.inputs), len(message.raw_input_contents)), len(message.outputs))
    raw = iter(message.raw_input_contents)
    has_raw = bool(message.raw_input_contents)
    inputs = []
    for tensor in message.inputs:
        parameters = read_parameters(tensor.parameters)
        shared = "shared_memory_region" in parameters
        if shared:
            data: Any = None
        elif has_raw:
            if tensor.HasField("contents"):
                raise InvalidRequest(
                    f"contents field must not be specified when using raw_input_contents for {tensor.name[:80]!r} "
                    f"for model {message.model_name[:80]!r}",  # Triton's words, which its example looks for
                    hint="send one of the two",
                )
            data = next(raw, None)
            if data is None:
                raise _raw_mismatch(message)
        else:
            data = _typed(tensor)
        inputs.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data, parameters))
    if next(raw, None) is not None:
        raise _raw_mismatch(message)
    return InferRequest(
        message.model_name,
        message.model_version,
        inputs,
        [RequestedOutput(output.name, read_parameters(output.parameters)) for output in message.outputs],
        message.id,
        read_parameters(message.parameters),
    )


def _raw_mismatch(message: Any) -> InvalidRequest:
    return InvalidRequest(
        f"{len(message.raw_input_contents)} raw_input_contents for {len(message.inputs)} inputs",
        hint="one for each input that does not lie in shared memory, in their order",
    )


def _typed(tensor: Any) -> NDArray[Any]:
    """The tensor of the typed fields. Raises InvalidRequest where they do not fit its type or shape."""
    name, datatype = tensor.name, tensor.datatype
    dtype, count = dtype_of(name, datatype), size_of(name, tensor.shape)
    if datatype not in TYPED_CONTENTS:
        raise InvalidRequest(f"input {name!r}: {datatype} has no typed field", hint="send raw_input_contents")
    values = getattr(tensor.contents, TYPED_CONTENTS[datatype])
    if len(values) != count:
        raise InvalidRequest(
            f"input {name!r}: {len(values)} values in {TYPED_CONTENTS[datatype]}, and shape {list(tensor.shape)} takes {count}",
            hint="send all its values there, or in raw_input_contents",
        )
    array: NDArray[Any]
    if datatype == BYTES:
        array = np.empty(count, object)
        array[:] = list(values)
    else:
        try:
            array = np.array(values, dtype)
        except OverflowError as error:
            raise InvalidRequest(f"input {name!r}: a value is out of the range of {datatype}") from error
    return array.reshape(tuple(tensor.shape))


def read_parameters(parameters: Mapping[str, Any]) -> Parameters:
    """A map of `InferParameter` (or another message with one such choice) as plain values."""
    if not parameters:
        return NO_PARAMETERS
    plain = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidRequest(f"parameter {name[:80]!r} has no value")
        plain[name] = getattr(parameter, kind)
    return plain


def write_response(response: InferResponse, message: Any) -> Any:
    """Into an empty `ModelInferResponse`, which is returned."""
    message.model_name, message.model_version, message.id = response.model, response.version, response.id
    for output in response.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        write_parameters(output.parameters, tensor.parameters)
        message.raw_output_contents.append(output.data or b"")  # of all, for clients find an output's by its position
    write_parameters(response.parameters, message.parameters)
    return message


def write_parameters(parameters: Parameters, into: Any) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            into[name].bool_param = value
        elif isinstance(value, int):
            into[name].int64_param = value
        elif isinstance(value, float):
            into[name].double_param = value
        else:
            into[name].string_param = str(value)
