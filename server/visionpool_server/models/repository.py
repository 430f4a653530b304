"""The models being served, by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from visionpool.errors import InvalidModel, InvalidRequest, ModelNotFound, SetupError, Unavailable

from visionpool_server.models.files import ModelFiles, find_models
from visionpool_server.models.loader import Defaults, Model, load_model
from visionpool_server.models.pipeline import missing_steps


class Repository:
    """Holds running models. `add` starts one, `close` stops all."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self.loading = False  # while it is, a model that is not there may still come

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._models.values()))

    def __len__(self) -> int:
        return len(self._models)

    def find(self, name: str) -> Model | None:
        """The model of this name, None where there is none, or none yet."""
        return self._models.get(name)

    def get(self, name: str, version: str | None = None) -> Model:
        """Raises ModelNotFound, naming what there is; Unavailable while models are being loaded."""
        model = self._models.get(name)
        if model is None and self.loading:
            raise Unavailable(f"no model {name!r} yet: models are being loaded", hint="GET /health/ready says when")
        if model is None:
            raise ModelNotFound(f"no model {name!r}", hint=f"served: {', '.join(self._models) or 'none'}")
        if version is not None and version != model.version:
            raise ModelNotFound(f"{name} has no version {version!r}", hint=f"served: version {model.version}")
        return model

    def remove(self, name: str) -> Model:
        """Takes a model out at once, with the parts it brought; its caller closes it. Raises ModelNotFound, InvalidRequest."""
        model = self._models.get(name)
        if model is None:
            raise ModelNotFound(f"no model {name!r}", hint=f"served: {', '.join(self._models) or 'none'}")
        if model.part_of:
            raise InvalidRequest(f"{name} is a part of {model.part_of}", hint=f"unload {model.part_of}")
        for gone in (model, *model.parts):
            self._models.pop(gone.name, None)
        return model

    def add(self, model: Model) -> None:
        """With the parts that it brings. Raises InvalidModel."""
        for new in (*model.parts, model):
            self._check_free(new, but=None)
        for new in (*model.parts, model):
            new.pool.start()
            self._models[new.name] = new

    def replace(self, model: Model) -> Model | None:
        """Takes a model in at the place of the one of its name, which its caller closes. Nobody finds none meanwhile.

        Raises InvalidModel where it is called like a part of another, or a part that it brings like another model.
        """
        old = self._models.get(model.name)
        if old and old.part_of:
            self._check_free(model, but=None)
        for part in model.parts:
            self._check_free(part, but=model.name)
        for new in (*model.parts, model):
            new.pool.start()
            self._models[new.name] = new
        brought = {part.name for part in model.parts}
        for part in old.parts if old else ():
            if part.name not in brought:
                self._models.pop(part.name, None)
        return old

    def _check_free(self, model: Model, but: str | None) -> None:
        """`but`: the model whose parts' names may be taken again."""
        there = self._models.get(model.name)
        if there is not None and (but is None or there.part_of != but):
            raise InvalidModel(
                f"two models are called {model.name!r}",
                hint="give one of them another name: in its model.yaml",
            )

    def close(self) -> None:
        while self._models:
            _, model = self._models.popitem()
            if not model.part_of:  # whose pipeline closes it
                model.close()


def locate(paths: Iterable[Path]) -> list[ModelFiles]:
    """All models at these paths. Raises InvalidModel for a path without one."""
    return [files for path in paths for files in find_models(path)]


def load_all(found: Iterable[ModelFiles], defaults: Defaults) -> Iterator[Model]:
    """Loads one after the other; all broken ones are named in one error at the end."""
    broken: list[SetupError] = []
    served: dict[str, Model] = {}
    for files in found:
        try:
            model = load_model(files, defaults)
        except SetupError as error:
            broken.append(error)
            continue
        served |= {loaded.name: loaded for loaded in (model, *model.parts)}
        yield model
    broken = broken or missing_steps(served.values(), served)
    if len(broken) == 1:
        raise broken[0]
    if broken:
        raise InvalidModel("\n".join(f"{error}" for error in broken))
