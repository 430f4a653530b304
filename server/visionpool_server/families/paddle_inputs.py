"""What Paddle's detectors take beside the picture. A leaf: it imports no family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel

from visionpool_server.families import FamilySpec
from visionpool_server.imaging.recipe import Geometry, Recipe

SCALE, SHAPE = "scale_factor", "im_shape"


def side_inputs(spec: FamilySpec, picture: str) -> frozenset[str]:
    """The names of the inputs other than the picture. Raises InvalidModel for any that PaddleDetection does not have."""
    names = frozenset(spec.inputs) - {picture}
    if unknown := names - {SCALE, SHAPE}:
        raise InvalidModel(f"inputs that no PaddleDetection export has: {', '.join(sorted(unknown))}")
    return names


def side_tensors(names: frozenset[str], geometry: Geometry) -> Mapping[str, NDArray[Any]]:
    """The inputs of these names for one picture: both (2,), y before x."""
    resized = round(geometry.height * geometry.scale_y), round(geometry.width * geometry.scale_x)  # without padding
    values = {SCALE: (geometry.scale_y, geometry.scale_x), SHAPE: resized}
    return {name: np.array(values[name], np.float32) for name in names}


def recipe_said(spec: FamilySpec) -> Recipe:
    """The preprocessing that the files say: PaddleDetection's models differ in it, so none can be assumed."""
    if spec.recipe is None:
        raise InvalidModel(
            "a PaddleDetection export without its infer_cfg.yml does not say how pictures are prepared",
            hint="put infer_cfg.yml beside the model, or write preprocess: in model.yaml",
        )
    return spec.recipe


def without_offset(boxes: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Boxes (N, 4) xyxy that the graph has divided by the scale, in the original picture: an offset is still to go."""
    offset = np.array([geometry.offset_x / geometry.scale_x, geometry.offset_y / geometry.scale_y] * 2, np.float32)
    return geometry.clip(boxes - offset)
