"""From a graph's last numbers to scores in 0..1. A leaf: it imports no family."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InferenceFailed, InvalidModel

from visionpool_server.families import FamilySpec
from visionpool_server.families.boxes import Floats

Activation = Literal["none", "sigmoid", "softmax"]
_SLACK = 0.5  # quantized scores leave 0..1 a little; of thousands of logits some are far outside


def vector_output(spec: FamilySpec) -> tuple[str, int | None]:
    """The output of one number a class (or dimension), (N, C), (N, C, 1, 1) or (N, 1, 1, C), and C where the file says it:
    the one that `postprocess.output` says, or the only one there is. Raises InvalidModel."""
    said = spec.settings.get("output")
    name = said or next(iter(spec.outputs), "")
    if name not in spec.outputs or (said is None and len(spec.outputs) != 1):
        raise InvalidModel(
            f"one output of (pictures, numbers) is expected; this model has {dict(spec.outputs)}",
            hint="say postprocess.output: NAME in model.yaml",
        )
    shape = spec.outputs[name]
    counts = [size for size in shape[1:] if size not in (1, None)]
    if len(counts) > 1 or len(shape) == 1:
        raise InvalidModel(
            f"an output of (pictures, numbers) is expected; {name!r} is {shape}", hint="check family: in model.yaml"
        )
    return name, counts[0] if counts else None if None in shape[1:] or not shape else 1


def activation_of(values: Floats) -> Activation:
    """What `values`, the class scores of all anchors of a picture, still need: sigmoid where they cannot be scores.

    For exports whose files do not say: `postprocess: {activation: ...}` in model.yaml does.
    """
    if not values.size:
        return "none"
    low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)  # they pass over NaN
    return "sigmoid" if low < -_SLACK or high > 1 + _SLACK else "none"


def still_to_do(said: Activation | None, ending: str, of_logits: Activation) -> Activation | None:
    """What is to be applied: what model.yaml says, or else what follows from the graph's last operator; None: not known.

    What the graph does itself is not done twice. `of_logits`: what makes scores of a linear layer's numbers.
    """
    if ending in ("softmax", "sigmoid") and said in (None, ending):
        return "none"
    return said or (of_logits if ending == "logits" else None)


def as_scores(values: Floats, activation: Activation) -> Floats:
    """`values` (..., classes) after `activation`; softmax along the last axis."""
    if activation == "none":
        return values
    if activation == "sigmoid":
        return sigmoid(values)
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def finite(values: NDArray[Any]) -> NDArray[Any]:
    """`values`, of which a result is made. Raises InferenceFailed for NaN and infinity: JSON has no word for them, and
    what is decided by them means nothing.
    """
    if not np.isfinite(values).all():
        raise InferenceFailed(
            "the model answered with numbers that are none (NaN or infinite)",
            hint="with precision: f16 they may be too large for it: try f32",
        )
    return values


def sigmoid(values: Floats) -> Floats:
    """Of logits of any size: none overflows."""
    result: Floats = 0.5 * (1 + np.tanh(0.5 * values))
    return result


def logit(threshold: float) -> float:
    """What a logit must exceed for its sigmoid to exceed `threshold`."""
    return -np.inf if threshold <= 0 else np.inf if threshold >= 1 else float(np.log(threshold / (1 - threshold)))
