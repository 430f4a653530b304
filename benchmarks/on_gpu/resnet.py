"""The ResNet-50 that is made for the occasion as an engine, built once for all sections of a run."""

from __future__ import annotations

import time

from visionpool_server.backends import Precision, ShapeRange
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.profiles import Profile
from visionpool_server.cuda.gpu import Gpu

from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.models import INPUT, SIZE
from benchmarks.on_gpu.report import Report


def plan_of(
    machine: Machine, api: Api, gpu: Gpu, precision: Precision | None = None, report: Report | None = None
) -> bytes:
    """For the machine's batches. Kept in the run's folder, for the next section."""
    kept = machine.models.folder / f"resnet50-{api.name}-{precision or 'f32'}.plan"
    if not kept.is_file():
        started = time.perf_counter()
        plan = machine.built(api, machine.models.resnet, [_profile(machine)], precision, gpu)
        kept.with_suffix(".part").write_bytes(plan)
        kept.with_suffix(".part").rename(kept)  # whole or not at all: a section may be ended at any time
        if report:
            report.text(
                f"\nResNet-50 {precision or 'f32'}: built in {time.perf_counter() - started:.1f} s, {len(plan) / 1e6:.1f} MB"
            )
    return kept.read_bytes()


def _profile(machine: Machine) -> Profile:
    low, usual, high = ((rows, 3, SIZE, SIZE) for rows in machine.batch)
    return {INPUT: ShapeRange(low, usual, high)}
