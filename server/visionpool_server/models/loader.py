"""From files on disk to a model that runs: read, discover, build the family, load the engines, fill the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from visionpool.errors import InvalidModel, SetupError

from visionpool_server.backends import (
    Engine,
    ImageInput,
    LoadOptions,
    Precision,
    Signature,
    TensorSpec,
    get_backend,
)
from visionpool_server.families import (
    TASKS,
    Family,
    FamilySpec,
    Options,
    build_family,
    canonical,
    picture_shape,
)
from visionpool_server.imaging.recipe import Arithmetic, Gray
from visionpool_server.models.bundle import Bundle, Workers, read_bundle
from visionpool_server.models.discovery import discover
from visionpool_server.models.files import ModelFiles, weights_in
from visionpool_server.models.labels import resolve_labels
from visionpool_server.models.preprocess import recipe_from
from visionpool_server.pool import Pool, PoolOptions


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the flags of `visionpool serve` say for models whose model.yaml does not."""

    device: str = "CPU"
    workers: int | None = None
    precision: Precision | None = None
    backend: str | None = None
    cache_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model that runs: `pool` is started once the repository takes it in."""

    name: str
    version: str
    task: str
    family_name: str
    source: str  # where its configuration was found
    bundle: Bundle
    signature: Signature
    family: Family
    pool: Pool


def load_model(files: ModelFiles, defaults: Defaults) -> Model:
    """Raises SetupError, led by the model's name."""
    try:
        return _load(files, defaults)
    except SetupError as error:
        raise type(error)(f"{files.name}: {error.message}", hint=error.hint) from error


def _load(files: ModelFiles, defaults: Defaults) -> Model:
    written = read_bundle(files.config) if files.config else Bundle()
    backend_name = written.runtime.backend or defaults.backend or _usual_backend()
    weights = _weights(files, written, backend_name)
    backend = get_backend(backend_name)
    signature = backend.read(weights)
    found = discover(files.folder, signature)
    bundle = written.over(found.bundle)
    family_name = canonical(_family_name(bundle, signature))
    family = build_family(family_name, _family_spec(bundle, signature, files.folder))
    if picture_shape(_picture_spec(family, signature).shape).channels == 1:
        family.recipe = family.recipe.in_grey()
    _check_said(bundle, written, family_name, family)
    _check_size(family, signature)
    image = _image_input(family, signature)
    engines = []
    for workers in _workers(bundle, defaults):
        engine = backend.load(weights, _load_options(bundle, workers, defaults, image))
        engines.append((engine, workers.count or engine.contexts))
    return Model(
        name=bundle.name or files.name,
        version=files.version,
        task=TASKS[family_name],
        family_name=family_name,
        source="model.yaml" if files.config else found.source,
        bundle=bundle,
        signature=signature,
        family=family,
        pool=_pool(bundle, files.name, engines, family),
    )


def _usual_backend() -> str:
    return "onnxruntime" if find_spec("onnxruntime") and not find_spec("openvino") else "openvino"


def _weights(files: ModelFiles, bundle: Bundle, backend: str) -> Path | None:
    if bundle.weights:
        path = files.folder / bundle.weights
        if not path.exists():
            raise InvalidModel(f"weights: {bundle.weights} is not in {files.folder}")
        return path.parent if path.name == "saved_model.pb" else path
    if files.weights is None and backend != "fake":
        there = ", ".join(path.name for path in weights_in(files.folder)) or "none"
        raise InvalidModel(f"which file has the weights? There: {there}", hint="say weights: FILE in model.yaml")
    return files.weights


def _family_name(bundle: Bundle, signature: Signature) -> str:
    if bundle.family:
        return bundle.family
    if bundle.task == "classification":
        return "classification"
    raise InvalidModel("neither the file nor its neighbours say what kind of model this is", hint=_advice(signature))


def _advice(signature: Signature) -> str:
    """What to write, by what the model's outputs look like."""
    ranks = [len(spec.shape) for spec in signature.outputs]
    if ranks == [2]:
        return (
            "if it is a classifier, write a model.yaml beside it: {task: classification, labels: FILE, preprocess: "
            "[{resize_short: 256}, {center_crop: 224}, {normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}]}"
        )
    if len(ranks) > 1 and set(ranks) == {3}:
        return "if it is a PicoDet, write a model.yaml beside it: {task: detection, family: picodet, labels: FILE}"
    if ranks == [3]:
        return "if it is a YOLO detector, write a model.yaml beside it: {family: yolov8, labels: FILE} (or yolov5)"
    shapes = ", ".join(str(list(spec.shape)) for spec in signature.outputs)
    return f"its outputs are {shapes}; served are {', '.join(TASKS)}, not yet segmentation or text recognition"


