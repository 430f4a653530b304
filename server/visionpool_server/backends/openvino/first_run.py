"""The first inference, on the thread that loads: whether the model works, and whether it is very quick."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from visionpool.errors import InvalidModel

from visionpool_server.backends import LoadOptions, Tensors
from visionpool_server.backends.openvino.context import Compiled, OpenVinoContext
from visionpool_server.backends.openvino.engine import OpenVinoEngine
from visionpool_server.backends.openvino.files import Names, core, reason
from visionpool_server.backends.openvino.shapes import Plan

QUICK = 75e-6  # seconds: handing a request over to OpenVINO's own threads costs about as much


def run_once(engine: OpenVinoEngine, options: LoadOptions, planned: Plan) -> Tensors | None:
    """Runs zeros, which also keeps workers from the binding's first-use deadlock. Raises InvalidModel where they fail.

    A plain model with dynamic dimensions may refuse zeros of guessed sizes for good reasons: then a trivial one is run.
    Returns the zeros that the model takes, None where they could not be guessed.
    """
    plain = options.image is None
    example = engine.example(planned.limit if plain else None)
    try:
        outputs = engine.clone().infer(example)
    except RuntimeError as error:
        if plain and engine.dynamic:
            _run_trivial()
            return None
        raise InvalidModel(
            f"the model loads, but fails on {'zeros' if plain else 'a black picture'}: {reason(error)}",
            hint="check runtime.shapes and preprocess in model.yaml",
        ) from error
    if plain and planned.batched and any(len(value) != planned.limit for value in outputs.values()):
        raise InvalidModel(
            f"a batch of {planned.limit} rows does not give outputs of as many",
            hint="say batching.max_batch_size: 1",
        )
    return example


def seconds(engine: OpenVinoEngine, example: Tensors, runs: int = 10) -> float:
    """How long one inference takes, at best."""
    context = engine.clone()
    context.infer(example)
    best = float("inf")
    for _ in range(runs):
        started = time.perf_counter()
        context.infer(example)
        best = min(best, time.perf_counter() - started)
    return best


@cache
def _run_trivial() -> None:
    parameter = ops.parameter([1], np.float32)
    compiled = core().compile_model(ov.Model([ops.relu(parameter)], [parameter]), "CPU")
    context = OpenVinoContext(Compiled({None: compiled}), Names(("x",), ("y",)))
    context.infer({"x": np.zeros(1, np.float32)})
