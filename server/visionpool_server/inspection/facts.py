"""What needs no runtime beyond reading the file: where it lies, what goes in and out, and what is done to pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from visionpool_server.backends import TensorSpec
from visionpool_server.families import picture_shape
from visionpool_server.imaging.recipe import Arithmetic, Step
from visionpool_server.inspection.identity import Identified
from visionpool_server.inspection.report import Identity, ModelFacts, Preprocessing, Report, Tensor
from visionpool_server.models.files import ModelFiles
from visionpool_server.models.model import Model
from visionpool_server.models.preprocess import STEPS

_FORMATS = {
    ".onnx": "ONNX",
    ".xml": "OpenVINO IR",
    ".pdmodel": "Paddle",
    ".json": "Paddle 3 (PIR)",
    ".tflite": "TensorFlow Lite",
    ".pb": "TensorFlow frozen graph",
}
_BESIDE = {".xml": (".bin",), ".pdmodel": (".pdiparams",), ".json": (".pdiparams",)}


def facts_of(known: Identified) -> ModelFacts:
    weights = _weights(known)
    return ModelFacts(
        name=known.name,
        version=known.model.version,
        weights=known.source.url or (str(weights) if weights else None),
        format=_format(known, weights),
        bytes=sum(path.stat().st_size for path in _parts(weights)) if weights else 0,
        config=str(known.files.config) if known.files and known.files.config else None,
        backend=known.backend_name,
    )


def _weights(known: Identified) -> Path | None:
    """As they lie on disk: what the backend reads may have been converted from them."""
    read = known.source.weights
    if read is None or known.files is None:
        return read
    return known.files.folder / known.written.weights if known.written.weights else known.files.weights or read


def _format(known: Identified, weights: Path | None) -> str:
    if known.source.url:
        return f"served elsewhere, as {known.source.model}"
    if weights is None:
        return "none"
    return "TensorFlow SavedModel" if weights.is_dir() else _FORMATS.get(weights.suffix, weights.suffix.lstrip("."))


def _parts(weights: Path) -> list[Path]:
    """The file and those that belong to it: parameters beside a graph, the variables of a SavedModel."""
    if weights.is_dir():
        return [path for path in weights.rglob("*") if path.is_file()]
    beside = [weights.with_suffix(suffix) for suffix in _BESIDE.get(weights.suffix, ())]
    external = [weights.with_name(weights.name + end) for end in (".data", "_data")]
    return [weights, *(path for path in (*beside, *external) if path.is_file())]


def tensor(spec: TensorSpec) -> Tensor:
    dynamic = tuple(axis for axis, size in enumerate(spec.shape or ()) if size is None)
    return Tensor(spec.name, spec.shape, spec.dtype, dynamic)


def preprocessing_of(known: Identified) -> Preprocessing | None:
    if known.family is None or known.image is None:
        return None
    steps = [_step(step) for step in known.family.recipe.steps]
    picture = next(spec for spec in known.signature.inputs if spec.name == known.image.name)
    layout = picture_shape(picture.shape or ()).layout
    normalize = _normalize(known.image.arithmetic)
    return Preprocessing(known.image.name, layout, known.image.size, (*steps, normalize))


def _step(step: Step) -> Mapping[str, Any]:
    """As model.yaml writes it."""
    name = next((name for name, kind in STEPS.items() if kind is type(step)), type(step).__name__)
    return {name: _values(step)}


def _normalize(arithmetic: Arithmetic) -> Mapping[str, Any]:
    return {"normalize": _values(arithmetic)}


def _values(step: Any) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(step).items()}


def pipeline_report(model: Model, files: ModelFiles, steps: tuple[Report, ...]) -> Report:
    """A pipeline has no weights of its own: its steps have."""
    config = str(files.config) if files.config else None
    size = sum(step.model.bytes for step in steps)
    named = model.pipeline.steps if model.pipeline else {}
    elsewhere = [f"its step {step} is the model {other}" for step, other in named.items() if isinstance(other, str)]
    reason = f"model.yaml makes a pipeline of {', '.join(named)}"
    return Report(
        model=ModelFacts(model.name, model.version, None, "pipeline", size, config, "its steps"),
        inputs=tuple(map(tensor, model.signature.inputs)),
        outputs=tuple(map(tensor, model.signature.outputs)),
        identity=Identity(model.task, None, "model.yaml", reason, 0, None),
        preprocessing=None,
        shapes=(),
        devices=(),
        placement=None,
        cost=None,
        model_yaml="",
        notes=tuple(elsewhere),
        steps=steps,
    )
