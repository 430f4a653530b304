"""The model's inputs for calibration pictures, as its file takes them, each made when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel

from visionpool_server.backends import ImageInput, numpy_dtype
from visionpool_server.building.progress import Notify
from visionpool_server.building.subject import Subject
from visionpool_server.families import Family
from visionpool_server.models.advice import hint
from visionpool_server.models.loader import image_input_of


def check_calibratable(subject: Subject) -> None:
    """Raises InvalidModel for a model of plain tensors."""
    if subject.model.family is None:
        raise InvalidModel(
            f"nothing says how pictures become the tensors of {subject.model.name}, so it cannot be calibrated",
            hint=hint(subject.model.signature),
        )


class Calibration:
    """The model's inputs for a picture by name, in the file's own order, shape and type. Quantisers ask for each picture
    more than once: kept meanwhile, they would fill the memory."""

    def __init__(self, subject: Subject, family: Family, notify: Notify) -> None:
        self._subject = subject
        self._inputs = subject.model.signature.inputs
        picture = next(spec for spec in self._inputs if spec.name == family.image_input)
        self._image = image_input_of(family, picture)
        self._notify = notify
        self._read = 0

    def __call__(self, path: Path) -> dict[str, NDArray[Any]]:
        self._read += 1
        self._notify("calibrating", self._read, None)
        tensors = self._subject.prepared(path.read_bytes(), max_pixels=2**62)  # `choose` has seen to its size
        return {
            spec.name: _as_in_file(tensors, name=spec.name, dtype=numpy_dtype(spec.dtype), image=self._image)
            for spec in self._inputs
        }


def _as_in_file(
    tensors: Mapping[str, NDArray[Any]], *, name: str, dtype: np.dtype[Any], image: ImageInput
) -> NDArray[Any]:
    value = tensors[name]
    if name != image.name:
        return np.asarray(value, dtype)
    return image.arithmetic.apply(value, image.layout, dtype)
