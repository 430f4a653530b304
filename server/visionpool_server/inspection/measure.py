"""`--run`: the model loaded as for serving, and timed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from visionpool_server.backends import Context, Engine, Tensors, zeros
from visionpool_server.backends.survey import Survey, Timing
from visionpool_server.inspection.identity import Identified
from visionpool_server.inspection.report import Run

_WARM_UP = 3


def measure(
    known: Identified, survey: Survey | None, shapes: Mapping[str, tuple[int, ...]], seconds: float, flops: int | None
) -> Run:
    """A third of the time each for latency, throughput and the profile. Raises SetupError, as loading for serving does."""
    share = seconds / 3
    engine = known.backend.load(known.source, known.options)
    try:
        rows = (engine.batch_sizes or (1,))[0]
        batch = _batch(known, shapes, rows)
        latencies = _latencies(engine.clone(), batch, share)
        throughput = _throughput(engine, batch, share) * rows
        placement, contexts = engine.describe(), engine.contexts
    finally:
        engine.close()
    timings = survey.profile(_batch(known, shapes, 1), share) if survey else ()
    return Run(
        device=placement.device,
        precision=placement.precision,
        batch=rows,
        seconds=seconds,
        runs=len(latencies),
        latency_ms=_summary(latencies),
        contexts=contexts,
        throughput=round(throughput, 2),
        gflops_per_second=round(flops * throughput / 1e9, 2) if flops else None,
        operators_ms=round(sum(timing.ms for timing in timings), 4),
        timings=tuple(_rounded(timing) for timing in timings),
    )


def _batch(known: Identified, shapes: Mapping[str, tuple[int, ...]], rows: int) -> Tensors:
    """Pictures of noise, with what the family says beside them; or random numbers of the proposed shapes."""
    random = np.random.default_rng(0)
    if known.family and known.image:
        height, width = _picture_size(known, shapes)
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        prepared = dict(known.family.prepare(picture).tensors)
        as_surveyed = picture[..., : len(known.image.arithmetic.mean)]  # in that very size
        prepared[known.image.name] = as_surveyed.astype(known.image.dtype)
        return {name: np.ascontiguousarray(np.stack([value] * rows)) for name, value in prepared.items()}
    feeds = {}
    for spec in known.signature.inputs:
        shape = shapes.get(spec.name, ())
        feeds[spec.name] = zeros(shape, spec.dtype)
        if spec.dtype in ("float16", "float32", "float64"):
            feeds[spec.name] = random.random(shape).astype(spec.dtype)
    return feeds


def _picture_size(known: Identified, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Height and width of the model's own input."""
    assert known.image is not None
    shape = shapes[known.image.name]
    rows = known.image.layout.index("H")
    return shape[rows], shape[rows + 1]


def _latencies(context: Context, batch: Tensors, seconds: float) -> list[float]:
    """In seconds, of each run, one after the other."""
    for _ in range(_WARM_UP):
        context.infer(batch)
    found: list[float] = []
    end = time.monotonic() + seconds
    while not found or time.monotonic() < end:
        started = time.perf_counter()
        context.infer(batch)
        found.append(time.perf_counter() - started)
    return found


def _throughput(engine: Engine, batch: Tensors, seconds: float) -> float:
    """Batches in a second, with every context on a thread of its own."""
    contexts = [engine.clone() for _ in range(engine.contexts)]
    for context in contexts:
        context.infer(batch)
    started = time.monotonic()

    def work(context: Context) -> int:
        runs = 0
        while not runs or time.monotonic() < started + seconds:
            context.infer(batch)
            runs += 1
        return runs

    with ThreadPoolExecutor(len(contexts)) as threads:
        runs = sum(threads.map(work, contexts))
    return runs / (time.monotonic() - started)


def _summary(latencies: list[float]) -> dict[str, float]:
    ms = np.array(latencies) * 1e3
    p50, p90, p99 = np.percentile(ms, [50, 90, 99])
    values = {"mean": ms.mean(), "min": ms.min(), "p50": p50, "p90": p90, "p99": p99}
    return {name: round(float(value), 4) for name, value in values.items()}


def _rounded(timing: Timing) -> Timing:
    return replace(timing, ms=round(timing.ms, 4), count=round(timing.count, 2))
