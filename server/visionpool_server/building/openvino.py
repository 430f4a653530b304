"""Weights for OpenVINO: an IR, quantised by NNCF or with its weights stored in half as many bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel

from visionpool_server.backends import ImageInput, Precision, numpy_dtype
from visionpool_server.building.pictures import Pictures
from visionpool_server.building.progress import Notify
from visionpool_server.building.subject import Subject
from visionpool_server.families import Family
from visionpool_server.models.advice import hint
from visionpool_server.models.loader import image_input_of

WEIGHTS = "model.xml"
PRECISIONS: tuple[Precision, ...] = ("int8", "f16", "bf16", "f32")


def check(subject: Subject, precision: Precision) -> None:
    """Before anything is spent. Raises InvalidModel for a model that cannot be built in that precision."""
    from visionpool_server.backends.openvino.files import read_model
    from visionpool_server.backends.openvino.quantization import is_quantized

    if is_quantized(read_model(subject.source.weights)):
        raise InvalidModel(
            f"{subject.weights.name} is quantised already", hint="build from the model that it was made of, or serve it"
        )
    if precision == "int8" and subject.model.family is None:
        raise InvalidModel(
            f"nothing says how pictures become the tensors of {subject.model.name}, so it cannot be calibrated",
            hint=hint(subject.model.signature),
        )


def write(subject: Subject, folder: Path, precision: Precision, pictures: Pictures | None, notify: Notify) -> str:
    """Writes the weights into `folder`; their file's name. Raises InvalidModel, BackendUnavailable."""
    import openvino as ov

    from visionpool_server.backends.openvino.files import read_model
    from visionpool_server.backends.openvino.quantization import quantize

    model = read_model(subject.source.weights)
    if precision == "int8":
        assert pictures is not None
        assert subject.model.family is not None
        model = quantize(model, pictures.calibration, _Calibration(subject, subject.model.family, notify))
    notify("writing", 0, None)
    ov.save_model(model, folder / WEIGHTS, compress_to_fp16=precision == "f16")
    return WEIGHTS


class _Calibration:
    """The model's inputs for a calibration picture, in the file's own order, shape and type. NNCF asks for each picture
    more than once: kept meanwhile, they would fill the memory."""

    def __init__(self, subject: Subject, family: Family, notify: Notify) -> None:
        self._subject = subject
        self._inputs = subject.model.signature.inputs
        picture = next(spec for spec in self._inputs if spec.name == family.image_input)
        self._image = image_input_of(family, picture)
        self._notify = notify
        self._read = 0

    def __call__(self, path: Path) -> Sequence[NDArray[Any]]:
        self._read += 1
        self._notify("calibrating", self._read, None)
        tensors = self._subject.prepared(path.read_bytes(), max_pixels=2**62)  # `choose` has seen to its size
        return [
            _as_in_file(tensors, name=spec.name, dtype=numpy_dtype(spec.dtype), image=self._image)
            for spec in self._inputs
        ]


def _as_in_file(
    tensors: Mapping[str, NDArray[Any]], *, name: str, dtype: np.dtype[Any], image: ImageInput
) -> NDArray[Any]:
    value = tensors[name]
    if name != image.name:
        return np.asarray(value, dtype)
    return image.arithmetic.apply(value, image.layout, dtype)
