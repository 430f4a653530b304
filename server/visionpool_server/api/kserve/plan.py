"""What all tensor requests of one form share: checked with the first of them, remembered for the others.

A form is everything that a request says but the values of its tensors, its id and its own parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from visionpool_server.api.kserve.messages import InferRequest, OutputTensor, Parameters
from visionpool_server.batching import Tensors
from visionpool_server.pool import Pool

Outputs = list[OutputTensor]
Form = tuple[object, ...]

_READ = ("classification", "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")  # by `outputs`
_MOST = 256  # of one model: whoever sends ever new shapes has each checked anew


class Plan(NamedTuple):
    """`names`: the model's own, in the order of the request's inputs. `pieces`: how many batches it runs in, of `piece_rows`
    at most. `finish` makes the outputs, and is given `result` (see `contract`) among them where `with_results` says so.
    `simple`: one batch, and nothing but tensors out.
    """

    pool: Pool
    names: tuple[str, ...]
    rows: int
    pieces: int
    piece_rows: int
    finish: Callable[[Tensors], Outputs]
    with_results: bool
    simple: bool


class Plans:
    """Those of one model."""

    def __init__(self) -> None:
        self._plans: dict[Form, Plan] = {}

    def find(self, form: Form) -> Plan | None:
        return self._plans.get(form)

    def keep(self, form: Form, plan: Plan) -> None:
        if len(self._plans) >= _MOST:
            self._plans.clear()
        self._plans[form] = plan


def form_of(request: InferRequest) -> Form:
    return (
        *[tensor[:3] for tensor in request.inputs],  # name, datatype, shape
        None,
        *[(name, *_read(parameters)) if parameters else name for name, parameters in request.outputs],
    )


def _read(parameters: Parameters) -> tuple[object, ...]:
    """Those that matter. 1 and true are equal, and not the same."""
    return tuple([(type(parameters[name]), parameters[name]) if name in parameters else None for name in _READ])
