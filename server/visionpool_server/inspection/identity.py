"""What a model is: as the loader finds out, up to the point where an engine would be loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from visionpool_server.backends import Backend, ImageInput, LoadOptions, Signature, Source
from visionpool_server.families import Family
from visionpool_server.inspection.paper import PaperEngine, on_paper
from visionpool_server.inspection.report import Identity
from visionpool_server.models.bundle import Bundle, read_bundle
from visionpool_server.models.discovery import discover
from visionpool_server.models.files import ModelFiles
from visionpool_server.models.loader import Defaults, Model, load_model


@dataclass(frozen=True, slots=True)
class Identified:
    """A model that was loaded on paper. `files` None: a step of a pipeline."""

    model: Model
    files: ModelFiles | None
    engine: PaperEngine
    written: Bundle  # what its model.yaml says

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def signature(self) -> Signature:
        return self.model.signature

    @property
    def family(self) -> Family | None:
        return self.model.family

    @property
    def bundle(self) -> Bundle:
        return self.model.bundle

    @property
    def backend_name(self) -> str:
        return self.engine.backend_name

    @property
    def backend(self) -> Backend:
        return self.engine.backend

    @property
    def source(self) -> Source:
        return self.engine.source

    @property
    def options(self) -> LoadOptions:
        """As for serving, but that the device chooses how many contexts it runs best."""
        return replace(self.engine.options, contexts=None)

    @property
    def image(self) -> ImageInput | None:
        """None: plain tensors."""
        return self.engine.options.image

    @property
    def device(self) -> str:
        return self.engine.options.device


def load_on_paper(files: ModelFiles, device: str | None, backend: str | None, cache_dir: Path | None) -> Model:
    """`device`, `backend`: instead of what model.yaml says. Raises SetupError, led by the model's name."""
    return load_model(files, Defaults(device, backend=backend, cache_dir=cache_dir, on_paper=True), on_paper)


def identified(model: Model, files: ModelFiles | None) -> Identified:
    """Of a model with engines: not of a pipeline, which has parts instead."""
    engine = model.pool.groups[0].engine
    assert isinstance(engine, PaperEngine)
    return Identified(model, files, engine, read_bundle(files.config) if files and files.config else Bundle())


def identity_of(known: Identified) -> Identity:
    model, written = known.model, known.written
    labels = len(model.labels)
    if model.family is None:
        if written.task == "tensor":
            return Identity("tensor", None, "model.yaml", "model.yaml says task: tensor", labels, None)
        reason = f"no file beside it and nothing in it names a task, and its outputs fit no family: {_outputs(model)}"
        return Identity("tensor", None, "its tensors alone", reason, labels, model.advice)
    source = _source(known)
    return Identity(model.task, model.family_name, source, _reason(known, source), labels, None)


def _source(known: Identified) -> str:
    """Who named the task: the loader says model.yaml for all of a model that has one."""
    written = known.written
    if known.files is None or written.family or written.task or known.model.source != "model.yaml":
        return known.model.source
    return discover(known.files.folder, known.model.signature).source


def _reason(known: Identified, source: str) -> str:
    model, written = known.model, known.written
    if source == "model.yaml" and (written.family or written.task):
        said = {"task": written.task, "family": written.family}
        return "model.yaml says " + ", ".join(f"{key}: {value}" for key, value in said.items() if value)
    if source == "the shape of its outputs":
        return f"{_outputs(model)} is the shape of {model.family_name}"
    count = f", {len(model.labels)} labels" if model.labels else ""
    return f"{source} says {model.task}{count}; the outputs are those of {model.family_name}: {_outputs(model)}"


def _outputs(model: Model) -> str:
    specs = model.signature.outputs
    return ", ".join(f"{spec.name} {_shown(spec.shape)}" for spec in specs[:4]) + (" ..." if len(specs) > 4 else "")


def _shown(shape: tuple[int | None, ...] | None) -> str:
    return "[...]" if shape is None else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
