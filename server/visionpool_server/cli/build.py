"""`visionpool build`: a wish from flags, progress on stderr, the report as a table or as JSON on stdout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from visionpool_server import settings as flags
from visionpool_server.backends import Precision

if TYPE_CHECKING:
    from visionpool_server.building import Notify, Report
    from visionpool_server.building.pictures import Skipped

EXAMPLES = """[bold]Examples[/bold]

visionpool build yolov8n.onnx --precision int8 --calibration pictures/ -o yolov8n-int8

visionpool build yolov8n.onnx --precision int8 --calibration pictures/ --dataset coco/ -o yolov8n-int8

visionpool build models/squeezenet --precision f16 -o models/squeezenet-f16

visionpool build yolov8n.onnx --backend tensorrt --precision f16 -o yolov8n-f16

visionpool serve yolov8n-int8               the bundle serves as it is"""

_SHOWN_SKIPPED = 5
_TITLES = {
    "boxes_matched_50": "boxes found by both, IoU ≥ .5",
    "boxes_matched_75": "boxes found by both, IoU ≥ .75",
    "mean_score_difference": "mean difference of scores",
    "boxes": "boxes, of either model",
    "top1_agreement": "same best class",
    "pixel_agreement": "pixels of the same class",
    "mean_point_distance": "mean distance of points, of a box's size",
    "same_text": "pictures read alike",
    "text_similarity": "likeness of texts",
    "mean_cosine": "mean cosine of embeddings",
    "max_relative_error": "largest error, of the largest value",
    "mean_relative_error": "mean error, of the mean value",
}
_SHARES = {"boxes_matched_50", "boxes_matched_75", "top1_agreement", "pixel_agreement", "same_text", "text_similarity"}


def build(
    model: Annotated[Path, typer.Argument(help="A model file or folder, or a demo model's name.", show_default=False)],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The folder to write, which serves as it is.", show_default=False)
    ],
    precision: Annotated[
        Precision,
        typer.Option(
            help="int8: quantised on the calibration pictures. f16: weights of half the size. bf16 (OpenVINO's alone), f32: "
            "weights as they are, and computed so where the device can."
        ),
    ] = "int8",
    backend: Annotated[
        Literal["openvino", "tensorrt"],
        typer.Option(
            help="openvino: for Intel's devices, and CPUs. tensorrt: for NVIDIA's GPUs, from ONNX; none need be here."
        ),
    ] = "openvino",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures like those to come; a few hundred do.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Pictures to calibrate with, at most.")] = 300,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="A labelled data set, as for visionpool evaluate: both models are scored on it.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    device: flags.DeviceFlag = None,
    max_pixels: flags.MaxPixelsFlag = 50_000_000,
    cache_dir: flags.CacheDirFlag = None,
) -> None:
    """Build a model in another precision, and measure what that gains and costs."""
    from visionpool_server.building import Wish
    from visionpool_server.building import build as build_bundle

    wish = Wish(
        *(model, out, precision, calibration, samples, dataset, device),
        backend=backend,
        max_pixels=max_pixels,
        cache_dir=cache_dir,
    )
    with _progress() as notify:
        report = build_bundle(wish, notify)
    if as_json:
        typer.echo(orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2).decode())
    else:
        _show(report)


@contextmanager
def _progress() -> Iterator[Notify]:
    """One line a step on stderr: a bar where the amount is known, else a count; gone in the end."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None)
        current = ""

        def notify(step: str, done: int, total: int | None) -> None:
            nonlocal current
            if step != current:
                current = step
                progress.reset(task, total=total, description=step)
            progress.update(task, completed=done, total=total)

        yield notify


def _show(report: Report) -> None:
    console = Console(highlight=False)
    console.print(table(report))
    console.print(agreement(report))
    if report.pictures:
        _show_pictures(console, len(report.pictures.calibration), report.pictures.skipped)
    for note in report.notes:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    console.print(f"serve it: visionpool serve {report.out}", style="bold green", markup=False, soft_wrap=True)


def _show_pictures(console: Console, count: int, skipped: tuple[Skipped, ...]) -> None:
    console.print(f"calibrated on {count} picture{'s' if count != 1 else ''}", markup=False)
    for item in skipped[:_SHOWN_SKIPPED]:
        console.print(f"skipped {item.path}: {item.reason}", style="yellow", markup=False, soft_wrap=True)
    if len(skipped) > _SHOWN_SKIPPED:
        console.print(f"and {len(skipped) - _SHOWN_SKIPPED} more; --json names all", style="yellow", markup=False)


def table(report: Report) -> Table:
    """What it gained: size, speed, and where a data set was given, accuracy."""
    from visionpool_server.evaluation.report import TITLES

    shown = Table(title=f"{report.model}, {report.device}", title_justify="left", min_width=60)
    shown.add_column("", no_wrap=True)
    for title in (report.before, report.after, "change"):
        shown.add_column(title, justify="right", no_wrap=True)
    size, speed = report.size, report.speed
    shown.add_row(
        "weights, MB", f"{size.before / 1e6:.2f}", f"{size.after / 1e6:.2f}", f"x {size.after / size.before:.2f}"
    )
    if speed:
        spread = f"x {speed.ratio:.2f} ({speed.lowest:.2f} to {speed.highest:.2f})"
        shown.add_row("inferences/s", f"{speed.before:.1f}", f"{speed.after:.1f}", spread)
    for name, (before, after) in (report.scored.figures if report.scored else {}).items():
        shown.add_row(TITLES.get(name, name), f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
    return shown


def agreement(report: Report) -> Table:
    """How alike the two answer."""
    compared = report.compared
    shown = Table(
        title=f"both on {compared.count} {compared.on}", title_justify="left", min_width=60, show_header=False
    )
    shown.add_column("", no_wrap=True)
    shown.add_column("", justify="right", no_wrap=True)
    for name, value in compared.figures.items():
        text = f"{value:.1%}" if name in _SHARES else f"{value:.0f}" if name == "boxes" else f"{value:.4f}"
        shown.add_row(_TITLES.get(name, name), text)
    return shown
