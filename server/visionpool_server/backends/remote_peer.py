"""The connection to a far server: its settings, its channel, and its failures in our terms.

What the far server writes into its errors goes to the log, trimmed, and never to a caller.
"""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from visionpool.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidModel,
    InvalidRequest,
    QueueFull,
    ServiceError,
    Unavailable,
)

from visionpool_server.backends import Source

log = logging.getLogger(__name__)

HINT_HEADERS = "check runtime.options.headers in model.yaml, such as {authorization: Bearer ...}"


@dataclass(frozen=True, slots=True)
class Settings:
    """runtime.options in model.yaml."""

    timeout: float = 15.0  # seconds an inference may take
    max_message_bytes: int = 256 << 20
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # they hold secrets


class Peer:
    """A model's address on a far server, and the connection there: opened by the first call, reopened by later ones."""

    def __init__(self, source: Source) -> None:
        if not source.model:
            raise InvalidModel("backend: remote has to know the model's name on the far server")
        self.url, self.model, self.settings = source.url or "", source.model, settings_from(source.options)
        self._channel = _channel(self.url, self.settings)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._infer: Any = self._channel.unary_unary(  # without a serialiser: requests come serialised
            "/inference.GRPCInferenceService/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
        )

    def ask(self, method: str, request: Any, until: float) -> Any:
        """One of the small calls, by `until` (of time.monotonic()). Raises grpc.RpcError."""
        timeout = max(0.0, until - time.monotonic())
        return getattr(self._stub, method)(request, timeout=timeout, metadata=self.settings.headers)

    def infer(self, request: bytes, *, own_tensors: bool) -> Any:
        """The ModelInferResponse to a serialised request. Raises ServiceError; InvalidRequest where the far server refuses
        tensors that are a caller's own, and not made here."""
        try:
            return self._infer(request, timeout=self.settings.timeout, metadata=self.settings.headers)
        except grpc.RpcError as error:
            self.report(error)
            if own_tensors and error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise self._refusal() from None
            raise self._service_error(error) from None  # the cause would bring the far server's text along
        except ValueError:  # gRPC's way to say that the channel is closed
            raise Unavailable(f"the connection to {self.url} was closed") from None

    def report(self, error: grpc.RpcError) -> None:
        """Logs a failed call, with what the far server said of it: the one place that its text reaches."""
        said = "".join(char if char.isprintable() else " " for char in (error.details() or "")[:300])
        log.warning("%s, model %s: %s: %s", self.url, self.model, error.code().name, said)

    def close(self) -> None:
        """Calls under way end as Unavailable."""
        self._channel.close()

    def _refusal(self) -> InvalidRequest:
        return InvalidRequest(
            f"model {self.model!r} at {self.url} does not take these tensors",
            hint="check their shapes and values against what the model takes; this server's log has what it said",
        )

    def _service_error(self, error: grpc.RpcError) -> ServiceError:
        status, code, where = grpc.StatusCode, error.code(), f"model {self.model!r} at {self.url}"
        match code:
            case status.UNAVAILABLE | status.CANCELLED | status.NOT_FOUND:
                return Unavailable(
                    f"{where} cannot be reached: {code.name}", hint="is it up, and the model loaded there?"
                )
            case status.DEADLINE_EXCEEDED:
                return DeadlineExceeded(
                    f"{where} did not answer in time: {code.name}",
                    hint=f"runtime.options.timeout_ms allows {self.settings.timeout * 1000:g}",
                )
            case status.RESOURCE_EXHAUSTED if "larger than max" in (error.details() or ""):
                return InferenceFailed(
                    f"{where}: a message is larger than allowed",
                    hint="raise runtime.options.max_message_mb here, or the limit there",
                )
            case status.RESOURCE_EXHAUSTED:
                return QueueFull(f"{where} has too much to do", hint="come back after the time in Retry-After")
            case status.UNAUTHENTICATED | status.PERMISSION_DENIED:
                return InferenceFailed(f"{where} refuses this server: {code.name}", hint=HINT_HEADERS)
        return InferenceFailed(f"{where} failed: {code.name}", hint="this server's log has what it said")


def settings_from(said: Mapping[str, Any]) -> Settings:
    """Raises InvalidModel for what means nothing here."""
    known = ("timeout_ms", "max_message_mb", "headers")
    if unknown := [str(name) for name in said if name not in known]:
        raise InvalidModel(
            f"runtime.options has {', '.join(unknown)}, which backend: remote does not know",
            hint=f"it knows {', '.join(known)}",
        )
    return Settings(
        timeout=_number(said, "timeout_ms", 15_000, 3_600_000) / 1000,
        max_message_bytes=int(_number(said, "max_message_mb", 256, 2047) * (1 << 20)),
        headers=_headers(said.get("headers") or {}),
    )


def _number(said: Mapping[str, Any], name: str, default: float, most: float) -> float:
    value = said.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise InvalidModel(f"runtime.options.{name} is a number above 0, at most {most:g}, not {value!r}")
    return value


def _headers(said: Any) -> tuple[tuple[str, str], ...]:
    """As gRPC takes them: names in lower case, values of printable ASCII. Messages repeat no values: they are secrets."""
    if not isinstance(said, Mapping):
        raise InvalidModel("runtime.options.headers is a map from name to value")
    for name, value in said.items():
        if not isinstance(name, str) or not re.fullmatch(r"(?!grpc-)[a-z0-9_.-]+(?<!-bin)", name.lower()):
            raise InvalidModel(f"runtime.options.headers: {name!r} is not the name of a header that gRPC sends")
        if not isinstance(value, str) or not re.fullmatch(r"[!-~]([ -~]*[!-~])?", value):
            raise InvalidModel(f"runtime.options.headers: the value of {name} is not a line of ASCII text")
    return tuple((name.lower(), value) for name, value in said.items())


def _channel(url: str, settings: Settings) -> grpc.Channel:
    target, secure = _target(url)
    options = [
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # A host that vanishes without a word is noticed after 10 to 20 s of calls that wait, and the next ones connect anew.
        # More pings, or any while nothing is asked, and servers hang up on us ("too_many_pings").
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # a minute otherwise, whatever keepalive_timeout_ms says
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),  # between two attempts to connect
        ("grpc.min_reconnect_backoff_ms", 5_000),  # for one attempt: gRPC's name misleads
    ]
    if secure:
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(_system_roots()), options)
    return grpc.insecure_channel(target, options)


def _target(url: str) -> tuple[str, bool]:
    """host:port, and whether TLS is spoken there. A message does not repeat the url: it may hold a password."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("grpc", "grpcs") and parts.hostname and parts.port and "@" not in parts.netloc
    except ValueError:  # a port that is no number
        fits = None
    if not fits or parts.path.strip("/") or parts.query or parts.fragment:
        raise InvalidModel(
            "runtime.url does not say where the far server is",
            hint="write grpc://HOST:PORT, or grpcs://HOST:PORT for TLS; keys go into runtime.options.headers",
        )
    return parts.netloc, parts.scheme == "grpcs"


def _system_roots() -> bytes | None:
    """The certificates that this system trusts (SSL_CERT_FILE moves them); None leaves gRPC its own list."""
    file = ssl.get_default_verify_paths().cafile
    return Path(file).read_bytes() if file else None
