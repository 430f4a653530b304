"""A model's outputs as the tensors of an answer: by name, as classes, or into shared memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidRequest

from visionpool_server.api.kserve.contract import RESULT, Contract
from visionpool_server.api.kserve.datatypes import BYTES, join_bytes, to_buffer
from visionpool_server.api.kserve.messages import NO_PARAMETERS, OutputTensor, Parameters, RequestedOutput

_MAX_CLASSES = 1_000_000
_LONGEST_NAME = 255  # of a region


class Regions(Protocol):
    """Where outputs may be written to."""

    def write(self, region: str, offset: int, data: bytes) -> None: ...


class Place(NamedTuple):
    """Where in shared memory a tensor lies, in bytes."""

    region: str
    offset: int
    size: int


class Wanted(NamedTuple):
    """One output that a request wants: under which name, of which of the model's, and in which form."""

    name: str
    own: str
    datatype: str
    classes: int = 0  # 0: the tensor itself
    place: Place | None = None


def wanted_outputs(contract: Contract, outputs: Sequence[RequestedOutput], *, pictures: bool) -> list[Wanted]:
    """What a request wants; where it does not say, the results of pictures, or all of the model's own tensors.

    Raises InvalidRequest for an unknown name, and for parameters that make no sense.
    """
    if not outputs:
        names = [RESULT] if pictures and RESULT in contract.output_names else list(contract.outputs)
        return [Wanted(name, name, _datatype(contract, name)) for name in names]
    if len({output.name for output in outputs}) < len(outputs):
        raise InvalidRequest("an output is asked for twice", hint="ask for each once")
    return [_wanted(contract, output) for output in outputs]


def _datatype(contract: Contract, own: str) -> str:
    return contract.outputs[own].datatype if own in contract.outputs else BYTES


def _wanted(contract: Contract, output: RequestedOutput) -> Wanted:
    own = contract.output_for(output.name)
    datatype = _datatype(contract, own)
    classes = output.parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes <= _MAX_CLASSES:
        raise InvalidRequest(f"output {output.name!r}: classification is a count of classes, not {str(classes)[:40]}")
    if classes and datatype == BYTES:
        raise InvalidRequest(f"output {output.name!r}: classification is for numbers, and it is {datatype}")
    place = place_of(output.name, output.parameters)
    if classes and place:
        raise InvalidRequest(f"output {output.name!r}: classification does not go into shared memory")
    return Wanted(output.name, own, datatype, classes, place)


def place_of(name: str, parameters: Parameters) -> Place | None:
    """The place in shared memory that a tensor's parameters name, if they do. Raises InvalidRequest."""
    if "shared_memory_region" not in parameters:
        return None
    region = parameters["shared_memory_region"]
    size, offset = parameters.get("shared_memory_byte_size"), parameters.get("shared_memory_offset", 0)
    if (
        not isinstance(region, str)
        or len(region) > _LONGEST_NAME
        or type(size) is not int
        or type(offset) is not int
        or size < 0
        or offset < 0
    ):
        raise InvalidRequest(
            f"tensor {name[:80]!r}: shared memory takes shared_memory_region, shared_memory_byte_size and shared_memory_offset",
            hint="a name and two counts of bytes",
        )
    return Place(region, offset, size)


def rendered(
    wanted: Sequence[Wanted],
    arrays: Mapping[str, NDArray[Any]],
    labels: Sequence[str],
    regions: Regions,
    *,
    batched: bool,
) -> list[OutputTensor]:
    """The tensors of an answer from the model's outputs, which are not needed any more then."""
    return [_rendered(want, arrays[want.own], labels, regions, batched=batched) for want in wanted]


def _rendered(
    want: Wanted, array: NDArray[Any], labels: Sequence[str], regions: Regions, *, batched: bool
) -> OutputTensor:
    if want.classes:
        return _classified(want, array, labels, batched=batched)
    data = to_buffer(array)
    if want.place is None:
        return OutputTensor(want.name, want.datatype, array.shape, data)
    place = want.place
    if len(data) > place.size:
        raise InvalidRequest(
            f"output {want.name!r} takes {len(data)} bytes, and its place in region {place.region!r} has {place.size}",
            hint="make shared_memory_byte_size larger",
        )
    regions.write(place.region, place.offset, data)
    parameters = {
        "shared_memory_region": place.region,
        "shared_memory_byte_size": len(data),
        "shared_memory_offset": place.offset,
    }
    return OutputTensor(want.name, want.datatype, array.shape, None, parameters)


def _classified(want: Wanted, array: NDArray[Any], labels: Sequence[str], *, batched: bool) -> OutputTensor:
    """Triton's classification extension: the k highest values of each row as `value:index[:label]`."""
    rows = array.reshape(array.shape[0], -1) if batched and array.ndim else array.reshape(1, -1)
    k = min(want.classes, rows.shape[1])
    if not k:
        raise InvalidRequest(f"output {want.name!r} has no values to classify")
    elements = [text for row in rows for text in _classes(row, k, labels)]
    shape = (len(rows), k) if batched else (k,)
    return OutputTensor(want.name, BYTES, shape, join_bytes(elements), NO_PARAMETERS)


def _classes(row: NDArray[Any], k: int, labels: Sequence[str]) -> list[bytes]:
    order = np.argsort(row.astype(np.float64), kind="stable")[::-1][:k]
    floating = row.dtype.kind not in "biu"
    texts = []
    for index in order.tolist():
        value = f"{float(row[index]):f}" if floating else str(int(row[index]))
        label = f":{labels[index]}" if index < len(labels) else ""
        texts.append(f"{value}:{index}{label}".encode())
    return texts
