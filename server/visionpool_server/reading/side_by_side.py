"""Several things done side by side: all of them, or the first failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

R = TypeVar("R")
T = TypeVar("T")


class Failed(Exception):
    """`index`: of the picture that met `error`."""

    def __init__(self, index: int, error: Exception) -> None:
        super().__init__(index, error)
        self.index, self.error = index, error


async def all_of(work: Callable[[T], Awaitable[R]], items: Sequence[T], at_once: int) -> list[R]:
    """What `work` makes of each item, so many at once. The first that fails ends the others, and is raised."""
    results: dict[int, R] = {}
    waiting = iter(enumerate(items))

    async def worker() -> None:
        for index, item in waiting:
            results[index] = await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(items))):
                group.create_task(worker())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [results[index] for index in range(len(items))]
