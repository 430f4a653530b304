"""Models that make a vector of a picture, for looking up others like it (PaddleClas' PP-ShiTu, torchvision without its head).

Output (N, D), or (N, D, 1, 1). The vector is brought to length 1, so that the scalar product of two is their likeness;
`postprocess: {normalize: false}` leaves it as the model gives it.
"""

from __future__ import annotations

import numpy as np
from visionpool.errors import InvalidModel
from visionpool.results import EmbeddingResult

from visionpool_server.families import (
    FamilySpec,
    Options,
    PictureFamily,
    Tensors,
    image_input,
)
from visionpool_server.families.scores import finite, vector_output
from visionpool_server.imaging.recipe import Geometry

_LEAST = 1e-12  # a vector shorter than that has no direction


class Embedding(PictureFamily):
    accepts = frozenset({"normalize", "output"})

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, _ = image_input(spec)
        if spec.recipe is None:
            raise InvalidModel(
                "neither the file nor model.yaml says how pictures are prepared for this model",
                hint="say preprocess: in model.yaml: it must be as in training",
            )
        self.recipe = spec.recipe
        self._output, _ = vector_output(spec)
        self.normalize: bool = spec.settings.get("normalize", True)
        self.labels: tuple[str, ...] = ()
        self.class_count: int | None = 0
        self.defaults = spec.defaults.over(Options())

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> EmbeddingResult:  # noqa: ARG002  a protocol's signature
        vector = finite(outputs[self._output].reshape(-1).astype(np.float64))
        if self.normalize:
            vector = vector / max(float(np.linalg.norm(vector)), _LEAST)
        return EmbeddingResult(tuple(vector.astype(np.float32).astype(float).tolist()))
