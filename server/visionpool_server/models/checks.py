"""What model.yaml says must have an effect, and fit the model: silence would look like one."""

from __future__ import annotations

from visionpool.errors import InvalidModel

from visionpool_server.backends import Signature, TensorSpec
from visionpool_server.families import TASKS, Family, picture_shape
from visionpool_server.imaging.recipe import Gray
from visionpool_server.models.bundle import Bundle

RESULT = "result"  # what clients call a vision model's answer where they ask for tensors by name
_OF_PICTURES = ("preprocess", "postprocess", "input_size", "decode", "raw_pictures")


def check_said(bundle: Bundle, written: Bundle, family_name: str, family: Family) -> None:
    task = written.task if written.family else bundle.task  # what the files look like may be another than what is said
    if task not in (None, TASKS[family_name]):
        raise InvalidModel(f"task: {task} is not what the family {family_name} does: that is {TASKS[family_name]}")
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


def check_plain(written: Bundle, hint: str) -> None:
    """A model of plain tensors: nothing is done with pictures. `hint`: what would make it a vision model."""
    for key in _OF_PICTURES:
        if key in written.model_fields_set:
            raise InvalidModel(f"{key} means nothing to a model that is served as plain tensors", hint=hint)


def check_aliases(bundle: Bundle, signature: Signature, *, vision: bool) -> None:
    names = [spec.name for spec in (*signature.inputs, *signature.outputs)]
    targets = [*names, RESULT] if vision else names
    for alias, target in bundle.aliases.items():
        if alias in targets:
            raise InvalidModel(f"aliases: {alias!r} is a tensor's own name", hint="choose another name for the alias")
        if target not in targets:
            raise InvalidModel(
                f"aliases: {alias!r} stands for {target!r}, which the model does not have",
                hint=f"there are {', '.join(targets)}",
            )


def check_shapes(bundle: Bundle, signature: Signature) -> None:
    known = {spec.name: spec for spec in signature.inputs}
    for name, fixed in bundle.runtime.shapes.items():
        if name not in known:
            raise InvalidModel(f"runtime.shapes names {name!r}; the model's inputs are {', '.join(known)}")
        shape = known[name].shape
        if shape is not None and len(fixed) != len(shape):
            raise InvalidModel(
                f"runtime.shapes gives {name!r} {len(fixed)} dimensions, and the model has {len(shape)}: {list(shape)}"
            )


def check_size(family: Family, picture: TensorSpec) -> None:
    """The preprocessing must end in the size that the file fixes."""
    shape = picture_shape(picture.shape or ())
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
