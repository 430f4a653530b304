"""From files on disk to a model that runs: read, discover, build the family, load the engines, fill the pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from visionpool.errors import InvalidModel, SetupError

from visionpool_server.backends import Backend, Signature, TensorSpec, get_backend
from visionpool_server.cuda.jpegs import JpegDecoder, open_jpeg_decoder
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
from visionpool_server.models import ocr
from visionpool_server.models.advice import advice, hint
from visionpool_server.models.bundle import Bundle, read_bundle
from visionpool_server.models.checks import check_aliases, check_plain, check_said, check_shapes, check_size
from visionpool_server.models.discovery import Discovery, discover
from visionpool_server.models.engines import Loading
from visionpool_server.models.files import ModelFiles
from visionpool_server.models.groups import Defaults, groups_of
from visionpool_server.models.labels import resolve_labels
from visionpool_server.models.lines import for_lines
from visionpool_server.models.model import Model, TensorSide
from visionpool_server.models.picture_input import decoding_on, image_input_of, on_gpu
from visionpool_server.models.pipeline import is_pipeline, load_pipeline
from visionpool_server.models.preprocess import recipe_from
from visionpool_server.models.signature import read_signature
from visionpool_server.models.source import source_of, weights_of
from visionpool_server.pool import Pool

OpenBackend = Callable[[str], Backend]  # by its name; raises BackendUnavailable

__all__ = ["Defaults", "Model", "image_input_of", "load_model", "source_of"]

_NOTHING = Bundle()
_OWN_FAMILY = ("classification", "embedding", "segmentation")  # tasks that a family of the same name usually does
_UNKNOWN = "neither the file nor its neighbours say what kind of model this is"


def load_model(files: ModelFiles, defaults: Defaults, open_backend: OpenBackend = get_backend) -> Model:
    """Raises SetupError, led by the model's name. `open_backend`: for who wants another than what runs models."""
    try:
        return _load(files, defaults, open_backend)
    except SetupError as error:
        raise type(error)(f"{files.name}: {error.message}", hint=error.hint) from error


def _load(
    files: ModelFiles,
    defaults: Defaults,
    open_backend: OpenBackend,
    usual_family: str | None = None,
    said: Bundle = _NOTHING,
) -> Model:
    """A step of a pipeline has a `usual_family`, and `said` is what the pipeline says where nothing else does."""
    written = read_bundle(files.config) if files.config else Bundle()
    if usual_family is None and is_pipeline(files, written):
        return load_pipeline(files, written, partial(_load, defaults=defaults, open_backend=open_backend))
    asked = written.over(said)
    groups = groups_of(asked, defaults, weights_of(files, written))
    backends = {name: open_backend(name) for name in dict.fromkeys(group.backend for group in groups)}
    source = source_of(files, asked, groups[0].backend, defaults.cache_dir)
    signature = read_signature(backends, source)
    found = _found(files, written, signature, usual_family)
    bundle = written.over(found.bundle.over(said))
    check_shapes(bundle, signature)
    loading = Loading(written.name or files.name, groups, backends, source, bundle, defaults, files.folder)
    family_name = _family_name(bundle, signature)
    if family_name is None:
        return _tensor_model(files, written, signature, loading)
    return _vision_model(files, written, signature, loading, family_name=family_name, source=found.source)


