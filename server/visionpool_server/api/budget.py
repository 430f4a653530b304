"""How many bytes of requests the server holds at once, over all connections: memory is not a buffer."""

from __future__ import annotations

from typing import Self

from visionpool.errors import QueueFull


class ByteBudget:
    """Used on the event loop only, so that it needs no lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def hold(self) -> Held:
        """What one request takes: `with` gives it back when it is answered."""
        return Held(self)


class Held:
    """The bytes that one request holds."""

    __slots__ = ("_budget", "size")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.used -= self.size

    def take(self, size: int) -> None:
        """Raises QueueFull where the server holds too much already."""
        if self._budget.used + size > self._budget.limit:
            raise QueueFull(
                f"the server holds {self._budget.limit / 2**20:g} MiB of requests already",
                hint="come back after the time in Retry-After, or send smaller pictures",
            )
        self._budget.used += size
        self.size += size
