"""Whether these tests run on stand-ins, to try the tests themselves; and plans of the fake TensorRT in place of built ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.profiles import Profile

from tests.fake_tensorrt import make_plan

STAND_IN = os.environ.get("VISIONPOOL_GPU_STAND_IN") == "1"
_BY_NUMBERS = ("NonZero", "NonMaxSuppression")  # their outputs' sizes follow from the numbers


def build_plan(api: Api, source: Path, profiles: Sequence[Profile] = (), settings: Any = None, **more: Any) -> bytes:
    model = source.read_bytes()
    nodes = onnx.load_from_string(model).graph.node
    named = {out.name for out in onnx.load_from_string(model).graph.output}
    found = [name for node in nodes if node.op_type in _BY_NUMBERS for name in node.output if name in named]
    return make_plan(model, [dict(profile) for profile in profiles], open=found, detailed=True, weights=len(model))
