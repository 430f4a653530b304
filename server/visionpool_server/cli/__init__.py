"""The command `visionpool`: one file a subcommand."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console
from visionpool.errors import VisionpoolError

from visionpool_server.cli.build import EXAMPLES as BUILD_EXAMPLES
from visionpool_server.cli.build import build
from visionpool_server.cli.evaluate import EXAMPLES as EVALUATE_EXAMPLES
from visionpool_server.cli.evaluate import evaluate
from visionpool_server.cli.inspect import EXAMPLES as INSPECT_EXAMPLES
from visionpool_server.cli.inspect import inspect
from visionpool_server.cli.predict import EXAMPLES as PREDICT_EXAMPLES
from visionpool_server.cli.predict import predict
from visionpool_server.cli.serve import EXAMPLES as SERVE_EXAMPLES
from visionpool_server.cli.serve import serve

EXAMPLES = """[bold]Examples[/bold]

visionpool serve                            the embedded demo models, shapes and digits

visionpool serve yolov8n.onnx               an exported model: nothing to configure

visionpool predict yolov8n.onnx street.jpg  one picture, without a server"""

app = typer.Typer(
    name="visionpool",
    help="Serve exported vision models: pictures in, typed results out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=SERVE_EXAMPLES)(serve)
app.command(epilog=PREDICT_EXAMPLES)(predict)
app.command(epilog=EVALUATE_EXAMPLES)(evaluate)
app.command(epilog=INSPECT_EXAMPLES)(inspect)
app.command(epilog=BUILD_EXAMPLES)(build)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"visionpool {version('visionpool')}")
        raise typer.Exit


@app.callback(epilog=EXAMPLES)
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Serve exported vision models: pictures in, typed results out."""


def main() -> None:
    """Runs the command line; an error of ours is one clear line on stderr and exit status 1."""
    try:
        app()
    except VisionpoolError as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print("error:", error.message, style="bold red", markup=False, highlight=False)
        if error.hint:
            console.print("hint:", error.hint, markup=False, highlight=False)
        sys.exit(1)
