"""How a long build tells where it stands: a callback, so that nothing here draws on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Notify(Protocol):
    """Called with what is under way and how much of it is done; `total` None: nobody knows how much there is."""

    def __call__(self, step: str, done: int, total: int | None) -> None: ...


def silent(step: str, done: int, total: int | None) -> None:
    """A `Notify` that says nothing."""


def told(items: Iterable[Item], step: str, total: int, notify: Notify) -> Iterator[Item]:
    """`items`, each one counted."""
    notify(step, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        notify(step, done, total)
