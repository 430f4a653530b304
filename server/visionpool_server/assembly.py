"""How jobs become one batch, and the batch's outputs theirs again: one way for pictures, two for tensors as they come.

Pictures   tensors without a batch dimension are stacked; the family splits the outputs
Rows       tensors with one are joined along it, and the outputs cut along it
Whole      the model has no batch dimension: each request runs alone, exactly as it came
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InferenceFailed

from visionpool_server.batching import Job, Tensors

Batch = dict[str, NDArray[Any]]


class Piece(NamedTuple):
    """What of a job a batch is made from, for who runs without one."""

    tensors: Tensors
    rows: int


Pieces = Sequence[Job] | Sequence[Piece]


class Assembly(Protocol):
    def join(self, jobs: Pieces, size: int) -> Batch:
        """One batch of `size` rows, padded where the jobs have fewer. A lone job is not copied."""

    def part(self, outputs: Tensors, jobs: Pieces, size: int) -> Sequence[Tensors]:
        """What of the outputs of a batch of `size` rows belongs to each job: views, valid until the next inference.

        Raises InferenceFailed where that cannot be told.
        """


@dataclass(frozen=True, slots=True)
class Pictures:
    """`split(outputs, count)`: the outputs of each of `count` pictures."""

    split: Callable[[Tensors, int], Sequence[Tensors]]

    def join(self, jobs: Pieces, size: int) -> Batch:
        return stack([job.tensors for job in jobs], size)

    def part(self, outputs: Tensors, jobs: Pieces, size: int) -> Sequence[Tensors]:  # noqa: ARG002  a protocol's signature
        return self.split(outputs, len(jobs))


@dataclass(frozen=True, slots=True)
class Rows:
    def join(self, jobs: Pieces, size: int) -> Batch:
        if len(jobs) == 1 and jobs[0].rows == size:
            return dict(jobs[0].tensors)
        missing = size - sum(job.rows for job in jobs)
        return {name: _joined([job.tensors[name] for job in jobs], missing) for name in jobs[0].tensors}

    def part(self, outputs: Tensors, jobs: Pieces, size: int) -> Sequence[Tensors]:
        if len(jobs) == 1 and jobs[0].rows == size:
            return [outputs]
        _check_rows(outputs, size)
        parts, start = [], 0
        for job in jobs:
            end = start + job.rows
            parts.append({name: value[start:end] for name, value in outputs.items()})
            start = end
        return parts


@dataclass(frozen=True, slots=True)
class Whole:
    def join(self, jobs: Pieces, size: int) -> Batch:  # noqa: ARG002  a protocol's signature
        return dict(jobs[0].tensors)

    def part(self, outputs: Tensors, jobs: Pieces, size: int) -> Sequence[Tensors]:  # noqa: ARG002  a protocol's signature
        return [outputs]


def stack(items: Sequence[Tensors], size: int) -> Batch:
    """The tensors of some pictures as one batch of `size`; the last picture fills it up. One picture is not copied."""
    if size == 1:
        return {name: np.ascontiguousarray(tensor[None]) for name, tensor in items[0].items()}
    padded = [*items, *[items[-1]] * (size - len(items))]
    return {name: np.stack([item[name] for item in padded]) for name in items[0]}


def _check_rows(outputs: Tensors, size: int) -> None:
    for name, value in outputs.items():
        if len(value) != size:
            raise InferenceFailed(
                f"output {name!r} has {len(value)} rows for a batch of {size}, so nobody can tell whose they are",
                hint="the model's operator should say batching.max_batch_size: 1",
            )


def _joined(pieces: list[NDArray[Any]], missing: int) -> NDArray[Any]:
    return np.concatenate([*pieces, *[pieces[-1][-1:]] * missing])
