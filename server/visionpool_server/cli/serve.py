"""`visionpool serve`: flags to settings, and the start-up output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from visionpool.errors import VisionpoolError

from visionpool_server import settings as flags
from visionpool_server.api.answers import steps_of
from visionpool_server.models.loader import Defaults, Model

EXAMPLES = """[bold]Examples[/bold]

visionpool serve                           the embedded demo models, shapes and digits

visionpool serve yolov8n.onnx              an Ultralytics export: nothing to configure

visionpool serve models/ --http-port 9000  every model of a folder

visionpool serve models/ --host 0.0.0.0 --http-port 80 --grpc-port 9001 --grpc-max-connection-age 300

visionpool serve models/ --model-control-mode explicit --load-model street --load-model shelf

visionpool serve yolov8n.onnx --device HETERO:GPU,CPU --precision f16

visionpool serve yolov8n.onnx --device cuda:0

Every option is also read from the environment, as VISIONPOOL_HTTP_PORT and so on."""


def serve(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            envvar="VISIONPOOL_MODELS",
            show_default=False,
            metavar="MODEL|FOLDER|REPOSITORY",
            help="Model files, folders with one model, or folders of those. None: the embedded demo models.",
        ),
    ] = None,
    host: flags.HostFlag = "127.0.0.1",
    http_port: flags.HttpPortFlag = 8000,
    grpc_port: flags.GrpcPortFlag = 8001,
    grpc_max_connection_age: flags.ConnectionAgeFlag = None,
    model_control_mode: flags.ControlFlag = "none",
    load_model: flags.LoadModelFlag = None,
    trace_dir: flags.TraceDirFlag = None,
    system_shared_memory: flags.SharedMemoryFlag = True,
    device: flags.DeviceFlag = None,
    workers: flags.WorkersFlag = None,
    precision: flags.PrecisionFlag = None,
    backend: flags.BackendFlag = None,
    cache_dir: flags.CacheDirFlag = None,
    max_pixels: flags.MaxPixelsFlag = 50_000_000,
    max_body_mb: flags.MaxBodyFlag = 64,
    body_timeout: flags.BodyTimeoutFlag = 30.0,
    allow_urls: flags.AllowUrlsFlag = None,
    tls_cert: flags.TlsCertFlag = None,
    tls_key: flags.TlsKeyFlag = None,
    tls_client_ca: flags.TlsClientCaFlag = None,
    api_keys: flags.ApiKeysFlag = None,
    drain_delay: flags.DrainDelayFlag = 0.0,
    grace_period: flags.GracePeriodFlag = 30.0,
    metrics_port: flags.MetricsPortFlag = None,
    log_level: flags.LogLevelFlag = "info",
    log_format: flags.LogFormatFlag = "text",
    access_log: flags.AccessLogFlag = None,
) -> None:
    """Serve models over HTTP and gRPC until SIGTERM or Ctrl-C."""
    from visionpool_server.app import App
    from visionpool_server.cli.logged_progress import LoggedProgress, report_failure
    from visionpool_server.logs import set_up

    set_up(log_level, log_format)
    wanted = flags.Settings(
        models=tuple(models or ()),
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        log_level=log_level,
        defaults=Defaults(device, workers, precision, backend, cache_dir),
        max_pixels=max_pixels,
        max_body_bytes=max_body_mb * 2**20,
        body_timeout=body_timeout,
        allow_urls=tuple(allow_urls or ()),
        grpc_max_connection_age=grpc_max_connection_age,
        model_control=model_control_mode,
        load_models=tuple(load_model or ()),
        trace_dir=trace_dir,
        system_shared_memory=system_shared_memory,
        drain_delay=drain_delay,
        grace_period=grace_period,
        metrics_port=metrics_port,
        access_log=log_format == "json" if access_log is None else access_log,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        api_keys=api_keys,
    )
    progress = LoggedProgress() if log_format == "json" else _Progress()
    try:
        App(wanted, on_loaded=progress.loaded, on_ready=progress.ready).run()
    except VisionpoolError as error:
        if log_format == "text":
            raise
        report_failure(error)
        raise typer.Exit(1) from error


class _Progress:
    """Says on stdout what is served, where, on which device, and how to try it."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._first: Model | None = None

    def loaded(self, model: Model) -> None:
        self._first = self._first or model
        for part in model.parts:
            self._tell(part)
        self._tell(model)

    def _tell(self, model: Model) -> None:
        places = [f"steps: {', '.join(steps_of(model).values())}"] if model.pipeline else []
        for group, placement in zip(model.pool.groups, model.pool.placements, strict=True):
            workers = f"{group.count} worker{'s' if group.count > 1 else ''}"
            places.append(f"{placement.backend} {placement.device} {placement.precision}, {workers}")
        self._console.print(
            f"  {model.name}  {model.task} ({model.family_name}, from {model.source})  {'; '.join(places)}",
            markup=False,
        )
        for advice in (model.advice, *(placement.advice for placement in model.pool.placements)):
            if advice:
                self._console.print(f"      {advice}", markup=False, style="yellow")

    def ready(self, url: str, grpc_address: str, metrics_url: str) -> None:
        name = self._first.name if self._first else "MODEL"
        self._console.print(f"visionpool is ready at {url}", style="bold green")
        self._console.print(f"  gRPC                {grpc_address}")
        if metrics_url:
            self._console.print(f"  metrics             {metrics_url}")
        self._console.print(f"  API documentation   {url}/docs")
        if self._first is None or self._first.taking_pictures is None:
            self._console.print(f"  metadata            curl {url}/v2/models/{name}")
            return
        self._console.print(
            f"  try it              curl --data-binary @picture.jpg -H 'Content-Type: image/jpeg' {url}/v1/models/{name}/predict"
        )
