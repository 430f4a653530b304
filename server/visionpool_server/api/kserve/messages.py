"""What a KServe v2 inference asks and answers, free of any transport: both codecs read and write these.

JSON + binary tails ->                                    -> JSON + binary tails
                       InferRequest -> ... -> InferResponse
protobuf ---------->                                      -> protobuf
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray
from visionpool.errors import InvalidRequest

from visionpool_server.statistics import Stages

Parameters = Mapping[str, Any]  # str -> bool, int, float or str
NO_PARAMETERS: Parameters = {}
MOST_TENSORS = 1024  # inputs or outputs of one request


def check_counts(inputs: int, outputs: int) -> None:
    """Raises InvalidRequest: no model has as many, and every one costs something to read."""
    if max(inputs, outputs) > MOST_TENSORS:
        raise InvalidRequest(
            f"{inputs} inputs and {outputs} outputs in one request, at most {MOST_TENSORS} of each are read"
        )


class InputTensor(NamedTuple):
    """A tensor of a request. `data`: its bytes as on the wire (BYTES elements with their lengths), or an array of its values
    (what JSON and typed protobuf fields carry); None where it lies in shared memory, which `parameters` then name."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview | NDArray[Any] | None
    parameters: Parameters = NO_PARAMETERS


class RequestedOutput(NamedTuple):
    """`parameters`: `classification`, `binary_data` (HTTP), `shared_memory_region`, `_offset`, `_byte_size`."""

    name: str
    parameters: Parameters = NO_PARAMETERS


class InferRequest(NamedTuple):
    """`outputs` empty: all that the model gives by itself."""

    model: str
    version: str
    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput] = ()
    id: str = ""
    parameters: Parameters = NO_PARAMETERS


class OutputTensor(NamedTuple):
    """A tensor of an answer. `data`: its bytes as on the wire; None where they were written into shared memory."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | None
    parameters: Parameters = NO_PARAMETERS


class InferResponse(NamedTuple):
    """`stages`: where the time went."""

    model: str
    version: str
    outputs: Sequence[OutputTensor]
    id: str = ""
    parameters: Parameters = NO_PARAMETERS
    stages: Stages = Stages()
