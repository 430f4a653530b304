"""The models' own figures: what they have done, and how full they are just now.

A vision model may have two pools, for pictures and for its own tensors: on the same device, so that its figures are those of
both together, but for the slots, which the second does not add to. A pipeline has no workers: its steps have.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import reduce
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.core import Metric

from visionpool_server.api.metrics.figures import (
    Figures,
    add_counts,
    add_info,
    add_spread,
    add_total,
    counter,
    gauge,
    histogram,
    info,
)
from visionpool_server.histogram import Spread
from visionpool_server.models.model import Model
from visionpool_server.models.repository import Repository
from visionpool_server.pool import Pool
from visionpool_server.reading.steps import PICTURES
from visionpool_server.statistics import STAGES, Snapshot

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _Fill(NamedTuple):
    slots: int
    used: int
    waiting: int
    requests: int


class _Seen(NamedTuple):
    """A model at the time of a scrape."""

    model: Model
    pools: tuple[Pool, ...]
    done: tuple[Snapshot, ...]
    fill: _Fill


class ModelFigures(Figures):
    """Those of models that are served: what was unloaded is gone, and counts begin at 0 when it is loaded again."""

    def __init__(self, models: Repository) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        seen = [_seen(model) for model in self._models]
        yield _about(seen)
        yield from _counts(seen)
        yield _batch_sizes(seen)
        yield _stages(seen)
        yield from _now(seen)
        yield _workers(seen)
        yield _memory(seen)


def _seen(model: Model) -> _Seen:
    tensors = model.tensors.loaded if model.tensors else None
    pools = (model.pool, tensors) if tensors else (model.pool,)
    return _Seen(model, pools, tuple(pool.statistics.snapshot() for pool in pools), _fill(model, pools))


def _fill(model: Model, pools: tuple[Pool, ...]) -> _Fill:
    """What workers hold beyond the slots waits: a batch that a GPU is given early, a picture that a spare worker decodes."""
    all_of = [pool.occupancy() for pool in pools]
    requests = sum(one.requests for one in all_of)
    if model.pipeline:
        return _Fill(0, 0, max(0, all_of[0].admitted - PICTURES), requests)
    slots = max(one.capacity for one in all_of)
    executing = sum(one.executing for one in all_of)
    used = min(slots, executing)
    return _Fill(slots, used, sum(one.waiting for one in all_of) + executing - used, requests)


def _about(seen: list[_Seen]) -> Metric:
    metric = info("visionpool_model", "A model that is served, for each device that it runs on.")
    for model, pools, _, _ in seen:
        about = {"version": model.version, "task": model.task, "family": model.family_name}
        places = {(place.device, place.backend, place.precision) for pool in pools for place in pool.placements}
        for device, backend, precision in sorted(places) or [("", "", "")]:
            placed = {"device": device, "backend": backend, "precision": precision}
            add_info(metric, {"model": model.name, **about, **placed})
    return metric


def _counts(seen: list[_Seen]) -> Iterator[Metric]:
    pictures = counter("visionpool_pictures", "Pictures, or rows of tensors, that a model was run on.")
    restarts = counter("visionpool_worker_restarts", "Workers that died or hung, and were replaced.")
    for model, pools, done, _ in seen:
        add_total(pictures, {"model": model.name}, sum(one.inference_count for one in done))
        if not model.pipeline:
            add_total(restarts, {"model": model.name}, sum(pool.restarts for pool in pools))
    yield pictures
    yield restarts


def _batch_sizes(seen: list[_Seen]) -> Metric:
    """Sizes are counted one by one for KServe's statistics anyway: here they are only put into ranges."""
    metric = histogram("visionpool_batch_size", "Pictures, or rows of tensors, that were run together.")
    ends = [*(f"{size}.0" for size in _SIZES), "+Inf"]
    for model, _, done, _ in seen:
        if model.pipeline:
            continue
        counts = [0] * len(ends)
        for batch in (batch for one in done for batch in one.batches):
            counts[bisect_left(_SIZES, batch.size)] += batch.compute_infer.count
        pictures = sum(one.inference_count for one in done)
        add_counts(metric, {"model": model.name}, list(zip(ends, accumulate(counts), strict=True)), pictures)
    return metric


def _stages(seen: list[_Seen]) -> Metric:
    metric = histogram(
        "visionpool_stage_duration_seconds",
        "Seconds in each stage: infer of a batch, encode of a request, the others of a picture or a request's tensors.",
    )
    for model, pools, _, _ in seen:
        spreads = [pool.statistics.spreads() for pool in pools]
        for stage in STAGES:
            spread = reduce(Spread.plus, (each[stage] for each in spreads))
            if any(spread.counts):  # a model of tensors decodes nothing
                add_spread(metric, {"model": model.name, "stage": stage}, spread)
    return metric


def _now(seen: list[_Seen]) -> Iterator[Metric]:
    in_flight = gauge(
        "visionpool_requests_in_flight", "Requests for results that were let in and are not answered yet."
    )
    waiting = gauge(
        "visionpool_queue_length",
        "Pictures or rows that were let in and do not execute yet: being decoded, or waiting for that or for a worker.",
    )
    slots = gauge(
        "visionpool_slots", "Pictures or rows that execute at once where all workers run their largest batch."
    )
    used = gauge("visionpool_slots_used", "Slots with a picture or row in them.")
    for model, _, _, fill in seen:
        labels = {"model": model.name}
        in_flight.add_sample(in_flight.name, labels, fill.requests)
        waiting.add_sample(waiting.name, labels, fill.waiting)
        if not model.pipeline:
            slots.add_sample(slots.name, labels, fill.slots)
            used.add_sample(used.name, labels, fill.used)
    yield from (in_flight, waiting, slots, used)


def _workers(seen: list[_Seen]) -> Metric:
    metric = gauge("visionpool_workers", "Workers of a model, each with a context of its own, by device.")
    for model, pools, _, _ in seen:
        counts: dict[str, int] = {}
        for pool in pools:
            for group, place in zip(pool.groups, pool.placements, strict=True):
                counts[place.device] = counts.get(place.device, 0) + group.count
        for device, count in counts.items():
            metric.add_sample(metric.name, {"model": model.name, "device": device}, count)
    return metric


def _memory(seen: list[_Seen]) -> Metric:
    metric = gauge(
        "visionpool_engine_memory_bytes",
        "What a model's engines hold at least: their weights; with TensorRT, the engine and its contexts.",
    )
    for model, pools, _, _ in seen:
        held = [place.memory_bytes for pool in pools for place in pool.placements]
        known = [size for size in held if size is not None]
        if known:
            metric.add_sample(metric.name, {"model": model.name}, sum(known))
    return metric
