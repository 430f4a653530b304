"""What is special about models that take lines of text: pictures of one height and several widths, padded in between."""

from __future__ import annotations

from dataclasses import replace

from visionpool_server.backends import TensorSpec
from visionpool_server.families import Family, picture_shape
from visionpool_server.imaging.text_lines import TextLine
from visionpool_server.models.engines import Loading


def line_of(family: Family) -> TextLine | None:
    """The step that makes the line, if there is one: it pads with what no byte can say."""
    return next((step for step in family.recipe.steps if isinstance(step, TextLine)), None)


def with_line_height(loading: Loading, family: Family, picture: TensorSpec) -> Loading:
    """Where the file leaves the height of lines open, that of the recipe is fixed: some models run at no other."""
    line, shape = line_of(family), picture.shape
    if line is None or shape is None or picture.name in loading.bundle.runtime.shapes:
        return loading
    at = 2 if picture_shape(shape).layout == "NCHW" else 1
    if shape[at] is not None:
        return loading
    fixed = tuple(line.height if i == at else -1 for i in range(len(shape)))
    runtime = loading.bundle.runtime
    runtime = runtime.model_copy(update={"shapes": {**runtime.shapes, picture.name: fixed}})
    return replace(loading, bundle=loading.bundle.model_copy(update={"runtime": runtime}))
