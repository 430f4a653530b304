"""What a worker uses: the session, and what Python's side of it does not convert by itself."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from visionpool.errors import InvalidRequest

from visionpool_server.backends import LoadOptions, Tensors, numpy_dtype
from visionpool_server.backends.onnxruntime.session import inputs_of, spec_of

_BFLOAT16 = 16  # TensorProto.BFLOAT16 of onnx.proto


class OnnxRuntimeContext:
    def __init__(self, session: ort.InferenceSession, options: LoadOptions) -> None:
        self._session = session
        self._image = options.image
        self._specs = {spec.name: spec for spec in inputs_of(session)}
        declared = tuple(map(spec_of, session.get_outputs()))
        self._outputs = [spec.name for spec in declared]
        dtypes = {spec.dtype for spec in (*self._specs.values(), *declared)}
        self._run = self._infer_values if "bfloat16" in dtypes else self._infer
        self._texts_in = [spec.name for spec in self._specs.values() if spec.dtype == "bytes"]
        self._texts_out = [spec.name for spec in declared if spec.dtype == "bytes"]

    def infer(self, batch: Tensors) -> Tensors:
        feeds = dict(batch)
        if image := self._image:
            dtype = np.dtype(self._specs[image.name].dtype)
            feeds[image.name] = image.arithmetic.apply(batch[image.name], image.layout, dtype)
        for name in self._texts_in:
            feeds[name] = decode(feeds[name], name)
        outputs = self._run(feeds)
        for name in self._texts_out:
            outputs[name] = _mapped(str.encode, outputs[name])
        return outputs

    def _infer(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))

    def _infer_values(self, feeds: Tensors) -> dict[str, NDArray[Any]]:
        """Where there is bfloat16, which its conversion from and to NumPy does not know."""
        values = {name: _value(array, self._specs[name].dtype) for name, array in feeds.items()}
        outputs = self._session.run_with_ort_values(self._outputs, values)
        return dict(zip(self._outputs, map(_array, outputs), strict=True))


def _value(array: NDArray[Any], dtype: str) -> ort.OrtValue:
    if dtype != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)


def _array(value: ort.OrtValue) -> NDArray[Any]:
    if value.element_type() != _BFLOAT16:
        array: NDArray[Any] = value.numpy()
        return array
    count = value.tensor_size_in_bytes() // 2
    raw = (ctypes.c_uint16 * count).from_address(value.data_ptr()) if count else ()
    return np.array(raw, np.uint16).view(numpy_dtype("bfloat16")).reshape(value.shape())


def decode(texts: NDArray[Any], name: str) -> NDArray[Any]:
    try:
        return _mapped(bytes.decode, texts)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"input {name!r} has a string that is not UTF-8", hint="ONNX Runtime takes no other strings from Python"
        ) from error


def _mapped(convert: Any, texts: NDArray[Any]) -> NDArray[Any]:
    converted = np.empty(texts.size, object)
    converted[:] = [convert(text) for text in texts.ravel().tolist()]
    return converted.reshape(texts.shape)
