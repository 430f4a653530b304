"""Copies run beside computing: the timeline of the streams, by events with timing around the same calls that workers make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from visionpool_server.backends import LoadOptions, ShapeRange
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.builder import build_plan
from visionpool_server.backends.tensorrt.engine import TensorRtEngine
from visionpool_server.backends.tensorrt.settings import TensorRtSettings
from visionpool_server.cuda.driver import Driver
from visionpool_server.cuda.gpu import Gpu

from benchmarks import memory
from benchmarks.on_gpu.by_hand import Loop
from benchmarks.on_gpu.models import INPUT, picture, tensors
from benchmarks.on_gpu.overlap import Fed, overlaps
from benchmarks.on_gpu.pictures import RECIPES, left_to_gpu
from benchmarks.on_gpu.timeline import TimedDriver, merged
from tests.gpu.stand_in import STAND_IN
from tests.gpu.stand_in import build_plan as fake_plan

BATCHES = 8


def test_the_next_upload_begins_before_the_kernel_of_the_last_batch_ends(driver: Driver) -> None:
    timed = TimedDriver(driver)
    gpu = Gpu(timed.as_driver(), 0)
    with gpu.current():
        recipe = RECIPES["letterbox 640"]
        size, count = ((54, 40), 2) if STAND_IN else ((1080, 810), 32)
        pixels = left_to_gpu(recipe, [picture(size, seed) for seed in range(count)])
        loop = Loop(gpu, recipe.arithmetic, pixels)
        for _ in range(3):
            loop.pipelined()
        loop.finish()
        timed.begin(loop.compute.handle)
        for _ in range(BATCHES):
            loop.pipelined()
        loop.finish()
        kinds = merged(timed.spans())
        timed.forget()
        loop.close()
    gpu.close()
    assert all(len(spans) == BATCHES for spans in kinds.values())
    assert sum(overlaps(kinds, index) for index in range(1, BATCHES)) >= BATCHES - 2


def test_a_worker_uploads_the_next_batch_while_tensorrt_computes(api: Api, any_driver: Driver, tmp_path: Path) -> None:
    rows = 2 if STAND_IN else 32
    onnx = memory.resnet50(tmp_path / "resnet50.onnx", width=4 if STAND_IN else 64)
    shape = (rows, 3, memory.SIZE, memory.SIZE)
    timed = TimedDriver(any_driver)
    gpu = Gpu(timed.as_driver(), 0, for_libraries=True)
    settings = TensorRtSettings(cuda_graphs=False, compute_capability=("current",) if api.rtx else ())
    build: Callable[..., bytes] = fake_plan if STAND_IN else build_plan
    with gpu.current():
        plan = build(api, onnx, [{INPUT: ShapeRange(shape, shape, shape)}], settings)
    engine = TensorRtEngine(api, plan, LoadOptions(device="cuda:0", max_batch_size=rows), settings, gpu)
    context = engine.clone()
    fed, batch = Fed(context), {INPUT: tensors(rows)}
    fed.step(batch)
    with gpu.current():
        stream = gpu.stream()
        timed.begin(stream.handle)
    for _ in range(BATCHES):
        fed.step(batch)
    outputs = fed.finish()
    assert outputs is not None and np.isfinite(next(iter(outputs.values()))).all()
    with gpu.current():
        stream.synchronize()
        kinds = merged(timed.spans())
        timed.forget()
    context.close()
    engine.close()
    assert all(len(spans) == BATCHES for spans in kinds.values())
    assert sum(overlaps(kinds, index) for index in range(1, BATCHES)) >= BATCHES // 2
