"""Jobs for pools of the fake backend, whose answer is the share of each colour in a picture of one colour."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from visionpool_server.batching import Job, Tensors

Colour = tuple[int, int, int]
BOUND = 30.0  # seconds that anything here may take at most


def colour_of(outputs: Tensors) -> tuple[float, ...]:
    return tuple(outputs["output0"].round(4).tolist())


def job_of(colour: Colour, finish: Callable[[Tensors], Any] = colour_of) -> Job:
    pixels = np.empty((8, 8, 3), np.uint8)
    pixels[:] = colour
    return Job({"images": pixels}, finish)


def answer_for(colour: Colour) -> Any:
    return pytest.approx([value / sum(colour) for value in colour], abs=1e-3)


def assert_answered(jobs: Sequence[Job], colours: Sequence[Colour]) -> None:
    for job, colour in zip(jobs, colours, strict=True):
        assert job.future.result(BOUND) == answer_for(colour)


def eventually(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < until, f"not within {BOUND:g} s: {what}"
        time.sleep(0.005)
