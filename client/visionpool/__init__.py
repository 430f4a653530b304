"""visionpool: pictures in, typed results out. This package is what a caller of the server needs.

    import visionpool

    with visionpool.Client("http://127.0.0.1:8000") as client:
        result = client.predict("yolov8n", "street.jpg")

The same over gRPC, with streams, are `GrpcClient` and `AsyncGrpcClient`; they need `pip install 'visionpool[grpc]'`.
Results and errors are plain Python; httpx is imported with the first use of `Client` or `AsyncClient`, grpcio with
that of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from visionpool.answers import ModelInfo, Prediction
from visionpool.errors import (
    BackendUnavailable,
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    InferenceFailed,
    InternalError,
    InvalidImage,
    InvalidModel,
    InvalidOption,
    InvalidRequest,
    InvalidSetting,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    QueueFull,
    RequestError,
    RequestTimeout,
    ServiceError,
    SetupError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
    VisionpoolError,
)
from visionpool.results import (
    ClassifyResult,
    DetectionResult,
    EmbeddingResult,
    FaceDetectionResult,
    KeyPointDetectionResult,
    Mask,
    OCRResult,
    Result,
    SegmentationResult,
    result_from_dict,
)
from visionpool.tls import Tls

if TYPE_CHECKING:
    from visionpool.grpc import AsyncGrpcClient as AsyncGrpcClient
    from visionpool.grpc import GrpcClient as GrpcClient
    from visionpool.http import AsyncClient, Client

    __version__: str

# Without the gRPC clients: `from visionpool import *` must not need grpcio.
__all__ = [
    "AsyncClient",
    "BackendUnavailable",
    "Cancelled",
    "ClassifyResult",
    "Client",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DetectionResult",
    "EmbeddingResult",
    "FaceDetectionResult",
    "InferenceFailed",
    "InternalError",
    "InvalidImage",
    "InvalidModel",
    "InvalidOption",
    "InvalidRequest",
    "InvalidSetting",
    "KeyPointDetectionResult",
    "Mask",
    "MethodNotAllowed",
    "ModelInfo",
    "ModelNotFound",
    "NotFound",
    "OCRResult",
    "Prediction",
    "QueueFull",
    "RequestError",
    "RequestTimeout",
    "Result",
    "SegmentationResult",
    "ServiceError",
    "SetupError",
    "Tls",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "UnsupportedMedia",
    "VisionpoolError",
    "__version__",
    "result_from_dict",
]


_GRPC = ("GrpcClient", "AsyncGrpcClient")


def __getattr__(name: str) -> Any:
    """What is dear to import, on its first use (PEP 562)."""
    if name in ("Client", "AsyncClient"):
        from visionpool import http

        value: Any = getattr(http, name)
    elif name in _GRPC:
        from visionpool import grpc

        value = getattr(grpc, name)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_GRPC})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("visionpool")
    except PackageNotFoundError:  # run from a checkout
        return "0+unknown"
