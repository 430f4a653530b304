"""What is special about models that take lines of text: pictures of one height and several widths, padded in between."""

from __future__ import annotations

from dataclasses import replace

from visionpool_server.backends import TensorSpec
from visionpool_server.families import Family, picture_shape
from visionpool_server.imaging.text_lines import TextLine
from visionpool_server.models.bundle import Runtime
from visionpool_server.models.engines import Loading

_BATCHES = 4  # sizes that devices other than the CPU have: 1, 2, 4, 8


def line_of(family: Family) -> TextLine | None:
    """The step that makes the line, if there is one: it pads with what no byte can say."""
    return next((step for step in family.recipe.steps if isinstance(step, TextLine)), None)


def for_lines(loading: Loading, family: Family, picture: TensorSpec) -> Loading:
    """`loading` of a model that takes lines; any other as it is."""
    line = line_of(family)
    return loading if line is None else _with_height(_with_widths(loading, line), line, picture)


def _with_widths(loading: Loading, line: TextLine) -> Loading:
    """All widths stay compiled, in some sizes of batches, unless the operator says how many: they are finitely many, and each
    that gave way would be compiled again and again."""
    runtime = loading.bundle.runtime
    if "max_shapes" in runtime.model_fields_set:
        return loading
    return _with(
        loading, runtime.model_copy(update={"max_shapes": max(runtime.max_shapes, _BATCHES * len(line.widths))})
    )


def _with_height(loading: Loading, line: TextLine, picture: TensorSpec) -> Loading:
    """Where the file leaves the height of lines open, that of the recipe is fixed: some models run at no other."""
    shape = picture.shape
    if shape is None or picture.name in loading.bundle.runtime.shapes:
        return loading
    at = 2 if picture_shape(shape).layout == "NCHW" else 1
    if shape[at] is not None:
        return loading
    fixed = tuple(line.height if i == at else -1 for i in range(len(shape)))
    runtime = loading.bundle.runtime
    return _with(loading, runtime.model_copy(update={"shapes": {**runtime.shapes, picture.name: fixed}}))


def _with(loading: Loading, runtime: Runtime) -> Loading:
    return replace(loading, bundle=loading.bundle.model_copy(update={"runtime": runtime}))
