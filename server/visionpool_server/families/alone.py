"""Models whose outputs have no batch dimension: one picture at a time. A leaf: it imports no family."""

from __future__ import annotations

from collections.abc import Sequence

from visionpool.errors import InferenceFailed

from visionpool_server.families import Tensors


def split_one(outputs: Tensors, count: int) -> Sequence[Tensors]:
    """Raises InferenceFailed for the outputs of several pictures."""
    if count != 1:
        raise InferenceFailed(
            f"the outputs of {count} pictures have no batch dimension, so nobody can tell whose they are",
            hint="the model's operator should say batching.max_batch_size: 1",
        )
    return [outputs]


def join_one(parts: Sequence[Tensors]) -> Tensors:
    """The inverse of `split_one`."""
    return split_one(parts[0], len(parts))[0]
