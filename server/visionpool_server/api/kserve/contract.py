"""What a model takes and gives over KServe v2: its own tensors by name or alias, and for vision models pictures and `result`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidRequest

from visionpool_server.api.kserve.datatypes import DATATYPES, DTYPES
from visionpool_server.api.kserve.messages import InputTensor
from visionpool_server.api.kserve.plan import Plans
from visionpool_server.backends import TensorSpec
from visionpool_server.models.loader import Model

RESULT = "result"  # the output that holds each picture's result as JSON


@dataclass(frozen=True, slots=True)
class Port:
    """One tensor of a model. `shape`: None for a free dimension, and for a rank that the file leaves open."""

    name: str
    datatype: str
    shape: tuple[int | None, ...] | None

    @classmethod
    def of(cls, spec: TensorSpec, fixed: Sequence[int] = ()) -> Port:
        """`fixed`: sizes that model.yaml gives, where they are above 0."""
        shape = spec.shape
        if fixed and shape is not None:
            shape = tuple(size if size > 0 else known for size, known in zip(fixed, shape, strict=True))
        return cls(spec.name, DATATYPES.get(spec.dtype, spec.dtype), shape)

    def takes(self, shape: Sequence[int], *, batched: bool) -> bool:
        """Whether a tensor of this shape fits; a batch dimension fits at any size."""
        if self.shape is None:
            return True
        if len(shape) != len(self.shape):
            return False
        first = 1 if batched else 0
        return all(own in (None, size) for own, size in zip(self.shape[first:], shape[first:], strict=True))

    def shown(self, *, batched: bool) -> list[int]:
        """The shape as metadata give it: -1 is free."""
        sizes = [-1 if size is None else size for size in self.shape or ()]
        return [-1, *sizes[1:]] if batched and sizes else sizes


class Contract:
    """Made once for each model. `picture`: the name of the input that takes pictures, None for a plain tensor model."""

    def __init__(self, model: Model) -> None:
        aliases = model.bundle.aliases
        fixed = model.bundle.runtime.shapes
        own = {spec.name: Port.of(spec, fixed.get(spec.name, ())) for spec in model.signature.inputs}
        self.model = model
        self.inputs = own
        self.outputs = {spec.name: Port.of(spec) for spec in model.signature.outputs}
        self.plans = Plans()
        self.picture = model.taking_pictures.image_input if model.taking_pictures else None
        self.input_names = {**{name: name for name in own}, **{a: name for a, name in aliases.items() if name in own}}
        self.output_names = {
            **{name: name for name in self.outputs},
            **({RESULT: RESULT} if self.picture and RESULT not in self.outputs else {}),
            **{alias: name for alias, name in aliases.items() if name not in own},
        }

    def brings_pictures(self, inputs: Sequence[InputTensor]) -> InputTensor | None:
        """The input that holds pictures rather than a ready-made tensor, if there is one."""
        if self.picture is None:
            return None
        for tensor in inputs:
            if self.input_names.get(tensor.name) == self.picture and self._holds_pictures(tensor):
                return tensor
        return None

    def _holds_pictures(self, tensor: InputTensor) -> bool:
        if self.model.pipeline:
            return tensor.datatype in ("BYTES", "UINT8")
        own = self.inputs[str(self.picture)]
        if tensor.datatype == "BYTES":
            return own.datatype != "BYTES"
        return tensor.datatype == "UINT8" and not (own.datatype == "UINT8" and own.takes(tensor.shape, batched=True))

    def checked(self, shapes: Mapping[str, tuple[int, ...]], *, batched: bool) -> int:
        """How many rows tensors of these shapes have, 1 where nothing is batched. Raises InvalidRequest for shapes that the model
        does not take, and for inputs that are missing."""
        if missing := [name for name in self.inputs if name not in shapes]:
            raise InvalidRequest(
                f"{self.model.name} has {len(self.inputs)} inputs, and {', '.join(map(repr, missing))} is missing",
                hint="send all inputs that the model's metadata list",
            )
        rows = {shape[0] if shape else 1 for shape in shapes.values()} if batched else {1}
        for name, shape in shapes.items():
            port = self.inputs[name]
            if not port.takes(shape, batched=batched):
                raise InvalidRequest(
                    f"input {name!r} of {self.model.name} takes shape {port.shown(batched=batched)}, not {list(shape)}"
                )
        if len(rows) > 1:
            raise InvalidRequest(f"the inputs of {self.model.name} disagree about the batch: {sorted(rows)} rows")
        return next(iter(rows))

    def input_for(self, tensor: InputTensor) -> Port:
        """The port that a tensor of a request is for. Raises InvalidRequest for an unknown name or another datatype."""
        name = self.input_names.get(tensor.name)
        if name is None:
            raise InvalidRequest(
                f"{self.model.name} has no input {tensor.name[:80]!r}",
                hint=f"its inputs: {', '.join(self.input_names)}",
            )
        port = self.inputs[name]
        if tensor.datatype != port.datatype and tensor.datatype in DTYPES:
            ways = "; encoded pictures are BYTES, raw ones UINT8" if name == self.picture else ""
            raise InvalidRequest(
                f"input {name!r} of {self.model.name} is {port.datatype}, not {tensor.datatype}",
                hint=f"send {port.datatype}{ways}",
            )
        return port

    def output_for(self, name: str) -> str:
        """The own name of an output that was asked for. Raises InvalidRequest for an unknown one."""
        if name not in self.output_names:
            raise InvalidRequest(
                f"{self.model.name} has no output {name[:80]!r}", hint=f"its outputs: {', '.join(self.output_names)}"
            )
        return self.output_names[name]


def pixels_of(array: NDArray[Any], name: str) -> list[NDArray[np.uint8]]:
    """The pictures of a UINT8 tensor (N, H, W, 3) or (H, W, 3). Raises InvalidRequest for another shape."""
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape:
        raise InvalidRequest(
            f"input {name!r}: raw pictures are UINT8 of shape [N, height, width, 3] or [height, width, 3], "
            f"not {list(array.shape)}",
            hint="or send encoded ones: BYTES of shape [N]",
        )
    return list(array) if array.ndim == 4 else [array]
