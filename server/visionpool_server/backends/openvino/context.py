"""What a worker thread uses: one infer request for each batch size in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from visionpool.errors import InvalidRequest

from visionpool_server.backends import Tensors, numpy_dtype
from visionpool_server.backends.openvino.files import Names, dtype_of
from visionpool_server.backends.openvino.shape_cache import ShapeCache

_SMALL = 32 * 1024  # bytes: copying so many costs less than telling OpenVINO of a new tensor
_KEPT = {"int64": np.iinfo(np.int32), "uint64": np.iinfo(np.uint32)}  # what of wider integers it computes with

BySize = Mapping[int | None, ov.CompiledModel]  # the key None takes any batch size


@dataclass(frozen=True, slots=True)
class Compiled:
    """`inline`: the same for one thread, for inputs up to `inline_bytes`. OpenVINO then computes on the thread that asks,
    where streams of several threads are handed each request over: that takes longer than a very small model itself."""

    by_size: BySize
    inline: BySize = field(default_factory=dict)
    inline_bytes: int = 0
    shapes: ShapeCache | None = None  # where inputs are dynamic; it compiles for each shape, or only counts them


class OpenVinoContext:
    def __init__(self, compiled: Compiled, names: Names) -> None:
        self._compiled = compiled
        self._names = names
        self._requests: dict[tuple[int | None, bool], _Request] = {}
        self._fixed: dict[ov.CompiledModel, _Request] = {}
        self._only = next(iter(compiled.by_size)) if len(compiled.by_size) == 1 else None

    def infer(self, batch: Tensors) -> Tensors:
        size = self._only if len(self._compiled.by_size) == 1 else len(next(iter(batch.values())))
        limit = self._compiled.inline_bytes
        inline = bool(limit) and sum(array.nbytes for array in batch.values()) <= limit
        shapes = self._compiled.shapes
        if shapes and not inline:  # what is so small takes no memory worth counting
            shape = tuple([batch[name].shape for name in self._names.inputs])
            if fixed := shapes.get(shape):
                return self._request_for(fixed, shapes).infer(batch)
        key = (size, inline)
        request = self._requests.get(key)
        if request is None:
            request = self._requests[key] = self._new_request(*key)
        return request.infer(batch)

    def _request_for(self, fixed: ov.CompiledModel, shapes: ShapeCache) -> _Request:
        """The request of a model of fixed shapes. Those of models that gave way go with them."""
        if fixed not in self._fixed:
            self._fixed = {model: r for model, r in self._fixed.items() if shapes.holds(model)}
            self._fixed[fixed] = _Request(fixed, self._names)
        return self._fixed[fixed]

    def _new_request(self, size: int | None, inline: bool) -> _Request:
        compiled = self._compiled.inline if inline else self._compiled.by_size
        return _Request(compiled[size], self._names)


class _Request:
    def __init__(self, compiled: ov.CompiledModel, names: Names) -> None:
        self._request = compiled.create_infer_request()
        self._inputs = [
            (name, _Input(name, self._request, i, port))
            for i, (name, port) in enumerate(zip(names.inputs, compiled.inputs, strict=True))
        ]
        self._outputs = names.outputs
        dtypes = [dtype_of(port.element_type) for port in compiled.outputs]
        self._viewed = [(n, numpy_dtype(d)) for n, d in zip(names.outputs, dtypes, strict=True) if d == "bfloat16"]

    def infer(self, batch: Tensors) -> Tensors:
        for name, tensor in self._inputs:
            tensor.set(batch[name])
        outputs = dict(zip(self._outputs, self._request.infer(share_outputs=True).values(), strict=True))
        for name, dtype in self._viewed:
            outputs[name] = outputs[name].view(dtype)  # the binding takes bfloat16 for float16
        return outputs


class _Input:
    """One input of a request. Large arrays are shared with OpenVINO, also read-only ones: it does not write to inputs.

    OpenVINO keeps no reference: what is shared lives as long as the caller's batch, what is copied as long as `_buffer`.
    """

    def __init__(self, name: str, request: ov.InferRequest, index: int, port: Any) -> None:
        self._name = name
        self._request = request
        self._index = index
        self._type = port.element_type
        self._dtype = numpy_dtype(dtype_of(port.element_type))
        self._kept = _KEPT.get(self._dtype.name)
        self._raw = np.dtype(np.uint16) if self._type == ov.Type.bf16 else None  # the binding does not know ml_dtypes
        self._buffer: NDArray[Any] | None = None  # what OpenVINO reads, if that is ours

    def set(self, array: NDArray[Any]) -> None:
        if array.dtype != self._dtype:  # OpenVINO would read its memory as something else
            raise TypeError(f"input {self._name!r} is {array.dtype}, and the model takes {self._dtype}")
        if self._kept is not None:
            self._check_range(array, self._kept)
        buffer, ours = self._buffer, array.nbytes <= _SMALL or not array.flags.aligned
        if ours and buffer is not None and array.shape == buffer.shape:
            buffer[...] = array
            return
        if ours:
            array = array.copy()
        raw = array if self._raw is None else array.view(self._raw)
        self._request.set_input_tensor(self._index, ov.Tensor(raw, raw.shape, self._type))
        self._buffer = array if ours else None  # not before: what OpenVINO refuses, it does not read

    def _check_range(self, array: NDArray[Any], kept: np.iinfo[Any]) -> None:
        if array.size and (array.max() > kept.max or array.min() < kept.min):
            raise InvalidRequest(
                f"input {self._name!r}: OpenVINO computes {self._dtype} in 32 bits, and a value is beyond {kept.max}",
                hint="the model's operator may say runtime.backend: onnxruntime",
            )
