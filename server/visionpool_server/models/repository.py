"""The models being served, by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from visionpool.errors import InvalidModel, ModelNotFound, SetupError, Unavailable

from visionpool_server.models.files import ModelFiles, find_models
from visionpool_server.models.loader import Defaults, Model, load_model


class Repository:
    """Holds running models. `add` starts one, `close` stops all."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self.loading = False  # while it is, a model that is not there may still come

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._models.values()))

    def __len__(self) -> int:
        return len(self._models)

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
        """Takes a model out at once; its caller closes it. Raises ModelNotFound."""
        model = self._models.pop(name, None)
        if model is None:
            raise ModelNotFound(f"no model {name!r}", hint=f"served: {', '.join(self._models) or 'none'}")
        return model

    def add(self, model: Model) -> None:
        if model.name in self._models:
            raise InvalidModel(
                f"two models are called {model.name!r}",
                hint="give one of them another name: in its model.yaml",
            )
        model.pool.start()
        self._models[model.name] = model

    def replace(self, model: Model) -> Model | None:
        """Takes a model in at the place of the one of its name, which its caller closes. Nobody finds none meanwhile."""
        model.pool.start()
        old = self._models.get(model.name)
        self._models[model.name] = model
        return old

    def close(self) -> None:
        while self._models:
            _, model = self._models.popitem()
            model.close()


def locate(paths: Iterable[Path]) -> list[ModelFiles]:
    """All models at these paths. Raises InvalidModel for a path without one."""
    return [files for path in paths for files in find_models(path)]


def load_all(found: Iterable[ModelFiles], defaults: Defaults) -> Iterator[Model]:
    """Loads one after the other; all broken ones are named in one error at the end."""
    broken: list[SetupError] = []
    for files in found:
        try:
            yield load_model(files, defaults)
        except SetupError as error:
            broken.append(error)
    if len(broken) == 1:
        raise broken[0]
    if broken:
        raise InvalidModel("\n".join(f"{error}" for error in broken))
