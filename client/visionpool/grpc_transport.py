"""Between `visionpool.protocol` and grpcio: what both gRPC clients send, read and raise the same way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

import visionpool
from visionpool import errors
from visionpool.answers import (
    SOON,
    Answer,
    Health,
    ModelInfo,
    Picture,
    Prediction,
    Refusal,
    check_count,
    error_from,
    unreadable,
)
from visionpool.messages import read_result
from visionpool.protocol import Call
from visionpool.results import Result
from visionpool.v1 import vision_pb2 as v1

DEFAULT_ADDRESS = "127.0.0.1:8001"
ERROR_KEY = "visionpool-error-bin"  # trailing metadata: our errors as JSON
_SERVICE = v1.DESCRIPTOR.services_by_name["Vision"].full_name
_METHODS = {"predict": "Predict", "annotate": "Annotate", "models": "ListModels", "model": "GetModel"}
_HEALTH = "/grpc.health.v1.Health/Check"
_WHOLE_SERVER, _SERVING = b"", b"\x08\x01"  # HealthCheckRequest() and HealthCheckResponse(status=SERVING)
_FORMATS = {"jpeg": v1.PICTURE_FORMAT_JPEG, "png": v1.PICTURE_FORMAT_PNG}
_BY_STATUS: dict[grpc.StatusCode, type[errors.VisionpoolError]] = {
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.PERMISSION_DENIED: errors.RequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.QueueFull,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotFound,
    grpc.StatusCode.UNAVAILABLE: errors.ConnectionFailed,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
}
_NO_SERVER = "is this the gRPC address of a visionpool server, and is no proxy in the way?"
_HINTS = {
    grpc.StatusCode.UNAUTHENTICATED: "pass api_key=... to the client",
    grpc.StatusCode.PERMISSION_DENIED: "is the api_key the right one?",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the client's own limit: timeout=...",
}
_SEVERAL = ("dns:", "ipv4:", "ipv6:")  # gRPC's name syntax (doc/naming.md of its repository)
_CANNOT_SEND = "Internal error from Core"  # what grpc.aio says where a stream ended while a frame was being sent
_SWEPT_AWAY = "CANCELLED"  # what comes of calls that a server of gRPC's has not begun with when it stops: no words
_TOO_OLD = "max connection age"  # what a server says that ends a connection with calls still on it
_NO_STATUS = "Stream removed"  # what gRPC says of an answer that ends before its status, as proxies cut it off
_NOT_CONNECTED = (
    "failed to connect",
    "connections to all backends failing",
    "dns resolution failed",
    "errors resolving",
    "empty address list",
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is; `secure`: by TLS; `several`: servers, to be asked in turn."""

    target: str
    secure: bool
    several: bool = False


def address(url: str) -> Address:
    """`host`, `host:port`, `grpc://host:port` or `grpcs://host:port`; or gRPC's own names for all the servers there are:
    `dns:///host:port`, `ipv4:host:port,host:port`, `ipv6:...`. Raises InvalidOption for anything else."""
    if url.startswith(_SEVERAL):
        return Address(url, secure=False, several=True)
    split = urlsplit(url if "://" in url else f"grpc://{url}")
    try:
        port, host = split.port or {"grpcs": 443}.get(split.scheme, 8001), split.hostname
    except ValueError as error:
        raise errors.InvalidOption(f"{url!r} is not an address: {error}", hint=f"such as {DEFAULT_ADDRESS}") from error
    if split.scheme not in ("grpc", "grpcs") or not host or split.path.strip("/") or split.query or "@" in split.netloc:
        raise errors.InvalidOption(f"{url!r} is not a gRPC address", hint=f"such as {DEFAULT_ADDRESS}")
    return Address(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", split.scheme == "grpcs")


def channel_options(target: str, max_message_mb: float) -> list[tuple[str, Any]]:
    """`max_message_mb` bounds an answer; how large a request may be is the server's to say."""
    # gRPC's own 30 s between two looks at a name would be long for those who wait for the new servers.
    in_turn = [("grpc.lb_policy_name", "round_robin"), ("grpc.dns_min_time_between_resolutions_ms", 5_000)]
    return [
        *(in_turn if target.startswith(_SEVERAL) else ()),
        ("grpc.primary_user_agent", f"visionpool/{visionpool.__version__}"),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", int(max_message_mb * 2**20)),
        ("grpc.keepalive_time_ms", 30_000),  # finds servers that are gone without a word
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),  # soon there again after the server is: wait_ready() asks each second
        ("grpc.use_local_subchannel_pool", 1),  # what other clients of this process met is no concern of this one
    ]


