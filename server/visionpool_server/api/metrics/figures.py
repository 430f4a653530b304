"""Our figures in prometheus_client's form. They are written down as they are at the time of a scrape; nothing is kept twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from visionpool_server.histogram import BUCKETS, Spread

Labels = Mapping[str, str]

_ENDS = (*(str(end) for end in BUCKETS), "+Inf")


class Figures(Collector):
    """A collector that is asked for nothing when it is registered: models are still to come then."""

    def describe(self) -> Iterator[Metric]:
        return iter(())


def gauge(name: str, text: str) -> Metric:
    return Metric(name, text, "gauge")


def counter(name: str, text: str) -> Metric:
    """`name` without `_total`."""
    return Metric(name, text, "counter")


def histogram(name: str, text: str) -> Metric:
    return Metric(name, text, "histogram")


def info(name: str, text: str) -> Metric:
    """`name` without `_info`."""
    return Metric(name, text, "info")


def add_info(metric: Metric, labels: Labels) -> None:
    metric.add_sample(f"{metric.name}_info", dict(labels), 1)


def add_total(metric: Metric, labels: Labels, value: float) -> None:
    metric.add_sample(f"{metric.name}_total", dict(labels), value)


def add_spread(metric: Metric, labels: Labels, spread: Spread) -> None:
    """A histogram of seconds, in our buckets."""
    add_counts(metric, labels, list(zip(_ENDS, accumulate(spread.counts), strict=True)), spread.seconds)


def add_counts(metric: Metric, labels: Labels, buckets: Sequence[tuple[str, int]], total: float) -> None:
    """`buckets`: upper ends, the last "+Inf", and how many were no more than that."""
    name = f"{metric.name}_bucket"
    for end, count in buckets:
        metric.add_sample(name, {**labels, "le": end}, count)
    metric.add_sample(f"{metric.name}_count", dict(labels), buckets[-1][1])
    metric.add_sample(f"{metric.name}_sum", dict(labels), total)
