"""What a KServe v2 inference asks and answers, free of any transport: both codecs read and write these.

JSON + binary tails ->                                    -> JSON + binary tails
                       InferRequest -> ... -> InferResponse
protobuf ---------->                                      -> protobuf
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from visionpool_server.statistics import Stages

Parameters = Mapping[str, Any]  # str -> bool, int, float or str
NO_PARAMETERS: Parameters = {}


def _no_parameters() -> Parameters:
    return NO_PARAMETERS


@dataclass(frozen=True, slots=True)
class InputTensor:
    """A tensor of a request. `data`: its bytes as on the wire (BYTES elements with their lengths), or an array of its values
    (what JSON and typed protobuf fields carry); None where it lies in shared memory, which `parameters` then name."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview | NDArray[Any] | None
    parameters: Parameters = field(default_factory=_no_parameters)


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """`parameters`: `classification`, `binary_data` (HTTP), `shared_memory_region`, `_offset`, `_byte_size`."""

    name: str
    parameters: Parameters = field(default_factory=_no_parameters)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """`outputs` empty: all that the model gives by itself."""

    model: str
    version: str
    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput] = ()
    id: str = ""
    parameters: Parameters = field(default_factory=_no_parameters)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor of an answer. `data`: its bytes as on the wire; None where they were written into shared memory."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | None
    parameters: Parameters = field(default_factory=_no_parameters)


@dataclass(frozen=True, slots=True)
class InferResponse:
    """`stages`: where the time went."""

    model: str
    version: str
    outputs: Sequence[OutputTensor]
    id: str = ""
    parameters: Parameters = field(default_factory=_no_parameters)
    stages: Stages = field(default_factory=Stages)
