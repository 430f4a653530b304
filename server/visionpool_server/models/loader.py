"""From files on disk to a model that runs: read, discover, build the family, load the engines, fill the pool."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from visionpool.errors import InvalidModel, SetupError

from visionpool_server.backends import ImageInput, Signature, Source, TensorSpec, get_backend
from visionpool_server.families import (
    NO_OPTIONS,
    TASKS,
    Family,
    FamilySpec,
    Options,
    build_family,
    canonical,
    picture_shape,
)
from visionpool_server.imaging.recipe import Arithmetic
from visionpool_server.models.advice import advice, hint
from visionpool_server.models.bundle import Bundle, read_bundle
from visionpool_server.models.checks import check_aliases, check_plain, check_said, check_shapes, check_size
from visionpool_server.models.discovery import Discovery, discover
from visionpool_server.models.engines import Defaults, Loading
from visionpool_server.models.files import ModelFiles, weights_in
from visionpool_server.models.labels import resolve_labels
from visionpool_server.models.model import Model, TensorSide
from visionpool_server.models.preprocess import recipe_from

__all__ = ["Defaults", "Model", "load_model"]

_UNKNOWN = "neither the file nor its neighbours say what kind of model this is"


def load_model(files: ModelFiles, defaults: Defaults) -> Model:
    """Raises SetupError, led by the model's name."""
    try:
        return _load(files, defaults)
    except SetupError as error:
        raise type(error)(f"{files.name}: {error.message}", hint=error.hint) from error


def _load(files: ModelFiles, defaults: Defaults) -> Model:
    written = read_bundle(files.config) if files.config else Bundle()
    backend_name = written.runtime.backend or defaults.backend or _usual_backend()
    backend = get_backend(backend_name)
    source = source_of(files, written, backend_name)
    signature = backend.read(source)
    found = Discovery(Bundle(), "nothing") if written.task == "tensor" else discover(files.folder, signature)
    bundle = written.over(found.bundle)
    check_shapes(bundle, signature)
    loading = Loading(written.name or files.name, backend, source, bundle, defaults)
    family_name = _family_name(bundle, signature)
    if family_name is None:
        return _tensor_model(files, written, signature, loading)
    return _vision_model(files, written, signature, loading, family_name=family_name, source=found.source)


def _tensor_model(files: ModelFiles, written: Bundle, signature: Signature, loading: Loading) -> Model:
    """A model that nothing says more of than its tensors, or that model.yaml wants to be one."""
    forced = written.task == "tensor"
    check_plain(written, "leave it out" if forced else hint(signature))
    if forced and written.family:
        raise InvalidModel("task: tensor has no family", hint="leave out one of task and family in model.yaml")
    check_aliases(loading.bundle, signature, vision=False)
    return Model(
        name=loading.name,
        version=files.version,
        task="tensor",
        family_name="tensor",
        source="model.yaml" if files.config else "its tensors alone",
        bundle=loading.bundle,
        signature=signature,
        family=None,
        labels=resolve_labels(loading.bundle.labels, files.folder),
        pool=loading.tensor_pool(),
        tensors=None,
        advice=None if forced else advice(signature),
    )


def _vision_model(
    files: ModelFiles, written: Bundle, signature: Signature, loading: Loading, *, family_name: str, source: str
) -> Model:
    bundle = loading.bundle
    family = build_family(family_name, _family_spec(bundle, signature, files.folder))
    picture = next(spec for spec in signature.inputs if spec.name == family.image_input)
    if picture_shape(picture.shape or ()).channels == 1:
        family.recipe = family.recipe.in_grey()
    check_said(bundle, written, family_name, family)
    check_size(family, picture)
    check_aliases(bundle, signature, vision=True)
    return Model(
        name=loading.name,
        version=files.version,
        task=TASKS[family_name],
        family_name=family_name,
        source="model.yaml" if files.config else source,
        bundle=bundle,
        signature=signature,
        family=family,
        labels=tuple(family.labels),
        pool=loading.picture_pool(family, image_input_of(family, picture)),
        tensors=TensorSide(loading.second_pool),
    )


def _usual_backend() -> str:
    return "onnxruntime" if find_spec("onnxruntime") and not find_spec("openvino") else "openvino"


def source_of(files: ModelFiles, bundle: Bundle, backend: str) -> Source:
    if backend == "remote":
        return _remote_source(files, bundle)
    if bundle.weights:
        path = files.folder / bundle.weights
        if not path.exists():
            raise InvalidModel(f"weights: {bundle.weights} is not in {files.folder}")
        return Source(path.parent if path.name == "saved_model.pb" else path)
    if files.weights is None and backend != "fake":
        there = ", ".join(path.name for path in weights_in(files.folder)) or "none"
        raise InvalidModel(f"which file has the weights? There: {there}", hint="say weights: FILE in model.yaml")
    return Source(files.weights)


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


def _family_name(bundle: Bundle, signature: Signature) -> str | None:
    """The family, or None for plain tensors. Raises InvalidModel for a vision task that several families do."""
    if bundle.task == "tensor":
        return None
    if bundle.family:
        return canonical(bundle.family)
    if bundle.task == "classification":
        return "classification"
    if bundle.task is None:
        return None
    raise InvalidModel(_UNKNOWN, hint=hint(signature))


def _family_spec(bundle: Bundle, signature: Signature, folder: Path) -> FamilySpec:
    finishing = bundle.postprocess.model_dump(exclude_none=True)
    options = {name: finishing.pop(name) for name in NO_OPTIONS.names() if name in finishing}
    return FamilySpec(
        inputs={spec.name: _shape(spec, bundle.runtime.shapes.get(spec.name, ())) for spec in signature.inputs},
        outputs={spec.name: spec.shape or () for spec in signature.outputs},
        labels=resolve_labels(bundle.labels, folder),
        input_size=bundle.input_size,
        recipe=None if bundle.preprocess is None else recipe_from(bundle.preprocess),
        defaults=Options(**options),
        settings=finishing,
    )


def _shape(spec: TensorSpec, fixed: tuple[int, ...]) -> tuple[int | None, ...]:
    """The shape with what runtime.shapes fixes of it."""
    known = spec.shape or (None,) * len(fixed)
    return tuple(size if size > 0 else own for size, own in zip(fixed, known, strict=True)) if fixed else known


def image_input_of(family: Family, picture: TensorSpec) -> ImageInput:
    arithmetic = _arithmetic_for(picture, family.recipe.arithmetic)
    layout = picture_shape(picture.shape or ()).layout
    return ImageInput(picture.name, layout, arithmetic, family.recipe.output_size())


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
