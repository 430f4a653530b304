"""Every flag of `visionpool serve`, each with its twin in the environment: the only place that declares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

from visionpool_server.backends import Precision
from visionpool_server.models.loader import Defaults

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
ModelControl = Literal["none", "explicit"]


_SERVER, _MODELS, _LIMITS = "Server", "Models (what a model.yaml says wins)", "Limits"
_SECURITY, _OPERATION = "Security", "Operation"

HostFlag = Annotated[
    str,
    typer.Option("--host", envvar="VISIONPOOL_HOST", help="Address to listen on.", rich_help_panel=_SERVER),
]
HttpPortFlag = Annotated[
    int,
    typer.Option(
        envvar="VISIONPOOL_HTTP_PORT",
        min=0,
        max=65535,
        help="For HTTP; 0 picks a free one.",
        rich_help_panel=_SERVER,
    ),
]
GrpcPortFlag = Annotated[
    int,
    typer.Option(
        envvar="VISIONPOOL_GRPC_PORT",
        min=0,
        max=65535,
        help="For gRPC; 0 picks a free one.",
        rich_help_panel=_SERVER,
    ),
]
ConnectionAgeFlag = Annotated[
    float | None,
    typer.Option(
        "--grpc-max-connection-age",
        envvar="VISIONPOOL_GRPC_MAX_CONNECTION_AGE",
        min=1,
        help="Seconds after which gRPC clients are asked to connect anew, so that new replicas get their share; calls under "
        "way then have 60 s more. Unset: never.",
        rich_help_panel=_SERVER,
    ),
]
ControlFlag = Annotated[
    ModelControl,
    typer.Option(
        "--model-control-mode",
        envvar="VISIONPOOL_MODEL_CONTROL_MODE",
        help="none: all models are loaded at the start, for good. explicit: clients load and unload them by POST "
        "/v2/repository/models/NAME/load and /unload, or RepositoryModelLoad and RepositoryModelUnload; at the start come "
        "those that --load-model names.",
        rich_help_panel=_SERVER,
    ),
]
LoadModelFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--load-model",
        envvar="VISIONPOOL_LOAD_MODEL",
        help="With explicit control: a model to load at the start; '*', in quotes, for all. May be given again.",
        rich_help_panel=_SERVER,
    ),
]
TraceDirFlag = Annotated[
    Path | None,
    typer.Option(
        "--trace-dir",
        envvar="VISIONPOOL_TRACE_DIR",
        help="Folder for the traces that clients switch on by POST /v2/trace/setting, or TraceSetting. Unset: they cannot.",
        rich_help_panel=_SERVER,
    ),
]
SharedMemoryFlag = Annotated[
    bool,
    typer.Option(
        envvar="VISIONPOOL_SYSTEM_SHARED_MEMORY",
        help="Whether KServe's clients may pass tensors through POSIX shared memory. Whoever reaches the ports can then read "
        "and write all of /dev/shm that the server can.",
        rich_help_panel=_SERVER,
    ),
]
LogLevelFlag = Annotated[
    LogLevel,
    typer.Option(
        envvar="VISIONPOOL_LOG_LEVEL",
        help="What goes to stderr: this and what is worse.",
        rich_help_panel=_OPERATION,
    ),
]
LogFormatFlag = Annotated[
    LogFormat,
    typer.Option(
        envvar="VISIONPOOL_LOG_FORMAT",
        help="text for people, json for what collects logs: one object a line.",
        rich_help_panel=_OPERATION,
    ),
]
AccessLogFlag = Annotated[
    bool | None,
    typer.Option(
        envvar="VISIONPOOL_ACCESS_LOG",
        help="A line for each request: who, what, how it ended, how long it took. Unset: with --log-format json only.",
        rich_help_panel=_OPERATION,
    ),
]
MetricsPortFlag = Annotated[
    int | None,
    typer.Option(
        envvar="VISIONPOOL_METRICS_PORT",
        min=0,
        max=65535,
        help="Serves /metrics and /health on a port of their own, without TLS or keys, for Prometheus and probes; 0 picks a "
        "free one. Unset: /metrics is on the HTTP port.",
        rich_help_panel=_OPERATION,
    ),
]
DrainDelayFlag = Annotated[
    float,
    typer.Option(
        envvar="VISIONPOOL_DRAIN_DELAY",
        min=0,
        help="Seconds after SIGTERM in which the server says that it is not ready, and goes on taking requests: the time that "
        "load balancers need to notice.",
        rich_help_panel=_OPERATION,
    ),
]
GracePeriodFlag = Annotated[
    float,
    typer.Option(
        envvar="VISIONPOOL_GRACE_PERIOD",
        min=0,
        help="Seconds that requests in flight get after that, before they are cut off. A second signal ends at once.",
        rich_help_panel=_OPERATION,
    ),
]
TlsCertFlag = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        envvar="VISIONPOOL_TLS_CERT",
        help="PEM file with the server's certificate and those that lead to its issuer: HTTPS, and gRPC over TLS. It is read "
        "again when it changes.",
        rich_help_panel=_SECURITY,
    ),
]
TlsKeyFlag = Annotated[
    Path | None,
    typer.Option(
        "--tls-key",
        envvar="VISIONPOOL_TLS_KEY",
        help="PEM file with its private key.",
        rich_help_panel=_SECURITY,
    ),
]
TlsClientCaFlag = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca",
        envvar="VISIONPOOL_TLS_CLIENT_CA",
        help="PEM file with the issuers of clients' certificates: who shows none is turned away.",
        rich_help_panel=_SECURITY,
    ),
]
ApiKeysFlag = Annotated[
    Path | None,
    typer.Option(
        "--api-keys",
        envvar="VISIONPOOL_API_KEYS",
        help="File with the keys that callers must show one of (Authorization: Bearer KEY, or X-API-Key): a line for each, KEY "
        "or NAME:KEY. It is read again when it changes. Health checks need none.",
        rich_help_panel=_SECURITY,
    ),
]
DeviceFlag = Annotated[
    str | None,
    typer.Option(
        envvar="VISIONPOOL_DEVICE",
        help="CPU, GPU, GPU.1, NPU, AUTO, HETERO:GPU,CPU (OpenVINO); cuda:0, cuda:1 (NVIDIA, by TensorRT or onnxruntime). Unset: "
        "CPU, and cuda:0 for TensorRT.",
        rich_help_panel=_MODELS,
    ),
]
WorkersFlag = Annotated[
    int | None,
    typer.Option(
        envvar="VISIONPOOL_WORKERS",
        min=1,
        max=256,
        help="Inferences at once, for each model; unset: what its device runs best.",
        rich_help_panel=_MODELS,
    ),
]
PrecisionFlag = Annotated[
    Precision | None,
    typer.Option(
        envvar="VISIONPOOL_PRECISION",
        help="Unset: f32 on the CPU, as in the file on NVIDIA's GPUs, elsewhere the device's own.",
        rich_help_panel=_MODELS,
    ),
]
BackendFlag = Annotated[
    str | None,
    typer.Option(
        envvar="VISIONPOOL_BACKEND",
        help="openvino, onnxruntime or tensorrt; models on a remote server say so in their model.yaml. Unset: what is installed "
        "of tensorrt and onnxruntime for cuda:N, and of openvino and onnxruntime for other devices.",
        rich_help_panel=_MODELS,
    ),
]
CacheDirFlag = Annotated[
    Path | None,
    typer.Option(
        envvar="VISIONPOOL_CACHE_DIR",
        help="Keeps compiled and converted models, for a fast next start.",
        rich_help_panel=_MODELS,
    ),
]
MaxPixelsFlag = Annotated[
    int,
    typer.Option(
        envvar="VISIONPOOL_MAX_PIXELS",
        min=1,
        help="Larger pictures are refused before they are decoded.",
        rich_help_panel=_LIMITS,
    ),
]
MaxBodyFlag = Annotated[
    int,
    typer.Option(
        "--max-body-mb",
        envvar="VISIONPOOL_MAX_BODY_MB",
        min=1,
        help="Larger HTTP bodies, gRPC messages, and tensors in shared memory are refused.",
        rich_help_panel=_LIMITS,
    ),
]
BodyTimeoutFlag = Annotated[
    float,
    typer.Option(
        envvar="VISIONPOOL_BODY_TIMEOUT",
        min=0.1,
        help="Seconds that a client may take to send an HTTP body; for gRPC its deadline holds.",
        rich_help_panel=_LIMITS,
    ),
]
AllowUrlsFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-urls",
        envvar="VISIONPOOL_ALLOW_URLS",
        help="Prefix of picture URLs that the server may fetch for a caller, such as https://img.example.com/. "
        "May be given again. None: URLs are refused.",
        rich_help_panel=_LIMITS,
    ),
]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server is started with. `models` empty: the embedded demo models."""

    models: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    log_level: str = "info"
    defaults: Defaults = field(default_factory=Defaults)
    max_pixels: int = 50_000_000
    max_body_bytes: int = 64 * 2**20
    body_timeout: float = 30.0  # seconds
    allow_urls: tuple[str, ...] = ()
    grpc_max_connection_age: float | None = None  # seconds
    model_control: ModelControl = "none"
    load_models: tuple[str, ...] = ()  # with explicit control; * is all
    trace_dir: Path | None = None
    system_shared_memory: bool = True
    drain_delay: float = 0.0  # seconds
    grace_period: float = 30.0  # seconds
    metrics_port: int | None = None
    access_log: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    api_keys: Path | None = None
