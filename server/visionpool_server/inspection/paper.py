"""Loading on paper: the loader does all that it does, and at the end an engine is only noted down, not loaded.

So an inspection sees a model exactly as it would be served, and the device that it is meant for need not be on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from visionpool_server.backends import Backend, LoadOptions, Placement, Signature, Source, get_backend


@dataclass(frozen=True, slots=True)
class PaperEngine:
    """What would be loaded: by which backend, from where, and how."""

    backend_name: str
    backend: Backend
    source: Source
    options: LoadOptions
    contexts: int = 1
    batched: bool = True
    batch_sizes: tuple[int, ...] = ()
    max_batch_size: int = 1
    on_cpu: bool = False
    quick_bytes: int = 0

    def clone(self) -> NoReturn:
        raise AssertionError("it is only on paper")

    def describe(self) -> Placement:
        return Placement(self.backend_name, self.options.device, "")

    def shape_use(self) -> None:
        """Nothing is compiled."""

    def close(self) -> None:
        """There is nothing to close."""


@dataclass(frozen=True, slots=True)
class PaperBackend:
    """Reads as `backend` does, and notes what it would load."""

    name: str
    backend: Backend

    def read(self, source: Source) -> Signature:
        return self.backend.read(source)

    def load(self, source: Source, options: LoadOptions) -> PaperEngine:
        return PaperEngine(self.name, self.backend, source, options)


def on_paper(name: str) -> PaperBackend:
    """The backend of this name, which only notes down what it would load. Raises as `get_backend` does."""
    return PaperBackend(name, get_backend(name))
