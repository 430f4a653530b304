"""What a model's backends read: its weights, what they had to be converted into, or another server."""

from __future__ import annotations

from pathlib import Path

from visionpool.errors import InvalidModel

from visionpool_server.backends import Source
from visionpool_server.models.bundle import Bundle
from visionpool_server.models.conversion import readable
from visionpool_server.models.files import ModelFiles, weights_in


def weights_of(files: ModelFiles, bundle: Bundle) -> Path | None:
    """The file, or the folder of a SavedModel, that model.yaml names or that was found. Raises InvalidModel."""
    if not bundle.weights or bundle.runtime.backend == "remote":
        return files.weights
    path = files.folder / bundle.weights
    if not path.exists():
        raise InvalidModel(f"weights: {bundle.weights} is not in {files.folder}")
    return path.parent if path.name == "saved_model.pb" else path


def source_of(files: ModelFiles, bundle: Bundle, backend: str, cache_dir: Path | None = None) -> Source:
    """Raises InvalidModel where there is nothing to read."""
    if backend == "remote":
        return _remote_source(files, bundle)
    if weights := weights_of(files, bundle):
        return Source(readable(weights, bundle.runtime.cache_dir or cache_dir))
    if backend != "fake":
        there = ", ".join(path.name for path in weights_in(files.folder)) or "none"
        raise InvalidModel(f"which file has the weights? There: {there}", hint="say weights: FILE in model.yaml")
    return Source()


def _remote_source(files: ModelFiles, bundle: Bundle) -> Source:
    """The model runs elsewhere: files of weights beside its model.yaml are not looked at."""
    if bundle.weights:
        raise InvalidModel("weights means nothing to backend: remote", hint="leave it out of model.yaml")
    if bundle.runtime.url is None:
        raise InvalidModel(
            "backend: remote needs the server's address", hint="say runtime.url: grpc://HOST:PORT in model.yaml"
        )
    runtime = bundle.runtime
    return Source(url=runtime.url, model=runtime.model or bundle.name or files.name, options=runtime.options)
