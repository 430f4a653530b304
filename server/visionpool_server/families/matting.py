"""How much of each pixel belongs to the foreground: PP-Matting, PP-HumanMatting, MODNet and their kind.

The alpha of a pixel, 0 to 1, is the `score_map`; the class is the foreground from `score_threshold` (.5) on. Alphas come
back to the original's size linearly, step by step (PaddleSeg `Matting/deploy/python/infer.py`).
"""

from __future__ import annotations

import numpy as np
from visionpool.errors import InvalidModel
from visionpool.results import SegmentationResult

from visionpool_server.families import (
    FamilySpec,
    Options,
    Tensors,
    image_input,
)
from visionpool_server.families.pixel_maps import ClassMap, MapFamily, restored, result_of
from visionpool_server.imaging.recipe import Geometry

_NAMES = ("alpha", "pha", "matte", "output")


class Matting(MapFamily):
    """Output (N, 1, H, W) or (N, H, W), 0 to 1."""

    accepts = frozenset({"compact", "score_threshold", "output"})
    fallback = Options(score_threshold=0.5)

    def __init__(self, spec: FamilySpec) -> None:
        self.image_input, _ = image_input(spec)
        if spec.recipe is None:
            raise InvalidModel(
                "neither the file nor model.yaml says how pictures are prepared for this model",
                hint="for MODNet: preprocess: [{resize_short: {size: 512, multiple: 32}}, {normalize: {mean: 0.5, std: 0.5}}]",
            )
        self.recipe = spec.recipe
        self._output = _alpha_of(spec)
        self.labels = spec.labels or ("background", "foreground")
        self.class_count: int | None = 2
        self.defaults = spec.defaults.over(self.fallback)

    def finish(self, outputs: Tensors, geometry: Geometry, options: Options) -> SegmentationResult:
        chosen = options.over(self.defaults)
        values = outputs[self._output]
        plane = np.ascontiguousarray(values.reshape(values.shape[-2:]), np.float32)
        alpha = np.clip(restored(plane, geometry), 0, 1)
        found = ClassMap((alpha >= (chosen.score_threshold or 0.0)).astype(np.uint8), alpha)
        return result_of(found, self.labels, scored=True, compact=bool(chosen.compact), geometry=geometry)


def _alpha_of(spec: FamilySpec) -> str:
    """The output with the alphas: the one said, the only one there is, or one that is called so."""
    planes = [
        name for name, shape in spec.outputs.items() if len(shape) == 3 or (len(shape) == 4 and shape[1] in (1, None))
    ]
    said = spec.settings.get("output")
    if said is not None:
        planes = [name for name in planes if name == said]
    elif len(planes) > 1:
        planes = [name for name in _NAMES if name in planes][:1]
    if len(planes) != 1:
        raise InvalidModel(
            f"a matting model has one output of (pictures, 1, height, width); this model has {dict(spec.outputs)}",
            hint="say postprocess.output: NAME in model.yaml",
        )
    return planes[0]
