"""`visionpool evaluate`: how good a model is on pictures of which the truth is known, and where two models differ."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from visionpool.errors import InvalidSetting

from visionpool_server import settings as flags
from visionpool_server.backends import Precision
from visionpool_server.families import Options
from visionpool_server.models.loader import Defaults

if TYPE_CHECKING:
    from visionpool_server.evaluation import Comparison, Dataset, Report, Settings, Subject
    from visionpool_server.evaluation.run import Progress as OnProgress

Format = Literal[
    "coco", "masks", "yolo", "csv", "text", "mask-list", "list", "folders", "pictures"
]  # of evaluation.datasets

EXAMPLES = """[bold]Examples[/bold]

visionpool evaluate yolov8n.onnx coco/ --plot curves.png

visionpool evaluate models/squeezenet imagenet/val.csv --json -

visionpool evaluate yolov8n yolo/data.yaml --url http://127.0.0.1:8000

visionpool evaluate yolov8n.onnx coco/ --against yolov8n_int8/ --save-worst differ/

visionpool evaluate yolov8n.onnx pictures/ --against-precision bf16      no labels needed"""

_DATASET, _OUTPUT, _AGAINST, _MODEL = "Data set", "Output", "Comparison", "Model"
_STDOUT = "-"


def evaluate(
    model: Annotated[
        str, typer.Argument(help="A model file or folder, a demo model's name, or with --url a served one.")
    ],
    dataset: Annotated[
        Path, typer.Argument(help="COCO's json, YOLO's labels, masks, a csv, lines of text, or folders of classes.")
    ],
    url: Annotated[
        str | None, typer.Option(help="Ask this server instead of loading the model here.", rich_help_panel=_MODEL)
    ] = None,
    device: flags.DeviceFlag = None,
    precision: flags.PrecisionFlag = None,
    backend: flags.BackendFlag = None,
    workers: flags.WorkersFlag = None,
    score_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Detection: .001 unless said.", rich_help_panel=_MODEL)
    ] = None,
    iou_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="The model's own unless said.", rich_help_panel=_MODEL)
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, help="300 unless said; mAP counts the best 100.", rich_help_panel=_MODEL)
    ] = None,
    max_pixels: flags.MaxPixelsFlag = 50_000_000,
    cache_dir: flags.CacheDirFlag = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare with this model, picture by picture: a file, folder or demo model, or URL#NAME.",
            rich_help_panel=_AGAINST,
        ),
    ] = None,
    against_precision: Annotated[
        Precision | None,
        typer.Option(
            help="Its precision; without --against: compare with MODEL itself in this.", rich_help_panel=_AGAINST
        ),
    ] = None,
    against_device: Annotated[str | None, typer.Option(help="Likewise, its device.", rich_help_panel=_AGAINST)] = None,
    against_backend: Annotated[
        str | None, typer.Option(help="Likewise, its runtime.", rich_help_panel=_AGAINST)
    ] = None,
    worst: Annotated[
        int,
        typer.Option(
            min=0,
            help="List so many pictures: of two models those on which they differ most, of one its mistakes.",
            rich_help_panel=_AGAINST,
        ),
    ] = 10,
    worst_folder: Annotated[
        Path | None,
        typer.Option("--save-worst", help="Draw these, both side by side, into this folder.", rich_help_panel=_AGAINST),
    ] = None,
    compared: Annotated[
        float,
        typer.Option(
            "--compare-from", min=0, max=1, help="Compare objects from this score on.", rich_help_panel=_AGAINST
        ),
    ] = 0.25,
    read_as: Annotated[
        Format | None,
        typer.Option("--format", help="What it is, where that is not seen.", rich_help_panel=_DATASET),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Where the pictures are, if not beside the labels.", rich_help_panel=_DATASET)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pictures.", rich_help_panel=_DATASET)] = None,
    by_index: Annotated[
        bool,
        typer.Option("--by-index", help="Match classes by number, whatever they are called.", rich_help_panel=_DATASET),
    ] = False,
    ignored: Annotated[
        int,
        typer.Option(
            "--ignore", help="Value of pixels in masks that do not count; -1: none.", rich_help_panel=_DATASET
        ),
    ] = 255,
    ignore_case: Annotated[
        bool, typer.Option("--ignore-case", help="Text: a and A are the same.", rich_help_panel=_DATASET)
    ] = False,
    ignore_spaces: Annotated[
        bool, typer.Option("--ignore-spaces", help="Text: spaces do not count.", rich_help_panel=_DATASET)
    ] = False,
    as_json: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE|-",
            help="Write JSON here; - for stdout, instead of the table.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write curves, or what is taken for what, as a PNG.", rich_help_panel=_OUTPUT)
    ] = None,
    classes: Annotated[
        int, typer.Option(min=0, help="List so many classes in the table.", rich_help_panel=_OUTPUT)
    ] = 20,
) -> None:
    """Measure a model on labelled pictures: mAP, top-1, mIoU or CER; or compare two models, picture by picture."""
    from visionpool_server import evaluation
    from visionpool_server.evaluation.plots import check_plot, save_plot

    if plot:
        check_plot(plot)
    options = Options(score_threshold, iou_threshold, None, max_detections)
    settings = evaluation.Settings(options, by_index, ignored, ignore_case, ignore_spaces, compared)
    defaults = Defaults(device, workers, precision, backend, cache_dir)
    first = _Model(model, url, defaults, max_pixels)
    second = _rival(first, against, against_device, against_precision, against_backend)
    if worst_folder and second is None:
        raise InvalidSetting("--save-worst means nothing without --against", hint="name the other model")
    data = evaluation.read_dataset(dataset, read_as, images).limited(limit)
    with first.opened() as subject:
        if second is None:
            found: Report | Comparison = _measured(subject, data, settings)
        else:
            found = _compared(subject, second, data, settings, worst_folder, worst)
    _show(found, as_json, classes, worst)
    if plot:
        save_plot(plot, found)


@dataclass(frozen=True, slots=True)
class _Model:
    """Where a model is to be had; `url`: the server that has it."""

    name: str
    url: str | None
    defaults: Defaults
    max_pixels: int

    def opened(self) -> AbstractContextManager[Subject]:
        from visionpool_server.evaluation import open_model, open_served

        if self.url:
            return open_served(self.url, self.name)
        return open_model(self.name, self.defaults, max_pixels=self.max_pixels)


def _rival(
    first: _Model, against: str | None, device: str | None, precision: Precision | None, backend: str | None
) -> _Model | None:
    """The model to compare with: another, or the first in another way; None where neither is asked for."""
    if not (against or device or precision or backend):
        return None
    said = first.defaults
    defaults = replace(
        said, device=device or said.device, precision=precision or said.precision, backend=backend or said.backend
    )
    name, url = _address(against) if against else (first.name, first.url)
    if url and (device or precision or backend):
        raise InvalidSetting(
            "--against-... say how a model is run here, and a server runs this one", hint="leave them out"
        )
    return replace(first, name=name, url=url, defaults=defaults)


def _address(rival: str) -> tuple[str, str | None]:
    """The model's name, and the server that has it where it is URL#NAME."""
    if not rival.startswith(("http://", "https://")):
        return rival, None
    server, _, name = rival.partition("#")
    if not name:
        raise InvalidSetting(f"--against {rival} names no model", hint=f"say {server}#NAME")
    return name, server


