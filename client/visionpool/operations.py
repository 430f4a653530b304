"""The calls that a client offers, as steps of `visionpool.protocol`: written once for all clients."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Literal, TypedDict, cast

from visionpool import answers, errors
from visionpool.answers import Health, ModelInfo, Prediction
from visionpool.pictures import Color, Encoded, Picture
from visionpool.protocol import Call, Load, Patience, Pause, Steps, ask, bounded
from visionpool.results import Result


class Options(TypedDict, total=False):
    """What a call may say about itself; what it leaves out (or None), the model's own settings decide."""

    score_threshold: float | None  # 0..1: results below it are left out
    iou_threshold: float | None  # 0..1: of two boxes that overlap more than this, the better one stays
    top_k: int | None  # so many classes of a classification
    classes: str | Iterable[str | int] | None  # only these, by name or number; a string is comma-separated
    max_detections: int | None  # so many objects at most, the best ones
    compact: bool | None  # masks as COCO's runs, maps of classes as PNG files, instead of a number a pixel
    score_map: bool | None  # segmentation: the score of each pixel too
    color: Color  # the order of an array's channels: "bgr" (the default, as cv2.imread gives them) or "rgb"
    timeout: float | None  # seconds for the whole call; the server is told, and drops what would come too late


def predict(model: str, picture: Picture, options: Options, patience: Patience) -> Steps[Result]:
    prediction = yield from predict_full(model, [picture], options, patience)
    return prediction.results[0]


def predict_many(model: str, pictures: Iterable[Picture], options: Options, patience: Patience) -> Steps[list[Result]]:
    listed = _listed(pictures)
    if not listed:
        return []
    prediction = yield from predict_full(model, listed, options, patience)
    return list(prediction.results)


def predict_full(
    model: str, pictures: Picture | Sequence[Picture], options: Options, patience: Patience
) -> Steps[Prediction]:
    # An array is one picture, though it is a sequence of rows, too.
    listed = pictures if isinstance(pictures, (list, tuple)) else [cast(Picture, pictures)]
    loaded = yield from _load(listed, options)
    return (yield from ask(_predict_call(model, loaded, options), _patience(options, patience), Prediction))


def annotate(
    model: str, picture: Picture, file_format: Literal["jpeg", "png"], options: Options, patience: Patience
) -> Steps[bytes]:
    if file_format not in ("jpeg", "png"):
        raise errors.InvalidOption(f"no pictures are drawn as {file_format!r}", hint="use 'jpeg' or 'png'")
    loaded = yield from _load([picture], options)
    call = replace(_predict_call(model, loaded, options), what="annotate", picture_type=file_format)
    answer = yield from ask(call, _patience(options, patience), answers.Picture)
    return answer.data


def frame_call(model: str, options: Options, patience: Patience) -> Call:
    """What holds for every frame of a stream. `timeout` is for each of them; without one the server's own holds."""
    return replace(_predict_call(model, (), options), timeout=_patience(options, patience).timeout)


def models(patience: Patience) -> Steps[list[ModelInfo]]:
    return (yield from ask(Call("models"), patience, list))


def model(name: str, patience: Patience) -> Steps[ModelInfo]:
    return (yield from ask(Call("model", name), patience, ModelInfo))


def healthy(what: Literal["live", "ready"], patience: Patience) -> Steps[bool]:
    """Whether a health check says yes. That nothing answers at all is False, not an error."""
    try:
        return (yield from _health(Call(what, timeout=patience.timeout))).good
    except (errors.ConnectionFailed, errors.DeadlineExceeded):
        return False


def wait_ready(timeout: float) -> Steps[None]:
    """Asks until the server is ready; there is no event to wait for across the network."""
    deadline = time.monotonic() + timeout
    for attempt in count():
        try:
            health = yield from _health(Call("ready", timeout=bounded(deadline, 5.0)))
            reason = health.said
            if health.good:
                return
        except (errors.ConnectionFailed, errors.DeadlineExceeded) as error:
            reason = error.message
        pause = min(0.05 * 2**attempt, 1.0)
        if time.monotonic() + pause >= deadline:
            message = f"the server was not ready within {timeout:g} s: {reason}"
            raise errors.DeadlineExceeded(message, hint="its log says what it is doing")
        yield Pause(pause)


def _health(call: Call) -> Steps[Health]:
    answer = yield call
    assert isinstance(answer, Health)
    return answer


def _listed(pictures: Any) -> list[Picture]:
    check_several(pictures, "predict_many")
    return list(pictures)


def check_several(pictures: Any, what: str) -> None:
    """Raises InvalidRequest for a single picture, which would fall into rows or bytes."""
    encoded = isinstance(pictures, (str, bytes, bytearray, memoryview, os.PathLike))
    if encoded or hasattr(pictures, "read") or getattr(pictures, "ndim", 4) != 4:
        raise errors.InvalidRequest(f"{what} takes several pictures, this is one", hint="use predict")


def _load(pictures: Iterable[Picture], options: Options) -> Steps[tuple[Encoded, ...]]:
    loaded = []
    for picture in pictures:
        encoded = yield Load(picture, options.get("color") or "bgr")
        assert isinstance(encoded, Encoded)
        loaded.append(encoded)
    if not loaded:
        raise errors.InvalidRequest("there is no picture to predict on")
    return tuple(loaded)


def _predict_call(model: str, pictures: tuple[Encoded, ...], options: Options) -> Call:
    told = options.get("timeout") is not None
    return Call("predict", model, pictures, _told_options(options), tell_timeout=told)


def _told_options(options: Options) -> dict[str, Any]:
    """The options that the server reads. Raises TypeError for one that does not exist."""
    unknown = sorted(options.keys() - Options.__annotations__.keys())
    if unknown:
        raise TypeError(f"no option {unknown[0]!r}; there are {', '.join(Options.__annotations__)}")
    mine = ("color", "timeout")
    given: dict[str, Any] = {k: v for k, v in options.items() if v is not None and k not in mine}
    if "classes" in given:
        given["classes"] = _class_names(given["classes"])
    return given


def _class_names(classes: str | Iterable[str | int]) -> tuple[str, ...]:
    if isinstance(classes, str):
        return tuple(name.strip() for name in classes.split(",") if name.strip())
    names = tuple(str(name) for name in classes)
    for name in names:
        if "," in name:
            raise errors.InvalidOption(f"the class {name!r} has a comma in it", hint="give its number instead")
    return names


def _patience(options: Options, patience: Patience) -> Patience:
    timeout = options.get("timeout")
    return patience if timeout is None else replace(patience, timeout=timeout)
