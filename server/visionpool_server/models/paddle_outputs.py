"""PaddleDetection's `infer_cfg.yml` does not say what `export_model.py` left out of the graph: the outputs do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionpool_server.backends import Signature
from visionpool_server.models.bundle import Bundle
from visionpool_server.models.guess import paddle_family

_LIMITS = {"iou_threshold": "nms_threshold", "max_detections": "keep_top_k"}


def fitted(bundle: Bundle, data: Mapping[str, Any], signature: Signature, source: str) -> Bundle:
    """`bundle`, made from the `data` of the file `source`, with the family that the outputs fit, and what `NMS` says for those
    that are still to be suppressed."""
    family = paddle_family(signature)
    if bundle.family != "paddle_detection" or family == bundle.family:
        return bundle
    said = data.get("NMS")
    nms = said if isinstance(said, Mapping) and family in ("ppyoloe", "picodet") else {}
    finishing = {
        **bundle.postprocess.model_dump(exclude_none=True),
        **{ours: nms[theirs] for ours, theirs in _LIMITS.items() if theirs in nms},
    }
    return Bundle.checked(source, {**bundle.model_dump(exclude_unset=True), "family": family, "postprocess": finishing})
