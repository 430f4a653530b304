"""One of the two models that are compared, loaded in the very way in which it is served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidModel, InvalidSetting
from visionpool.results import Result

from visionpool_server.backends import Engine, LoadOptions, Source, zeros
from visionpool_server.building.runner import Runner
from visionpool_server.families import Tensors
from visionpool_server.imaging.decode import decode
from visionpool_server.models.bundle import Bundle, read_bundle
from visionpool_server.models.files import ModelFiles, find_models, is_engine
from visionpool_server.models.loader import Model, load_model
from visionpool_server.models.pipeline import is_pipeline
from visionpool_server.models.repository import Repository
from visionpool_server.models.source import source_of, weights_of
from visionpool_server.service import Service

_SIDE = 224  # of a picture for a model that takes any size


@dataclass(frozen=True, slots=True)
class Subject:
    """A running model, its files, and where its weights are. `asked`: what each of its engines was asked for, where a backend
    runs it that is not the one of its model.yaml."""

    model: Model
    files: ModelFiles
    source: Source
    service: Service
    loop: asyncio.Runner
    runner: Runner
    asked: Sequence[LoadOptions]

    @property
    def engine(self) -> Engine:
        return self.model.pool.groups[0].engine

    @property
    def weights(self) -> Path:
        assert self.source.weights is not None
        return self.source.weights

    def predict(self, picture: bytes) -> Result:
        """By the server's own flow. Raises RequestError for a picture that it would refuse."""
        return self.loop.run(self.service.predict(self.model, picture)).result

    def outputs(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """What the engine makes of one row of tensors, as copies."""
        size = (self.engine.batch_sizes or (1,))[0]
        rows = {name: np.repeat(value, size, axis=0) for name, value in tensors.items()} if size > 1 else tensors
        return {name: np.array(value) for name, value in self.engine.clone().infer(rows).items()}

    def prepared(self, picture: bytes, max_pixels: int) -> dict[str, NDArray[Any]]:
        """A picture as this vision model's engine takes it: one row of each tensor, the picture (1, H, W, 3) uint8."""
        assert self.model.family is not None
        tensors = self.model.family.prepare(decode(picture, max_pixels=max_pixels)).tensors
        return {name: np.ascontiguousarray(value[None]) for name, value in tensors.items()}

    def noise(self, seed: int) -> dict[str, NDArray[Any]]:
        """One row of made-up tensors for the engine: uniform noise, and zeros where whole numbers are taken."""
        family, random = self.model.family, np.random.default_rng(seed)
        if family is not None:
            height, width = family.recipe.output_size() or (_SIDE, _SIDE)
            picture = random.integers(0, 256, (height, width, 3), np.uint8)
            return {name: np.ascontiguousarray(value[None]) for name, value in family.prepare(picture).tensors.items()}
        return {
            spec.name: _noise(spec.shape or (), spec.dtype, random, fixed=self._fixed(spec.name))
            for spec in self.model.signature.inputs
        }

    def _fixed(self, name: str) -> tuple[int, ...]:
        return self.model.bundle.runtime.shapes.get(name, ())


def _noise(
    shape: Sequence[int | None], dtype: str, random: np.random.Generator, *, fixed: tuple[int, ...]
) -> NDArray[Any]:
    wanted = fixed or shape
    sizes = [int(size) if size is not None and size > 0 else 1 for size in wanted]
    if dtype.startswith("float"):
        return random.random(sizes).astype(dtype)
    return zeros(sizes, dtype)


@contextmanager
def opened(
    path: Path,
    runner: Runner,
    max_pixels: int,
    cache_dir: Path | None = None,
    check: Callable[[Path], None] = lambda _: None,
) -> Iterator[Subject]:
    """The one model at `path`, running on one device. `cache_dir`: of converted models; `check` raises InvalidModel for files
    of weights that are not even loaded. Raises SetupError."""
    from visionpool_server.app import DEMO_MODELS

    if not path.exists() and (DEMO_MODELS / path).is_dir():
        path = DEMO_MODELS / path
    found = find_models(path)
    if len(found) != 1:
        names = ", ".join(files.name for files in found)
        raise InvalidSetting(f"{path} holds several models: {names}", hint="name one of them")
    written = _check_one(found[0])
    if weights := weights_of(found[0], written):
        _refuse_engine(weights)
        check(weights)
    opener, models = runner.opener(written), Repository()
    service = Service(models, max_pixels=max_pixels)
    try:
        model = load_model(found[0], runner.defaults(cache_dir), opener)
        models.add(model)
        source = source_of(found[0], model.bundle, "openvino", cache_dir)
        with asyncio.Runner() as loop:
            yield Subject(model, found[0], source, service, loop, runner, opener.asked)
    finally:
        service.close()
        models.close()


def _refuse_engine(weights: Path) -> None:
    if is_engine(weights):
        raise InvalidModel(
            f"{weights.name} is a TensorRT engine, built already",
            hint="serve it, or build from the .onnx file it was made of",
        )


def _check_one(files: ModelFiles) -> Bundle:
    """What its model.yaml says. Raises InvalidModel for what has no weights of its own here."""
    written = read_bundle(files.config) if files.config else Bundle()
    name, backend = written.name or files.name, written.runtime.backend
    if backend in ("remote", "fake"):
        raise InvalidModel(f"{name} has no weights here: runtime.backend is {backend}", hint="build where its file is")
    if is_pipeline(files, written):
        raise InvalidModel(
            f"{name} is a pipeline of several models, and only one is built at a time",
            hint="build its steps one by one, and name the results as steps: in its model.yaml",
        )
    return written
