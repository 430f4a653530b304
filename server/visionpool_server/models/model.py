"""A model that runs."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock

from visionpool.errors import SetupError, Unavailable

from visionpool_server.backends import Signature
from visionpool_server.cuda.jpegs import JpegDecoder
from visionpool_server.families import NO_OPTIONS, Family, Options
from visionpool_server.models.bundle import Bundle
from visionpool_server.pool import Pool


class TensorSide:
    """The second pool of a vision model, which takes the model's own tensors: `load`ed and started when first asked for."""

    def __init__(self, load: Callable[[], Pool]) -> None:
        self._load = load
        self._lock = Lock()
        self._pool: Pool | None = None
        self._failure: SetupError | None = None
        self._closed = False

    def pool(self) -> Pool:
        """Blocks while it loads; whoever asks meanwhile waits. Raises SetupError, each time where it cannot be loaded."""
        with self._lock:
            if self._closed:
                raise Unavailable("the model is being unloaded")
            if self._failure:
                raise type(self._failure)(self._failure.message, hint=self._failure.hint)
            if self._pool is None:
                try:
                    self._pool = self._load()
                except SetupError as error:
                    self._failure = error
                    raise
                self._pool.start()
            return self._pool

    @property
    def loaded(self) -> Pool | None:
        """The pool, if it was asked for."""
        return self._pool

    def close(self) -> None:
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool:
            pool.close()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A model that is made of others. `steps`: detect, perhaps classify, and read; a name is looked up with each request.

    It looks like a family to those who only ask what it takes.
    """

    steps: Mapping[str, Model | str] = field(default_factory=dict)
    defaults: Options = NO_OPTIONS
    direction_threshold: float = 0.9  # over which a line that is upside down is turned
    accepts: frozenset[str] = frozenset({"score_threshold"})
    image_input: str = "image"
    labels: tuple[str, ...] = ()
    class_count: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """`pool` is started once the repository takes the model in. That of a pipeline has no workers, only places."""

    name: str
    version: str
    task: str
    family_name: str  # "tensor" for a model without a family
    source: str  # where its configuration was found
    bundle: Bundle
    signature: Signature
    family: Family | None  # None: tensors in, tensors out
    labels: tuple[str, ...]
    pool: Pool
    tensors: TensorSide | None  # of a vision model
    advice: str | None = None  # what to write where it is served as plain tensors for want of better knowledge
    pipeline: Pipeline | None = None  # then it has no family of its own
    part_of: str | None = None  # the pipeline that brought it
    jpegs: JpegDecoder | None = None  # with `decode: gpu`

    @property
    def taking_pictures(self) -> Family | Pipeline | None:
        """What says which options a prediction takes; None for a model of plain tensors."""
        return self.family or self.pipeline

    @property
    def parts(self) -> tuple[Model, ...]:
        """The models that a pipeline brought: they come and go with it."""
        steps = self.pipeline.steps.values() if self.pipeline else ()
        return tuple(step for step in steps if isinstance(step, Model))

    def tensor_pool(self) -> Pool:
        """The pool that takes the model's own tensors; for a vision model the first call blocks while it loads.

        Raises SetupError where it cannot be loaded, Unavailable where the model is closed.
        """
        return self.tensors.pool() if self.tensors else self.pool

    def close(self) -> None:
        """Stops the workers, and gives the memory back."""
        self.pool.close()
        if self.tensors:
            self.tensors.close()
        if self.jpegs:
            self.jpegs.close()
        for part in self.parts:
            part.close()
        _trim()


def _trim() -> None:
    """Gives freed memory back to the system: glibc keeps what threads other than the main one freed."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
