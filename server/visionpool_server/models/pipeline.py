"""An OCR pipeline from its model.yaml: which models its steps are, found beside it or by name, and loaded.

ocr/model.yaml                       task: ocr
ocr/ch_PP-OCRv3_det_infer/           served as ocr.detect
ocr/ch_ppocr_mobile_v2.0_cls_infer/  served as ocr.classify
ocr/ch_PP-OCRv3_rec_infer/           served as ocr.read
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from visionpool.errors import InvalidModel, SetupError

from visionpool_server.assembly import Whole
from visionpool_server.backends import Signature, TensorSpec
from visionpool_server.families import Options
from visionpool_server.models.bundle import Bundle, Postprocess, Steps
from visionpool_server.models.checks import check_aliases
from visionpool_server.models.files import ModelFiles, find_models, is_weights
from visionpool_server.models.model import Model, Pipeline
from visionpool_server.models.ocr import FAMILY_OF, dictionary_in, step_of
from visionpool_server.pool import Pool, PoolOptions

PICTURES, RESULTS = TensorSpec("image", (None,), "bytes"), TensorSpec("result", (None,), "bytes")
_SIGNATURE = Signature((PICTURES,), (RESULTS,))
_OF_STEPS = ("weights", "preprocess", "input_size", "decode", "family")
_OF_OWN_STEPS = ("runtime", "workers", "labels")
_SETTINGS = frozenset({"score_threshold", "direction_threshold"})
_OF_DETECTION = {"box_threshold": "score_threshold", "map_threshold": "map_threshold", "unclip_ratio": "unclip_ratio"}
_LEAST_SCORE, _LEAST_TURN = 0.5, 0.9  # PaddleOCR's `drop_score` and `cls_thresh`


class LoadPart(Protocol):
    """Loads one step: its files, the family it has unless they say otherwise, and what the pipeline says for it."""

    def __call__(self, files: ModelFiles, *, usual_family: str, said: Bundle) -> Model: ...


def is_pipeline(files: ModelFiles, written: Bundle) -> bool:
    """Whether a model.yaml is that of a pipeline: it names steps, or says `task: ocr` where there is not one model."""
    if written.steps is not None:
        return True
    plain = (
        written.family is None
        and written.weights is None
        and written.runtime.backend in (None, "openvino", "onnxruntime", "tensorrt")
    )
    return written.task == "ocr" and plain and files.weights is None


def load_pipeline(files: ModelFiles, written: Bundle, load: LoadPart) -> Model:
    """Raises SetupError, led by the step that cannot be loaded."""
    name = written.name or files.name
    places = _places(files.folder, written.steps) if written.steps else _found(files.folder)
    _check(written, places)
    check_aliases(written, _SIGNATURE, vision=True)
    return _model(name, files.version, written, _steps(files.folder, written, places, name, load))


def _steps(
    folder: Path, written: Bundle, places: Mapping[str, ModelFiles | str], name: str, load: LoadPart
) -> dict[str, Model | str]:
    steps: dict[str, Model | str] = {}
    try:
        for step, place in places.items():
            if isinstance(place, str):
                steps[step] = place
            else:
                part = replace(place, name=f"{name}.{step}")
                steps[step] = replace(_loaded(step, part, load, _said(folder, step, written)), part_of=name)
    except BaseException:
        for loaded in steps.values():
            if isinstance(loaded, Model):
                loaded.close()
        raise
    return steps


def _model(name: str, version: str, written: Bundle, steps: Mapping[str, Model | str]) -> Model:
    finishing = written.postprocess
    return Model(
        name=name,
        version=version,
        task="ocr",
        family_name="ocr",
        source="model.yaml",
        bundle=written,
        signature=_SIGNATURE,
        family=None,
        labels=(),
        pool=Pool(name, (), Whole(), PoolOptions(written.batching.max_queue_size)),
        tensors=None,
        pipeline=Pipeline(
            steps=steps,
            defaults=Options(score_threshold=_or(finishing.score_threshold, _LEAST_SCORE)),
            direction_threshold=_or(finishing.direction_threshold, _LEAST_TURN),
        ),
    )


def check_step(step: str, model: Model) -> None:
    """Raises InvalidModel for a model that cannot do the step."""
    fits = model.task == "classification" if step == "classify" else model.family_name == FAMILY_OF[step]
    if not fits:
        raise InvalidModel(
            f"steps.{step}: {model.name} is a {model.family_name} model",
            hint=f"it takes one of the family {FAMILY_OF[step]}",
        )


def missing_steps(pipelines: Iterable[Model], served: Mapping[str, Model]) -> list[SetupError]:
    """What is wrong with the steps that pipelines name, once all models are loaded."""
    wrong: list[SetupError] = []
    for model in pipelines:
        for step, named in model.pipeline.steps.items() if model.pipeline else ():
            if not isinstance(named, str):
                continue
            try:
                if named not in served:
                    raise InvalidModel(
                        f"steps.{step} names {named!r}, which is no file beside model.yaml, and no model served here",
                        hint=f"served: {', '.join(served)}",
                    )
                check_step(step, served[named])
            except InvalidModel as error:
                wrong.append(InvalidModel(f"{model.name}: {error.message}", hint=error.hint))
    return wrong


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _places(folder: Path, steps: Steps) -> dict[str, ModelFiles | str]:
    """Where each step that model.yaml names is: files, or the name of a model."""
    places: dict[str, ModelFiles | str] = {}
    for step, said in steps:
        if said is None:
            continue
        path = folder / said
        if path.exists():
            places[step] = _one(path, step)
        elif "/" in said:
            raise InvalidModel(f"steps.{step}: {said} is not in {folder}", hint="check the path")
        else:
            places[step] = said
    return places


def _found(folder: Path) -> dict[str, ModelFiles | str]:
    """The steps by the names of the folders and files beside model.yaml. Raises InvalidModel where two could be one step."""
    places: dict[str, ModelFiles | str] = {}
    names: dict[str, str] = {}
    for child in sorted(folder.iterdir()):
        step = step_of(child.name if child.is_dir() else child.stem)
        if step is None or child.name.startswith(".") or not (child.is_dir() or is_weights(child)):
            continue
        if step in names:
            raise InvalidModel(
                f"which one is to {step}: {names[step]} or {child.name}?",
                hint=f"say steps: {{{step}: {child.name}, ...}} in model.yaml",
            )
        names[step] = child.name
        places[step] = _one(child, step)
    return {step: places[step] for step in FAMILY_OF if step in places}


def _one(path: Path, step: str) -> ModelFiles:
    found = find_models(path)
    if len(found) != 1:
        names = ", ".join(files.name for files in found)
        raise InvalidModel(f"steps.{step}: {path.name} holds several models: {names}", hint="name one of them")
    return found[0]


def _check(written: Bundle, places: Mapping[str, ModelFiles | str]) -> None:
    if missing := [step for step in ("detect", "read") if step not in places]:
        raise InvalidModel(
            f"a pipeline of OCR has no model to {' and none to '.join(missing)}",
            hint="say steps: {detect: FOLDER, classify: FOLDER, read: FOLDER} in model.yaml, or put PaddleOCR's beside it",
        )
    if written.task not in (None, "ocr"):
        raise InvalidModel(f"task: {written.task} has no steps", hint="say task: ocr, or leave steps out")
    said = written.model_fields_set
    for key in _OF_STEPS:
        if key in said:
            raise InvalidModel(
                f"{key} means nothing to a pipeline", hint="say it in the model.yaml of one of its steps"
            )
    if all(isinstance(place, str) for place in places.values()):
        for key in _OF_OWN_STEPS:
            if key in said:
                raise InvalidModel(f"{key} means nothing here: the steps are models of their own", hint="say it there")
    takes = _SETTINGS if isinstance(places["detect"], str) else _SETTINGS.union(_OF_DETECTION)
    for name, value in written.postprocess:
        if value is not None and name not in takes:
            raise InvalidModel(
                f"postprocess.{name} means nothing to this pipeline",
                hint=f"it takes {', '.join(sorted(takes))}; its steps take theirs in model.yaml files of their own",
            )


def _said(folder: Path, step: str, written: Bundle) -> Bundle:
    """What the pipeline's model.yaml says for a step that says nothing of it itself."""
    said: dict[str, Any] = {"runtime": written.runtime, "workers": written.workers}
    if step == "detect":
        told = {name: getattr(written.postprocess, key) for key, name in _OF_DETECTION.items()}
        said["postprocess"] = Postprocess(**{name: value for name, value in told.items() if value is not None})
    if step == "read":
        beside = dictionary_in(folder)
        labels = written.labels if not isinstance(written.labels, str) else str((folder / written.labels).absolute())
        said["labels"] = labels or (str(beside.absolute()) if beside else None)
    return Bundle().model_copy(update={key: value for key, value in said.items() if value is not None})


def _loaded(step: str, files: ModelFiles, load: LoadPart, said: Bundle) -> Model:
    try:
        model = load(files, usual_family=FAMILY_OF[step], said=said)
        check_step(step, model)
    except SetupError as error:
        raise type(error)(f"steps.{step} ({files.folder.name}): {error.message}", hint=error.hint) from error
    return model
