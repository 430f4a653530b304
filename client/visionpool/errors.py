"""Every error that visionpool raises, on the server and in the client: one tree, free of any transport.

    VisionpoolError
    ├── RequestError             the caller's fault
    │   ├── InvalidRequest       the body cannot be understood (broken JSON, no picture in it)
    │   ├── InvalidOption        an option is unknown or out of range
    │   ├── InvalidImage         the picture is corrupt, truncated, empty, or has a size of zero
    │   ├── UnsupportedMedia     not a picture, or of a format that is not read
    │   ├── TooLarge             more bytes or more pixels than the server takes
    │   ├── Unauthenticated      the server wants an API key, and got none that it knows
    │   ├── NotFound             no such route
    │   │   └── ModelNotFound    no model of this name
    │   ├── MethodNotAllowed     the route exists, the method does not
    │   ├── RequestTimeout       the caller sent its body too slowly
    │   └── Cancelled            the caller went away
    ├── ServiceError             our fault, or our load
    │   ├── QueueFull            come back after `retry_after` seconds
    │   ├── DeadlineExceeded     not answered within the time allowed
    │   ├── Unavailable          starting, draining, or the model is not ready
    │   ├── InferenceFailed      the runtime failed on this input
    │   ├── Unimplemented        the protocol has it, this server does not
    │   └── InternalError        everything else
    ├── SetupError               what stops a start-up; the message says what to do
    │   ├── InvalidModel         files that cannot be read, or a model.yaml that is wrong
    │   ├── InvalidSetting       a flag or an environment variable that makes no sense
    │   └── BackendUnavailable   a runtime or device that is not on this machine
    └── ConnectionFailed         client only: nothing answers at this address, or it broke off

`code` is a stable, machine-readable name; `message` says what is wrong, `hint` what to do about it.
`api/errors.py` of the server maps each class to an HTTP status and a gRPC code.
"""

from __future__ import annotations

from typing import ClassVar


class VisionpoolError(Exception):
    """The root. `str(error)` is the message, followed by the hint where there is one."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RequestError(VisionpoolError):
    """The caller's fault: the same request fails again."""

    code = "request_error"


class InvalidRequest(RequestError):
    code = "invalid_request"


class InvalidOption(RequestError):
    code = "invalid_option"


class InvalidImage(RequestError):
    code = "invalid_image"


class UnsupportedMedia(RequestError):
    code = "unsupported_media"


class TooLarge(RequestError):
    code = "too_large"


class Unauthenticated(RequestError):
    code = "unauthenticated"


class NotFound(RequestError):
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(RequestError):
    code = "method_not_allowed"


class RequestTimeout(RequestError):
    code = "request_timeout"


class Cancelled(RequestError):
    code = "cancelled"


class ServiceError(VisionpoolError):
    """Our fault, or our load: the same request may succeed later."""

    code = "service_error"


class QueueFull(ServiceError):
    """The queue of the model is full. `retry_after`: seconds until a place is likely to be free."""

    code = "queue_full"

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"


class Unavailable(ServiceError):
    code = "unavailable"


class InferenceFailed(ServiceError):
    code = "inference_failed"


class Unimplemented(ServiceError):
    code = "unimplemented"


class InternalError(ServiceError):
    code = "internal_error"


class SetupError(VisionpoolError):
    """Stops a start-up; the message is meant for the operator."""

    code = "setup_error"


class InvalidModel(SetupError):
    code = "invalid_model"


class InvalidSetting(SetupError):
    code = "invalid_setting"


class BackendUnavailable(SetupError):
    code = "backend_unavailable"


class ConnectionFailed(VisionpoolError):
    """`sent`: the server may have had the request already, in whole or in part, when the connection broke."""

    code = "connection_failed"

    def __init__(self, message: str, *, hint: str | None = None, sent: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.sent = sent


def subclasses(root: type[VisionpoolError] = VisionpoolError) -> list[type[VisionpoolError]]:
    """`root` and all classes of this module below it, parents first. What others derive from them counts as its parent."""
    ours = (child for child in root.__subclasses__() if child.__module__ == __name__)
    return [root, *(below for child in ours for below in subclasses(child))]