def _measured(subject: Subject, data: Dataset, settings: Settings) -> Report:
    from visionpool_server.evaluation import evaluate as measure

    with _progress(f"evaluating {subject.name}", len(data.samples)) as progress:
        return measure(subject, data, settings, progress)


def _compared(
    first: Subject, rival: _Model, data: Dataset, settings: Settings, folder: Path | None, worst: int
) -> Comparison:
    from visionpool_server.evaluation import compare
    from visionpool_server.evaluation.worst import save_worst

    with rival.opened() as second:
        with _progress(f"comparing {first.name} and {second.name}", len(data.samples)) as progress:
            found = compare(first, second, data, settings, progress)
        if folder:
            pair = (first, second)
            save_worst(folder, found, pair, data, settings, count=worst, max_pixels=rival.max_pixels)
    return found


@contextmanager
def _progress(what: str, total: int) -> Iterator[OnProgress]:
    """A bar on stderr, which is gone in the end; nothing where that is no terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _show(found: Report | Comparison, as_json: str | None, classes: int, worst: int) -> None:
    from visionpool_server.evaluation import Comparison
    from visionpool_server.evaluation.tables import comparison_table, report_table

    data = orjson.dumps(found.to_dict(), option=orjson.OPT_INDENT_2) + b"\n" if as_json else b""
    if as_json == _STDOUT:
        sys.stdout.write(data.decode())
        return
    console = Console(highlight=False)  # before any file is written: what was measured is seen even where that fails
    console.print(
        comparison_table(found, classes, worst)
        if isinstance(found, Comparison)
        else report_table(found, classes, worst)
    )
    if as_json:
        _write_json(as_json, data)


def _write_json(target: str, data: bytes) -> None:
    try:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).write_bytes(data)
    except OSError as error:
        raise InvalidSetting(f"--json {target}: {os.strerror(error.errno or 0).lower()}") from error
