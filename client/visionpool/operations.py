"""The calls that a client offers, as steps of `visionpool.protocol`: written once for both clients."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Literal, TypedDict, cast
from urllib.parse import quote

from visionpool import answers, errors
from visionpool.answers import ModelInfo, Prediction
from visionpool.pictures import Color, Encoded, Picture
from visionpool.protocol import Call, Load, Patience, Pause, Steps, ask, bounded, send
from visionpool.results import Result


class Options(TypedDict, total=False):
    """What a call may say about itself; what it leaves out (or None), the model's own settings decide."""

    score_threshold: float | None  # 0..1: results below it are left out
    iou_threshold: float | None  # 0..1: of two boxes that overlap more than this, the better one stays
    top_k: int | None  # so many classes of a classification
    classes: str | Iterable[str | int] | None  # only these, by name or number; a string is comma-separated
    max_detections: int | None  # so many objects at most, the best ones
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
    answer = yield from ask(_predict_call(model, loaded, options), _patience(options, patience))
    return answers.read_prediction(answer, pictures=len(loaded))


def annotate(
    model: str, picture: Picture, file_format: Literal["jpeg", "png"], options: Options, patience: Patience
) -> Steps[bytes]:
    if file_format not in ("jpeg", "png"):
        raise errors.InvalidOption(f"no pictures are drawn as {file_format!r}", hint="use 'jpeg' or 'png'")
    loaded = yield from _load([picture], options)
    call = replace(_predict_call(model, loaded, options), accept=f"image/{file_format}")
    answer = yield from ask(call, _patience(options, patience))
    return answers.read_image(answer)


def models(patience: Patience) -> Steps[list[ModelInfo]]:
    answer = yield from ask(Call("GET", "/v1/models"), patience)
    return answers.read_models(answer)


def model(name: str, patience: Patience) -> Steps[ModelInfo]:
    answer = yield from ask(Call("GET", _model_path(name)), patience)
    return answers.read_model(answer)


def healthy(path: str, patience: Patience) -> Steps[bool]:
    """Whether a health check answers 200. That nothing answers at all is False, not an error."""
    try:
        answer = yield from send(Call("GET", path, timeout=patience.timeout))
    except (errors.ConnectionFailed, errors.DeadlineExceeded):
        return False
    return answer.status == 200


def wait_ready(timeout: float) -> Steps[None]:
    """Asks until the server is ready; there is no event to wait for across the network."""
    deadline = time.monotonic() + timeout
    for attempt in count():
        try:
            answer = yield from send(Call("GET", "/health/ready", timeout=bounded(deadline, 5.0)))
            reason = f"/health/ready answers {answer.status}"
            if answer.status == 200:
                return
        except (errors.ConnectionFailed, errors.DeadlineExceeded) as error:
            reason = error.message
        pause = min(0.05 * 2**attempt, 1.0)
        if time.monotonic() + pause >= deadline:
            message = f"the server was not ready within {timeout:g} s: {reason}"
            raise errors.DeadlineExceeded(message, hint="its log says what it is doing")
        yield Pause(pause)


def _listed(pictures: Any) -> list[Picture]:
    """The pictures one by one. Raises InvalidRequest for a single one, which would fall into rows."""
    encoded = isinstance(pictures, (str, bytes, bytearray, memoryview, os.PathLike))
    if encoded or hasattr(pictures, "read") or getattr(pictures, "ndim", 4) != 4:
        raise errors.InvalidRequest("predict_many takes several pictures, this is one", hint="use predict")
    return list(pictures)


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
    params = _params(options)
    return Call("POST", f"{_model_path(model)}/predict", params=params, pictures=pictures, tell_timeout=told)


def _params(options: Options) -> dict[str, str]:
    """The options that the server reads, as text. Raises TypeError for one that does not exist."""
    unknown = sorted(options.keys() - Options.__annotations__.keys())
    if unknown:
        raise TypeError(f"no option {unknown[0]!r}; there are {', '.join(Options.__annotations__)}")
    mine = ("color", "timeout")
    given: dict[str, Any] = {k: v for k, v in options.items() if v is not None and k not in mine}
    if "classes" in given:
        given["classes"] = _comma_separated(given["classes"])
    return {name: str(value) for name, value in given.items()}


def _comma_separated(classes: str | Iterable[str | int]) -> str:
    if isinstance(classes, str):
        return classes
    names = [str(name) for name in classes]
    for name in names:
        if "," in name:
            raise errors.InvalidOption(f"the class {name!r} has a comma in it", hint="give its number instead")
    return ",".join(names)


def _patience(options: Options, patience: Patience) -> Patience:
    timeout = options.get("timeout")
    return patience if timeout is None else replace(patience, timeout=timeout)


def _model_path(name: str) -> str:
    if name in ("", ".", ".."):
        raise errors.ModelNotFound(f"no model can be called {name!r}")
    return f"/v1/models/{quote(name, safe='')}"
