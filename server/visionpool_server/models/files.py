"""Finding models on disk: a file, a folder with one model, or a repository of such folders and files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from visionpool.errors import InvalidModel

from visionpool_server.models.foreign import refusal, refusal_of_folder

CONFIG = "model.yaml"
ENGINES = (".plan", ".engine", ".trt")  # TensorRT's, built for one kind of GPU
_KEPT = re.compile(r"-(trt|rtx)[0-9.]+-[0-9a-f]{16}\.plan$")  # backends/tensorrt/plan_cache.py names them so
WEIGHTS = (".onnx", ".xml", ".pdmodel", ".tflite", ".pb", *ENGINES)
_GENERIC_STEMS = {
    "model",
    "inference",
    "saved_model",
    "frozen_model",
    "frozen_graph",
    "best",
    "weights",
    "__model__",
}
_READS = (
    "a model is an .onnx, .xml, .pdmodel, .tflite or .pb file, a TensorRT .plan or .engine, Paddle 3's inference.json with its "
    ".pdiparams, a SavedModel folder, or a folder with a model.yaml"
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One model on disk. `weights` None: model.yaml names them, or there are none (backend: fake)."""

    name: str
    version: str
    folder: Path
    weights: Path | None
    config: Path | None  # its model.yaml


def find_models(path: Path) -> list[ModelFiles]:
    """The models at `path`, sorted by name. Raises InvalidModel where there is none."""
    path = path.expanduser()
    if not path.exists():
        raise InvalidModel(f"{path} does not exist", hint="check the path; " + _READS)
    if path.is_file():
        return [_from_file(path)]
    if error := refusal(path):
        raise error
    model = _from_folder(path)
    if model and (model.config or model.weights == path or model.folder != path):
        return [model]
    children = [child for child in sorted(path.iterdir()) if not child.name.startswith(".")]
    found = {child: list(_from_child(child)) for child in children}
    if model and sum(map(len, found.values())) <= 1:
        return [model]  # else the one file beside model folders is a model of a repository
    for child, models in found.items():
        if child.is_dir() and not models and (error := refusal_of_folder(child, certain=True)):
            raise error  # a model of a format that is not read must not be passed over in silence
    if not any(found.values()):
        raise refusal_of_folder(path, certain=False) or InvalidModel(f"no model in {path}", hint=_READS)
    return [model for models in found.values() for model in models]


def _from_file(path: Path) -> ModelFiles:
    if path.name == CONFIG:
        parent = _absolute(path.parent)
        return ModelFiles(_name(parent), _version(parent), path.parent, _only(weights_in(path.parent)), path)
    if not (is_weights(path) or _is_program(path) or is_engine(path)):
        raise refusal(path) or InvalidModel(f"{path.name} is not a model that can be read", hint=_READS)
    stem = path.stem if path.stem not in _GENERIC_STEMS else _name(_absolute(path.parent))
    config = path.parent / CONFIG
    weights = path.parent if path.name == "saved_model.pb" else path
    version = _version(_absolute(path.parent))
    return ModelFiles(stem, version, path.parent, weights, config if config.exists() and _alone(path) else None)


def _alone(path: Path) -> bool:
    """Whether `path` is the only model of its folder, so that a model.yaml there is about it."""
    return len(weights_in(path.parent)) == 1


def _from_child(child: Path) -> Iterator[ModelFiles]:
    if is_weights(child):
        yield _from_file(child)
    elif child.is_dir() and (model := _from_folder(child)):
        yield model
    elif child.is_dir() and len(several := weights_in(child)) > 1:
        names = ", ".join(path.name for path in several)
        raise InvalidModel(f"{child} holds several models: {names}", hint="say weights: FILE in a model.yaml there")


def is_weights(path: Path) -> bool:
    """Whether this is a model's file, and of several the one to name."""
    if _is_program(path):  # what somebody has converted it into is read without the converter
        return not any(path.with_suffix(suffix).exists() for suffix in (".onnx", ".xml"))
    if is_engine(path) and _is_of_a_neighbour(path):
        return False  # that runs on every device, and the engine spares building it where it fits
    return path.suffix in WEIGHTS and path.is_file()


def _is_of_a_neighbour(engine: Path) -> bool:
    """Whether it was built of an ONNX file beside it: one of its name, or any where the cache of engines has named it."""
    return engine.with_suffix(".onnx").exists() or (
        _KEPT.search(engine.name) is not None and any(engine.parent.glob("*.onnx"))
    )


def is_engine(path: Path) -> bool:
    """Whether this is a model that TensorRT has compiled."""
    return path.suffix in ENGINES and path.is_file()


def _is_program(path: Path) -> bool:
    """Whether this is a program of Paddle 3: JSON, told from any other by the weights beside it."""
    return path.suffix == ".json" and path.is_file() and path.with_suffix(".pdiparams").exists()


def _from_folder(folder: Path) -> ModelFiles | None:
    """The one model of a folder, in its newest version, or None where the folder is not a model."""
    name, config = _name(_absolute(folder)), folder / CONFIG
    versions = [child for child in folder.iterdir() if child.is_dir() and child.name.isdecimal()]
    versions = [child for child in versions if weights_in(child) or (child / CONFIG).exists()]
    if versions:
        newest = max(versions, key=lambda child: int(child.name))
        own = newest / CONFIG
        configured = own if own.exists() else config if config.exists() else None
        return ModelFiles(name, newest.name, newest, _only(weights_in(newest)), configured)
    weights = weights_in(folder)
    if config.exists():
        return ModelFiles(name, _version(_absolute(folder)), folder, _only(weights), config)
    return ModelFiles(name, _version(_absolute(folder)), folder, weights[0], None) if len(weights) == 1 else None


def _absolute(folder: Path) -> Path:
    """With all names in it. A link to a folder goes by its own: `current` may point somewhere else tomorrow."""
    return folder.resolve() if ".." in folder.parts else folder.absolute()


def weights_in(folder: Path) -> list[Path]:
    """The model files directly in `folder`; for a SavedModel the folder itself, which is what runtimes read."""
    if (folder / "saved_model.pb").exists():
        return [folder]
    return sorted(child for child in folder.iterdir() if is_weights(child))


def _only(weights: list[Path]) -> Path | None:
    return weights[0] if len(weights) == 1 else None


def _version(folder: Path) -> str:
    """A version folder's number, 1 for any other folder."""
    return folder.name if folder.name.isdecimal() else "1"


def _name(folder: Path) -> str:
    """A folder's name; that of the folder above for a version folder."""
    return folder.parent.name if folder.name.isdecimal() else folder.name
