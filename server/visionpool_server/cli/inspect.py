"""`visionpool inspect`: what a model is, what it costs, and where it would run, without serving it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from visionpool.errors import InvalidSetting

from visionpool_server import settings as flags

EXAMPLES = """[bold]Examples[/bold]

visionpool inspect yolov8n.onnx                             what it is, what it takes, what it costs

visionpool inspect models/shelf --device HETERO:GPU,CPU     which operators the GPU lacks, and what to set

visionpool inspect shapes --run --seconds 10                an embedded demo model, timed by operator

visionpool inspect yolov8n.onnx --json | jq .cost.flops     the same for programs: docs/inspect.md"""


def inspect(
    model: Annotated[str, typer.Argument(help="A model file or folder, or a demo model's name.")],
    device: Annotated[
        str | None,
        typer.Option(
            help="CPU, GPU, GPU.1, NPU, AUTO, HETERO:GPU,CPU, cuda:0 ...; it wins over model.yaml. Unset: what that says, else "
            "CPU, and cuda:0 for TensorRT."
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="openvino, onnxruntime or tensorrt; it wins over model.yaml.", show_default=False)
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Load it and measure: latency, throughput, time by operator.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="How long --run measures.")] = 6.0,
    as_json: Annotated[bool, typer.Option("--json", help="The whole report as JSON, exact.")] = False,
    cache_dir: flags.CacheDirFlag = None,
) -> None:
    """Show what a model is, where it would run, what it costs, and what to set."""
    from visionpool_server.app import DEMO_MODELS
    from visionpool_server.cli.inspection_tables import show
    from visionpool_server.inspection.inspector import inspect_model
    from visionpool_server.models.files import find_models

    path = Path(model)
    if not path.exists() and (DEMO_MODELS / model).is_dir():
        path = DEMO_MODELS / model
    found = find_models(path)
    if len(found) != 1:
        names = ", ".join(files.name for files in found)
        raise InvalidSetting(f"{path} holds several models: {names}", hint="name one of them")
    report = inspect_model(found[0], device, backend, seconds if run else None, cache_dir)
    if as_json:
        typer.echo(report.json().decode())
    else:
        show(report)
