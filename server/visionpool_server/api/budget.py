"""How many bytes of requests the server holds at once, over all connections: memory is not a buffer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from visionpool.errors import QueueFull


class ByteBudget:
    """Used on the event loop only, so that it needs no lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """What one request takes; given back when it is answered."""
        held = Held(self)
        try:
            yield held
        finally:
            self.used -= held.size


class Held:
    """The bytes that one request holds."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.size = 0

    def take(self, size: int) -> None:
        """Raises QueueFull where the server holds too much already."""
        if self._budget.used + size > self._budget.limit:
            raise QueueFull(
                f"the server holds {self._budget.limit / 2**20:g} MiB of requests already",
                hint="come back after the time in Retry-After, or send smaller pictures",
            )
        self._budget.used += size
        self.size += size
