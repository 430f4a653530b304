"""A model's engines, loaded on their devices, and the pools of workers that run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from visionpool.errors import InvalidModel

from visionpool_server.assembly import Assembly, Pictures, Rows, Whole
from visionpool_server.backends import (
    Backend,
    Engine,
    ImageInput,
    LoadOptions,
    Precision,
    ShapeRange,
    Source,
    device_name,
)
from visionpool_server.families import Family
from visionpool_server.models.bundle import Bundle, Workers
from visionpool_server.pool import Pool, PoolOptions

Engines = list[tuple[Engine, int]]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the flags of `visionpool serve` say for models whose model.yaml does not."""

    device: str = "CPU"
    workers: int | None = None
    precision: Precision | None = None
    backend: str | None = None
    cache_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Loading:
    """All that an engine is loaded from."""

    name: str
    backend: Backend
    source: Source
    bundle: Bundle
    defaults: Defaults
    folder: Path  # of its model.yaml

    def picture_pool(self, family: Family, image: ImageInput) -> Pool:
        return self._pool(self._engines(image), Pictures(family.split))

    def tensor_pool(self) -> Pool:
        """Its engines take the model's own tensors. Raises InvalidModel."""
        engines = self._engines(None)
        return self._pool(engines, Rows() if all(engine.batched for engine, _ in engines) else Whole())

    def second_pool(self) -> Pool:
        """`tensor_pool` of a vision model, whose batches of pictures may be none of tensors: then nothing is joined."""
        try:
            return self.tensor_pool()
        except InvalidModel:
            alone = self.bundle.batching.model_copy(update={"max_batch_size": None, "sizes": ()})
            if alone == self.bundle.batching:
                raise
            return replace(self, bundle=self.bundle.model_copy(update={"batching": alone})).tensor_pool()

    def _engines(self, image: ImageInput | None) -> Engines:
        found = []
        for workers in self._workers():
            engine = self.backend.load(self.source, self._options(workers, image))
            found.append((engine, workers.count or engine.contexts))
        return found

    def _workers(self) -> Sequence[Workers]:
        device = self.bundle.runtime.device or self.defaults.device
        if isinstance(self.bundle.workers, tuple):
            return [Workers(device=entry.device or device, count=entry.count) for entry in self.bundle.workers]
        return [Workers(device=device, count=self.bundle.workers or self.defaults.workers)]

    def _options(self, workers: Workers, image: ImageInput | None) -> LoadOptions:
        runtime, batching = self.bundle.runtime, self.bundle.batching
        return LoadOptions(
            image=image,
            device=device_name(workers.device or "CPU"),
            precision=runtime.precision or self.defaults.precision,
            contexts=workers.count,
            max_batch_size=batching.max_batch_size,
            batch_sizes=batching.sizes,
            shapes=runtime.shapes,
            profiles=tuple(
                {name: ShapeRange(said.min, said.opt, said.max) for name, said in profile.items()}
                for profile in runtime.profiles
            ),
            plugins=tuple(self.folder / name for name in runtime.plugins),
            max_shapes=runtime.max_shapes,
            cpu_operators=runtime.cpu_operators,
            cache_dir=runtime.cache_dir or self.defaults.cache_dir,
            hang_timeout=batching.hang_timeout_ms / 1e3,
            options=runtime.options,
        )

    def _pool(self, engines: Engines, assembly: Assembly) -> Pool:
        batching = self.bundle.batching
        options = PoolOptions(
            max_queue_size=batching.max_queue_size,
            max_queue_delay=batching.max_queue_delay_us / 1e6,
            hang_timeout=batching.hang_timeout_ms / 1e3,
        )
        return Pool(self.name, engines, assembly, options)
