"""How a vision model's engines take its pictures: prepared by us and finished by the runtime, or all of it on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from visionpool.errors import InvalidModel

from visionpool_server.backends import ImageInput, TensorSpec
from visionpool_server.backends.choice import cuda_ordinal
from visionpool_server.families import Family, picture_shape
from visionpool_server.imaging.recipe import Arithmetic
from visionpool_server.models.bundle import Bundle
from visionpool_server.models.groups import WorkerGroup
from visionpool_server.models.lines import line_of

_PREPARING = ("tensorrt", "onnxruntime")  # backends that resize pictures on NVIDIA GPUs


def image_input_of(family: Family, picture: TensorSpec) -> ImageInput:
    arithmetic = _arithmetic_for(picture, family.recipe.arithmetic)
    layout = picture_shape(picture.shape or ()).layout
    dtype: Literal["uint8", "float32"] = "float32" if line_of(family) else "uint8"
    return ImageInput(picture.name, layout, arithmetic, family.recipe.output_size(), dtype)


def on_gpu(family: Family, image: ImageInput, groups: Sequence[WorkerGroup]) -> ImageInput:
    """`image` for `prepare_on: gpu`, and the family's recipe likewise: pictures queue as they were decoded.

    Raises InvalidModel where workers, recipe or pictures do not allow that.
    """
    leave = "leave runtime.prepare_on out of model.yaml"
    for group in groups:
        if not (group.on_gpu and group.backend in _PREPARING):
            raise InvalidModel(
                f"prepare_on: gpu is for workers on NVIDIA GPUs alone, and some run by {group.backend} on {group.device}",
                hint=f"{leave}, or those workers, or say device: cuda:0",
            )
    if image.dtype != "uint8":
        raise InvalidModel("prepare_on: gpu is not for lines of text, whose padding is no colour", hint=leave)
    if image.size is None:
        raise InvalidModel(
            "prepare_on: gpu needs pictures of one size, and preprocess leaves theirs open",
            hint=f"{leave}, or end preprocess with a step that fixes it, such as letterbox: 640",
        )
    family.recipe = family.recipe.on_gpu()
    return replace(image, unprepared=True)


def decoding_on(bundle: Bundle, groups: Sequence[WorkerGroup]) -> int | None:
    """The number of the GPU that decodes pictures, or None. Raises InvalidModel where `decode: gpu` cannot be."""
    if bundle.decode != "gpu":
        return None
    if bundle.runtime.prepare_on != "gpu":
        raise InvalidModel(
            "decode: gpu leaves pictures on the GPU, and they are to be resized by the CPU",
            hint="say runtime.prepare_on: gpu in model.yaml as well, or decode: exact",
        )
    devices = sorted({group.device for group in groups})
    if len(devices) > 1:
        raise InvalidModel(
            f"decode: gpu is for workers on one GPU, which has the pictures then, and these are on {', '.join(devices)}",
            hint="say decode: exact in model.yaml, or serve one model for each GPU",
        )
    return cuda_ordinal(devices[0])


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