def _family_spec(bundle: Bundle, signature: Signature, folder: Path) -> FamilySpec:
    finishing = bundle.postprocess
    shapes = {spec.name: spec.shape for spec in signature.inputs}
    for name, fixed in bundle.runtime.shapes.items():
        if name not in shapes:
            raise InvalidModel(f"runtime.shapes names {name!r}; the model's inputs are {', '.join(shapes)}")
        if len(fixed) != len(shapes[name]):
            raise InvalidModel(
                f"runtime.shapes gives {name!r} {len(fixed)} dimensions, and the model has {len(shapes[name])}: "
                f"{list(shapes[name])}"
            )
        shapes[name] = tuple(size if size > 0 else known for size, known in zip(fixed, shapes[name], strict=True))
    return FamilySpec(
        inputs=shapes,
        outputs={spec.name: spec.shape for spec in signature.outputs},
        labels=resolve_labels(bundle.labels, folder),
        input_size=bundle.input_size,
        recipe=None if bundle.preprocess is None else recipe_from(bundle.preprocess),
        defaults=Options(finishing.score_threshold, finishing.iou_threshold, finishing.top_k, finishing.max_detections),
    )


def _image_input(family: Family, signature: Signature) -> ImageInput:
    spec = _picture_spec(family, signature)
    arithmetic = _arithmetic_for(spec, family.recipe.arithmetic)
    return ImageInput(spec.name, picture_shape(spec.shape).layout, arithmetic, family.recipe.output_size())


def _arithmetic_for(spec: TensorSpec, arithmetic: Arithmetic) -> Arithmetic:
    """A model that takes bytes gets the bytes: it does its arithmetic itself."""
    if spec.dtype != "uint8":
        return arithmetic
    if arithmetic not in (Arithmetic(channels=arithmetic.channels), Arithmetic(1.0, channels=arithmetic.channels)):
        raise InvalidModel(
            f"preprocess normalises, and input {spec.name!r} takes uint8: the model does that itself",
            hint="leave normalize: out of preprocess in model.yaml",
        )
    return Arithmetic(1.0, channels=arithmetic.channels)


def _picture_spec(family: Family, signature: Signature) -> TensorSpec:
    return next(spec for spec in signature.inputs if spec.name == family.image_input)


def _check_said(bundle: Bundle, written: Bundle, family_name: str, family: Family) -> None:
    """What model.yaml says must have an effect: silence would look like one."""
    if bundle.task not in (None, TASKS[family_name]):
        raise InvalidModel(
            f"task: {bundle.task} is not what the family {family_name} does: that is {TASKS[family_name]}"
        )
    for name, value in written.postprocess:
        if value is not None and name not in family.accepts:
            raise InvalidModel(
                f"postprocess.{name} means nothing to the family {family_name}",
                hint=f"it takes {', '.join(sorted(family.accepts - {'classes'}))}",
            )
    if family.class_count is not None and len(family.labels) not in (0, family.class_count):
        raise InvalidModel(
            f"labels names {len(family.labels)} classes, and the model has {family.class_count}",
            hint="check the labels: a model.yaml or a file beside the weights names them",
        )


def _check_size(family: Family, signature: Signature) -> None:
    """The preprocessing must end in the size that the file fixes."""
    shape = picture_shape(_picture_spec(family, signature).shape)
    if shape.channels == 3 and any(isinstance(step, Gray) for step in family.recipe.steps):
        raise InvalidModel(
            f"preprocess makes pictures grey, and input {family.image_input!r} takes three channels",
            hint="leave gray out of preprocess in model.yaml",
        )
    takes, gives = shape.size, family.recipe.output_size()
    if takes and not gives:
        raise InvalidModel(
            f"preprocess leaves the size of pictures open, and input {family.image_input!r} takes {takes[0]}x{takes[1]}",
            hint=f"end preprocess in model.yaml with a step that fixes it, such as resize: [{takes[0]}, {takes[1]}]",
        )
    if takes and takes != gives:
        assert gives is not None
        raise InvalidModel(
            f"preprocess ends in pictures of {gives[0]}x{gives[1]} (height x width), and input {family.image_input!r} "
            f"takes {takes[0]}x{takes[1]}",
            hint="change the last step of preprocess in model.yaml",
        )


def _workers(bundle: Bundle, defaults: Defaults) -> Sequence[Workers]:
    device = bundle.runtime.device or defaults.device
    if isinstance(bundle.workers, tuple):
        return [Workers(device=entry.device or device, count=entry.count) for entry in bundle.workers]
    return [Workers(device=device, count=bundle.workers or defaults.workers)]


def _load_options(bundle: Bundle, workers: Workers, defaults: Defaults, image: ImageInput) -> LoadOptions:
    runtime = bundle.runtime
    return LoadOptions(
        image=image,
        device=workers.device or "CPU",
        precision=runtime.precision or defaults.precision,
        contexts=workers.count,
        max_batch_size=bundle.batching.max_batch_size,
        batch_sizes=bundle.batching.sizes,
        shapes=runtime.shapes,
        cpu_operators=runtime.cpu_operators,
        cache_dir=runtime.cache_dir or defaults.cache_dir,
        options=runtime.options,
    )


def _pool(bundle: Bundle, name: str, engines: list[tuple[Engine, int]], family: Family) -> Pool:
    batching = bundle.batching
    options = PoolOptions(
        max_queue_size=batching.max_queue_size,
        max_queue_delay=batching.max_queue_delay_us / 1e6,
        hang_timeout=batching.hang_timeout_ms / 1e3,
    )
    return Pool(bundle.name or name, engines, family.split, options)