def _found(files: ModelFiles, written: Bundle, signature: Signature, usual_family: str | None) -> Discovery:
    """What the files say. What is known for a step of OCR is not guessed at: a recogniser's outputs may look like YOLO's."""
    if written.task == "tensor":
        return Discovery(Bundle(), "nothing")
    found = discover(files.folder, signature, written.family)
    if found.guessed and written.task not in (None, "ocr", found.bundle.task):
        found = Discovery(Bundle(), "nothing", guessed=True)  # what is said is more than what it looks like
    of_ocr = usual_family is not None or (written.task == "ocr" and written.family is None)
    if not of_ocr or not found.guessed:
        return found
    family = usual_family or ocr.family_by_tensors(signature)
    return Discovery(Bundle(family=family, task=TASKS[family]), "its place among the steps")


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
    family = build_family(family_name, _family_spec(bundle, signature, files, family_name))
    picture = next(spec for spec in signature.inputs if spec.name == family.image_input)
    if picture_shape(picture.shape or ()).channels == 1:
        family.recipe = family.recipe.in_grey()
    check_said(bundle, written, family_name, family)
    if not family.resizes:
        fixed = bundle.runtime.shapes.get(picture.name, ())
        check_size(family, replace(picture, shape=_shape(picture, fixed)))
    check_aliases(bundle, signature, vision=True)
    decoding = None if loading.defaults.on_paper else decoding_on(bundle, loading.groups)
    pool = _picture_pool(loading, family, picture)
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
        pool=pool,
        tensors=TensorSide(loading.second_pool),
        jpegs=None if decoding is None else _jpeg_decoder(decoding, pool),
    )


def _jpeg_decoder(ordinal: int, pool: Pool) -> JpegDecoder:
    """For pictures of `pool`, which is closed where there is none."""
    try:
        return open_jpeg_decoder(ordinal)
    except BaseException:
        pool.close()
        raise


def _picture_pool(loading: Loading, family: Family, picture: TensorSpec) -> Pool:
    image = image_input_of(family, picture)
    if loading.bundle.runtime.prepare_on == "gpu" and not loading.defaults.on_paper:
        image = on_gpu(family, image, loading.groups)
    return for_lines(_one_by_one(loading, family), family, picture).picture_pool(family, image)


def _one_by_one(loading: Loading, family: Family) -> Loading:
    """For a family whose outputs have no batch dimension (`one_at_a_time`), with batches of one picture."""
    if not family.one_at_a_time:
        return loading
    batching = loading.bundle.batching
    if max(batching.sizes, default=batching.max_batch_size or 1) > 1:
        raise InvalidModel(
            "the outputs of this model have no batch dimension: it works for one picture at a time",
            hint="say batching.max_batch_size: 1 in model.yaml, or leave it out",
        )
    alone = batching.model_copy(update={"max_batch_size": 1, "sizes": ()})
    return replace(loading, bundle=loading.bundle.model_copy(update={"batching": alone}))


def _family_name(bundle: Bundle, signature: Signature) -> str | None:
    """The family, or None for plain tensors. Raises InvalidModel for a vision task that several families do."""
    if bundle.task == "tensor":
        return None
    if bundle.family:
        return canonical(bundle.family)
    if bundle.task in _OWN_FAMILY:
        return bundle.task
    if bundle.task is None:
        return None
    raise InvalidModel(_UNKNOWN, hint=hint(signature))


def _family_spec(bundle: Bundle, signature: Signature, files: ModelFiles, family_name: str) -> FamilySpec:
    finishing = bundle.postprocess.model_dump(exclude_none=True)
    options = {name: finishing.pop(name) for name in NO_OPTIONS.names() if name in finishing}
    reads = family_name == ocr.FAMILY_OF["read"]
    return FamilySpec(
        inputs={spec.name: _shape(spec, bundle.runtime.shapes.get(spec.name, ())) for spec in signature.inputs},
        outputs={spec.name: spec.shape or () for spec in signature.outputs},
        labels=(ocr.characters if reads else resolve_labels)(bundle.labels, files.folder),
        input_size=bundle.input_size or (ocr.line_size(files.weights) if reads else None),
        recipe=None if bundle.preprocess is None else recipe_from(bundle.preprocess),
        defaults=Options(**options),
        settings=finishing,
        dtypes={spec.name: spec.dtype for spec in (*signature.inputs, *signature.outputs)},
        endings=signature.endings,
    )


def _shape(spec: TensorSpec, fixed: tuple[int, ...]) -> tuple[int | None, ...]:
    """The shape with what runtime.shapes fixes of it."""
    known = spec.shape or (None,) * len(fixed)
    return tuple(size if size > 0 else own for size, own in zip(fixed, known, strict=True)) if fixed else known
