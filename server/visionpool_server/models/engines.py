"""A model's engines, loaded on their devices, and the pools of workers that run them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from visionpool.errors import InvalidModel

from visionpool_server.assembly import Assembly, Pictures, Rows, Whole
from visionpool_server.backends import Backend, ImageInput, LoadOptions, ShapeRange, Source
from visionpool_server.cpu import pinned
from visionpool_server.families import Family
from visionpool_server.models.bundle import Bundle
from visionpool_server.models.cores import cores_of
from visionpool_server.models.groups import Defaults, WorkerGroup
from visionpool_server.pool import Group, Pool, PoolOptions

Engines = list[Group]


@dataclass(frozen=True, slots=True)
class Loading:
    """All that a model's engines are loaded from."""

    name: str
    groups: tuple[WorkerGroup, ...]  # each gets an engine
    backends: Mapping[str, Backend]  # those that the groups name
    source: Source
    bundle: Bundle
    defaults: Defaults
    folder: Path  # of its model.yaml

    def picture_pool(self, family: Family, image: ImageInput) -> Pool:
        return self._pool(self._engines(image), Pictures(family.split))

    def tensor_pool(self) -> Pool:
        """Its engines take the model's own tensors. Raises InvalidModel."""
        engines = self._engines(None)
        return self._pool(engines, Rows() if all(group.engine.batched for group in engines) else Whole())

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
        found: Engines = []
        try:
            for group in self.groups:
                cores = None if self.defaults.on_paper else cores_of(group)
                with pinned(cores):  # a runtime's own threads start here, and stay where this one is
                    engine = self.backends[group.backend].load(self.source, self._options(group, image))
                found.append(Group(engine, group.count or engine.contexts, cores))
        except BaseException:
            for made in found:  # what it holds of a GPU would stay with it
                made.engine.close()
            raise
        return found

    def _options(self, group: WorkerGroup, image: ImageInput | None) -> LoadOptions:
        runtime, batching = self.bundle.runtime, self.bundle.batching
        return LoadOptions(
            image=image,
            device=group.device,
            precision=group.precision,
            contexts=group.count,
            max_batch_size=batching.max_batch_size,
            batch_sizes=batching.sizes,
            shapes=runtime.shapes,
            profiles=tuple(
                {name: ShapeRange(said.min, said.opt, said.max) for name, said in profile.items()}
                for profile in runtime.profiles
            ),
            plugins=tuple(self.folder / name for name in runtime.plugins),
            max_shapes=runtime.max_shapes,
            cpu_operators=runtime.cpu_operators if self._splits(group) else (),
            cache_dir=runtime.cache_dir or self.defaults.cache_dir,
            hang_timeout=batching.hang_timeout_ms / 1e3,
            options=group.options,
        )

    def _splits(self, group: WorkerGroup) -> bool:
        """Whether cpu_operators are meant for this group: of several, for those on devices that split a model."""
        able = [one for one in self.groups if one.device.startswith("HETERO")]
        return group in able or not able

    def _pool(self, engines: Engines, assembly: Assembly) -> Pool:
        batching = self.bundle.batching
        options = PoolOptions(
            max_queue_size=batching.max_queue_size,
            max_queue_delay=batching.max_queue_delay_us / 1e6,
            hang_timeout=batching.hang_timeout_ms / 1e3,
        )
        return Pool(self.name, engines, assembly, options)
