"""How jobs become a batch and its outputs theirs again: nobody gets rows of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from visionpool.errors import InferenceFailed
from visionpool_server.assembly import Piece, Rows
from visionpool_server.backends import Placement, Tensors
from visionpool_server.batching import Job
from visionpool_server.execution import Execution
from visionpool_server.statistics import Statistics

Floats = NDArray[np.float32]


class Picky:
    """A runtime that gives a row for each input above zero: what comes out belongs to nobody in particular."""

    contexts, on_cpu, quick_bytes, batched, max_batch_size = 1, True, 0, True, 8

    def __init__(self, *sizes: int) -> None:
        self.batch_sizes = sizes
        self.seen: list[int] = []

    def clone(self) -> Picky:
        return self

    def infer(self, batch: Tensors) -> Tensors:
        self.seen.append(len(batch["x"]))
        return {"y": batch["x"][batch["x"] > 0]}

    def describe(self) -> Placement:
        return Placement("picky", "CPU", "f32")

    def shape_use(self) -> None: ...

    def close(self) -> None: ...


def job_of(*values: float) -> Job:
    return Job({"x": np.array(values, np.float32)}, lambda outputs: outputs["y"].tolist(), rows=len(values))


def answers(jobs: list[Job]) -> list[Any]:
    return [job.future.exception(0) or job.future.result(0) for job in jobs]


def run(engine: Picky, *jobs: Job) -> list[Any]:
    for job in jobs:
        assert job.claim()
    Execution(engine, Rows(), Statistics()).run(list(jobs))
    return answers(list(jobs))


def test_rows_are_cut_where_each_came_from() -> None:
    assert run(Picky(), job_of(1, 2), job_of(3)) == [[1, 2], [3]]


def test_what_runs_alone_comes_back_whole() -> None:
    assert run(Picky(), job_of(1, -2, 3)) == [[1, 3]]


def test_where_nobody_can_tell_whose_rows_they_are_each_runs_alone() -> None:
    engine = Picky()
    assert run(engine, job_of(1, -2), job_of(3), job_of(-4)) == [[1], [3], []]
    assert engine.seen == [4, 2, 1, 1]


def test_a_padded_batch_of_which_nobody_can_tell_is_an_error_that_says_so() -> None:
    (failed,) = run(Picky(4), job_of(1, -2, 3))
    assert isinstance(failed, InferenceFailed)
    assert "3 rows for a batch of 4" in failed.message  # the last row fills it up
    assert "max_batch_size: 1" in str(failed)


@pytest.mark.parametrize("sizes", [(), (4,)])
def test_a_lone_piece_is_parted_in_the_same_way(sizes: tuple[int, ...]) -> None:
    execution = Execution(Picky(*sizes), Rows(), Statistics())
    answer, _ = execution.run_alone(Piece({"x": np.ones(3, np.float32)}, 3), lambda outputs: outputs["y"].tolist())
    assert answer == [1, 1, 1]
