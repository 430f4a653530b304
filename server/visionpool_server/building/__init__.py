"""`visionpool build`: a model in another precision, as a bundle that serves as it is, and what that gained and cost.

    original (loaded as it is served) + calibration pictures -> BUILDERS: weights -> bundle (model.yaml) -> OUT
    original and OUT, side by side -> speed, size, agreement or accuracy -> `Report`

`build` is the whole of it. A further runtime is one module here and one line in BUILDERS.
"""

from __future__ import annotations

from visionpool_server.building.build import BUILDERS, Wish, build
from visionpool_server.building.progress import Notify
from visionpool_server.building.report import Report

__all__ = ["BUILDERS", "Notify", "Report", "Wish", "build"]
