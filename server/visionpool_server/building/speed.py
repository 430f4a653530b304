"""How much faster: both models in turn, round by round, on all of their workers' contexts, without any server."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionpool_server.backends import Context
from visionpool_server.building.progress import Notify, told
from visionpool_server.building.subject import Subject

ROUNDS = 9
SECONDS = 0.6  # of each model in each round


@dataclass(frozen=True, slots=True)
class Speed:
    """Rows inferred a second: the medians of all rounds. The ratio is taken round by round, since what else the machine
    does hits both models of a round alike: its median, its lowest and its highest."""

    before: float
    after: float
    ratio: float
    lowest: float
    highest: float


def race(before: Subject, after: Subject, tensors: Mapping[str, NDArray[Any]], notify: Notify) -> Speed:
    """`tensors`: one row, for both."""
    lanes = [_Lane(before, tensors), _Lane(after, tensors)]
    rates: list[tuple[float, float]] = []
    for _ in told(range(ROUNDS), "measuring speed", ROUNDS, notify):
        first, second = (lane.run() for lane in lanes)
        rates.append((first, second))
    return summary(rates)


def summary(rates: Sequence[tuple[float, float]]) -> Speed:
    ratios = [after / before for before, after in rates]
    return Speed(
        median(before for before, _ in rates),
        median(after for _, after in rates),
        median(ratios),
        min(ratios),
        max(ratios),
    )


class _Lane:
    """One model's contexts, warmed up."""

    def __init__(self, subject: Subject, tensors: Mapping[str, NDArray[Any]]) -> None:
        size = (subject.engine.batch_sizes or (1,))[0]
        self._rows = size
        self._batch = {name: np.repeat(value, size, axis=0) if size > 1 else value for name, value in tensors.items()}
        count = subject.model.pool.groups[0].count
        self._contexts = [subject.engine.clone() for _ in range(count)]
        for context in self._contexts:
            context.infer(self._batch)

    def run(self) -> float:
        """Rows a second, of all contexts together."""
        until = time.perf_counter() + SECONDS
        with ThreadPoolExecutor(len(self._contexts)) as threads:
            rates = list(threads.map(lambda context: self._rate(context, until), self._contexts))
        return sum(rates)

    def _rate(self, context: Context, until: float) -> float:
        started, count = time.perf_counter(), 0
        while True:
            context.infer(self._batch)
            count += 1
            now = time.perf_counter()
            if now >= until:
                return count * self._rows / (now - started)