def metadata(api_key: str | None, headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    bearer = {"authorization": f"Bearer {api_key}"} if api_key else {}
    return tuple({**bearer, **{name.lower(): value for name, value in (headers or {}).items()}}.items())


def methods(channel: Any) -> dict[str, Callable[..., Any]]:
    """For each kind of `Call`, what of a channel, blocking or not, carries it out. Answers are bytes: gRPC itself would
    log what it cannot read, or hand out None."""
    unary = {what: channel.unary_unary(f"/{_SERVICE}/{name}", _serialized) for what, name in _METHODS.items()}
    health = channel.unary_unary(_HEALTH)
    return {**unary, "live": health, "ready": health}


def stream_method(channel: Any) -> Callable[..., Any]:
    """What of a channel, blocking or not, carries out a stream of frames."""
    method: Callable[..., Any] = channel.stream_stream(f"/{_SERVICE}/PredictStream", _serialized)
    return method


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def request(call: Call) -> Any:
    """The message that `call` sends. Raises InvalidOption for an option that is not the number it should be."""
    match call.what:
        case "predict":
            pictures = [picture.data for picture in call.pictures]
            return v1.PredictRequest(model=call.model, pictures=pictures, options=options(call))
        case "annotate":
            kind = _FORMATS[call.picture_type]
            return v1.AnnotateRequest(
                model=call.model, picture=call.pictures[0].data, options=options(call), format=kind
            )
        case "models":
            return v1.ListModelsRequest()
        case "model":
            return v1.GetModelRequest(model=call.model)
    return _WHOLE_SERVER


def options(call: Call) -> v1.PredictOptions | None:
    """What the server is to be told. Raises InvalidOption for an option that is not the number it should be."""
    told = call.told()
    if not told:
        return None
    message = v1.PredictOptions(classes=told.pop("classes", ()))
    for name, value in told.items():
        if isinstance(value, bool) and name in ("compact", "score_map"):
            setattr(message, name, value)
            continue
        try:
            number = float(value)
            whole = name in ("top_k", "max_detections")
            setattr(message, name, int(value) if whole and number.is_integer() else number)
        except (TypeError, ValueError, OverflowError) as error:
            raise errors.InvalidOption(f"{name}: {value!r} is not a number that it can be") from error
    return message


def read(call: Call, answer: bytes) -> Answer:
    """What a good answer to `call` says. Raises ServiceError where it does not make sense."""
    if call.what == "live":
        return Health(True, "the health check answers")
    if call.what == "ready":
        good = answer == _SERVING
        return Health(good, f"the health check answers {'SERVING' if good else 'NOT_SERVING'}")
    try:
        match call.what:
            case "predict":
                return _prediction(v1.PredictResponse.FromString(answer), len(call.pictures))
            case "annotate":
                return Picture(v1.AnnotateResponse.FromString(answer).picture)
            case "models":
                return [
                    ModelInfo.from_dict(_summary(model)) for model in v1.ListModelsResponse.FromString(answer).models
                ]
        return ModelInfo.from_dict(_description(v1.GetModelResponse.FromString(answer)))
    except (DecodeError, ValueError) as error:
        raise unreadable(error) from error


def read_frame(answer: bytes) -> Result | errors.VisionpoolError:
    """The answer to one frame of a stream. Raises ServiceError where it does not make sense."""
    try:
        message = v1.PredictStreamResponse.FromString(answer)
        if message.WhichOneof("outcome") != "error":
            return read_result(message.result)
    except (DecodeError, ValueError) as error:
        raise unreadable(error) from error
    told = message.error
    delay = told.retry_after if told.HasField("retry_after") else None
    return error_from(told.code, told.message, told.hint or None, retry_after=delay)


def refusal(error: grpc.RpcError, target: str, timeout: float = 0.0) -> Refusal:
    """Why a call to `target` failed: what our server says, or else what its status stands for."""
    told = _told(error.trailing_metadata())
    code, details = error.code(), error.details() or ""
    otherwise = _BY_STATUS.get(code, errors.ServiceError)
    if told is not None:
        return Refusal(error_from(**told, otherwise=otherwise), told["retry_after"])
    failure = _by_status(code, details, target, timeout)
    if isinstance(failure, errors.ConnectionFailed):
        return Refusal(failure, SOON, broke=failure.sent)
    delay = 1.0 if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not _too_large(details) else None
    return Refusal(failure, delay)


def _by_status(code: grpc.StatusCode, details: str, target: str, timeout: float) -> errors.VisionpoolError:
    """The error that a status stands for which is not our server's: gRPC's own, a proxy's, another server's."""
    kind, hint = _BY_STATUS.get(code, errors.ServiceError), _HINTS.get(code, _NO_SERVER)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return kind(f"no answer from {target} within {timeout:.3g} s", hint=hint)
    if code is grpc.StatusCode.UNAVAILABLE and details.lower().startswith(_NOT_CONNECTED):
        hint = "is the server running, and is this its address?"
        return errors.ConnectionFailed(f"nothing answers at {target}: {details}", hint=hint, sent=False)
    if code is grpc.StatusCode.UNAVAILABLE and _TOO_OLD in details:
        return kind(
            f"{target} lets no connection become older than this one, and has ended it amid the call",
            hint="call again; of a stream, send the frames that have no result yet. The server says how long: "
            "--grpc-max-connection-age, and a minute",
        )
    if details == _CANNOT_SEND:
        hint = "the server may have stopped, or ended an old connection (--grpc-max-connection-age); its log tells"
        return errors.ConnectionFailed(f"the connection to {target} broke off while a frame was sent", hint=hint)
    if code is grpc.StatusCode.CANCELLED and details == _SWEPT_AWAY:
        hint = "the server has stopped; its log tells"
        return errors.ConnectionFailed(f"{target} has dropped the call before it began", hint=hint, sent=False)
    if code is grpc.StatusCode.UNAVAILABLE or (code is grpc.StatusCode.UNKNOWN and details.startswith(_NO_STATUS)):
        return errors.ConnectionFailed(
            f"the connection to {target} broke off: {details}", hint="the server may have stopped; its log tells"
        )
    if _too_large(details):
        mine = "max_message_mb=... is the client's own limit"
        theirs = "send a smaller picture, or start the server with a larger --max-body-mb"
        return errors.TooLarge(details, hint=mine if "CLIENT" in details else theirs)
    return kind(f"{target} answered {code.name}: {details}", hint=hint)


def _too_large(details: str) -> bool:
    return "message larger than max" in details


def declined(call: Call, refused: Refusal) -> Answer | Refusal:
    """What a refusal of `call` means: to a health check, no. Raises ConnectionFailed, DeadlineExceeded for one that was
    not answered at all."""
    if call.what not in ("live", "ready"):
        return refused
    if isinstance(refused.error, (errors.ConnectionFailed, errors.DeadlineExceeded)):
        raise refused.error
    return Health(False, refused.error.message)


def _told(trailing: Iterable[Any] | None) -> dict[str, Any] | None:
    """What our server says of an error, None where the answer is another's."""
    for key, value in trailing or ():
        if key == ERROR_KEY:
            try:
                told = json.loads(value)
                delay = told.get("retry_after")
                return {
                    "code": str(told["code"]),
                    "message": str(told["message"]),
                    "hint": told.get("hint"),
                    "retry_after": None if delay is None else float(delay),
                }
            except (ValueError, KeyError, TypeError, AttributeError):
                return None
    return None


def _prediction(message: v1.PredictResponse, pictures: int) -> Prediction:
    check_count(len(message.results), pictures)
    timings = message.timings
    return Prediction(
        model=message.model,
        version=message.version,
        results=tuple(read_result(result) for result in message.results),
        timings_ms={
            "decode": timings.decode_ms,
            "prepare": timings.prepare_ms,
            "queue": timings.queue_ms,
            "infer": timings.infer_ms,
            "finish": timings.finish_ms,
        },
    )


def _summary(message: v1.ModelSummary) -> dict[str, Any]:
    return {
        "name": message.name,
        "version": message.version,
        "task": message.task,
        "family": message.family,
        "state": message.state,
    }


def _description(message: v1.GetModelResponse) -> dict[str, Any]:
    """As the HTTP API's JSON."""
    return {
        **_summary(message.summary),
        "labels": list(message.labels),
        "options": list(message.options),
        "inputs": [_tensor(tensor) for tensor in message.inputs],
        "outputs": [_tensor(tensor) for tensor in message.outputs],
        **_whole(MessageToDict(message.details)),
    }


def _tensor(message: v1.Tensor) -> dict[str, Any]:
    shape = [None if size == -1 else size for size in message.shape]
    return {"name": message.name, "shape": shape, "dtype": message.dtype}


def _whole(value: Any) -> Any:
    """JSON values in which whole numbers are integers: a Struct makes no difference."""
    match value:
        case dict():
            return {name: _whole(inner) for name, inner in value.items()}
        case list():
            return [_whole(inner) for inner in value]
        case float() if value.is_integer():
            return int(value)
    return value
