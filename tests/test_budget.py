"""Requests hold a bounded number of bytes, over all connections."""

from __future__ import annotations

import pytest
from visionpool.errors import QueueFull
from visionpool_server.api.budget import ByteBudget


def test_what_is_held_is_given_back() -> None:
    budget = ByteBudget(100)
    with budget.hold() as first, budget.hold() as second:
        first.take(60)
        second.take(40)
        with pytest.raises(QueueFull, match="holds"):
            first.take(1)
        assert budget.used == 100
    assert budget.used == 0
    with budget.hold() as third:
        third.take(100)


def test_a_request_that_fails_gives_its_bytes_back() -> None:
    budget = ByteBudget(100)
    with pytest.raises(RuntimeError, match="broken"), budget.hold() as held:
        held.take(70)
        raise RuntimeError("broken")
    assert budget.used == 0
