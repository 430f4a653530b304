"""How long something took, each time: counted in fixed ranges, as Prometheus's histograms want it.

prometheus_client's own histogram takes a lock and looks up its labels for each observation, which is more than some of the
stages take that are measured; this one is two list operations under the lock that its user holds anyway.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

# Upper ends in seconds, from what a small model takes for one picture to what nobody waits longer for. Steps of 2 to 2.5: a
# quantile read off them is at most so far off.
BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Spread(NamedTuple):
    """A histogram as it was: `counts` by bucket, the last of what took longer than all of them; `seconds` altogether."""

    counts: tuple[int, ...]
    seconds: float

    def plus(self, other: Spread) -> Spread:
        return Spread(
            tuple(map(sum, zip(self.counts, other.counts, strict=True))),
            self.seconds + other.seconds,
        )


NOTHING = Spread((0,) * (len(BUCKETS) + 1), 0.0)


class Histogram:
    """Not thread-safe: its user holds a lock."""

    __slots__ = ("_counts", "_seconds")

    def __init__(self) -> None:
        self._counts = list(NOTHING.counts)
        self._seconds = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._seconds += seconds

    def spread(self) -> Spread:
        return Spread(tuple(self._counts), self._seconds)
