"""`visionpool predict`: pictures through a model, without a server, or through one with --url."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import track
from visionpool.errors import InvalidImage, InvalidSetting, TooLarge, UnsupportedMedia
from visionpool.results import Result

from visionpool_server import settings as flags
from visionpool_server.cli.result_tables import table
from visionpool_server.families import Options
from visionpool_server.models.loader import Defaults

EXAMPLES = """[bold]Examples[/bold]

visionpool predict yolov8n.onnx street.jpg --save found.jpg

visionpool predict models/squeezenet *.jpg --top-k 3 --json

visionpool predict shapes scene.png                          an embedded demo model

visionpool predict yolov8n street.jpg --url http://127.0.0.1:8000"""

Ask = Callable[[Path], Result]


def predict(
    model: Annotated[
        str, typer.Argument(help="A model file or folder, a demo model's name, or with --url a served one.")
    ],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, of any format that is read.", metavar="PICTURE...")],
    save: Annotated[
        Path | None, typer.Option(help="Write the annotated picture here; with several pictures, a folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON for each picture.")] = False,
    score_threshold: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    iou_threshold: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    max_detections: Annotated[int | None, typer.Option(min=1)] = None,
    classes: Annotated[str, typer.Option(help="Only these: names or ids, with commas between.")] = "",
    compact: Annotated[
        bool | None, typer.Option("--compact", help="Masks as COCO's runs, maps of classes as PNG, in the JSON.")
    ] = None,
    score_map: Annotated[
        bool | None, typer.Option("--score-map", help="Segmentation: the score of each pixel.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Ask this server instead of loading the model here.")] = None,
    device: flags.DeviceFlag = None,
    precision: flags.PrecisionFlag = None,
    backend: flags.BackendFlag = None,
    max_pixels: flags.MaxPixelsFlag = 50_000_000,
) -> None:
    """Run pictures through a model and print, or draw, what it sees."""
    options = Options(
        score_threshold,
        iou_threshold,
        top_k,
        max_detections,
        tuple(c.strip() for c in classes.split(",") if c.strip()),
        compact,
        score_map,
    )
    target = _Target(save, several=len(pictures) > 1) if save else None
    defaults = Defaults(device, 1, precision, backend)
    opened = _served(url, model, options) if url else _loaded(model, options, defaults, max_pixels)
    console = Console(highlight=False)
    with opened as ask:
        shown = track(pictures, "predicting", console=Console(stderr=True), transient=True, disable=len(pictures) < 3)
        for picture in shown:
            try:
                result = ask(picture)
            except (InvalidImage, TooLarge, UnsupportedMedia) as error:
                error.message = f"{picture}: {error.message}"
                raise
            if as_json:
                typer.echo(orjson.dumps({"picture": str(picture), **result.to_dict()}))
            else:
                console.print(str(picture), style="bold", markup=False, soft_wrap=True)
                console.print(table(result))
            if target:
                target.write(picture, result, max_pixels)


@contextmanager
def _loaded(model: str, options: Options, defaults: Defaults, max_pixels: int) -> Iterator[Ask]:
    """Predicts in this process, by the very flow that the server uses."""
    from visionpool_server import service as serving
    from visionpool_server.app import DEMO_MODELS, offline

    path = Path(model)
    if not path.exists() and (DEMO_MODELS / model).is_dir():
        path = DEMO_MODELS / model
    with offline([path], defaults, max_pixels=max_pixels) as service, asyncio.Runner() as runner:
        loaded = [model for model in service.models if not model.part_of]
        if len(loaded) != 1:
            names = ", ".join(m.name for m in loaded)
            raise InvalidSetting(f"{path} holds several models: {names}", hint="name one of them")

        def ask(picture: Path) -> Result:
            work = service.predict(loaded[0], _read(picture), serving.Ask(options))
            return runner.run(work).result

        yield ask


@contextmanager
def _served(url: str, model: str, options: Options) -> Iterator[Ask]:
    import visionpool

    given: dict[str, Any] = options.given()
    with visionpool.Client(url) as client:
        yield lambda picture: client.predict(model, _read(picture), **given)


def _read(picture: Path) -> bytes:
    try:
        return picture.read_bytes()
    except OSError as error:
        raise InvalidImage(os.strerror(error.errno or 0).lower()) from error


class _Target:
    """Where annotated pictures go: a file for one picture, a folder for several."""

    def __init__(self, path: Path, *, several: bool) -> None:
        if several and path.suffix:
            raise InvalidSetting(f"--save {path} is one file for several pictures", hint="name a folder")
        self._path = path
        self._stems: list[str] = []
        self._folder = several or path.is_dir()
        if not self._folder and path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            raise InvalidSetting(f"--save {path}: the name must end in .jpg or .png")

    def write(self, picture: Path, result: Result, max_pixels: int) -> None:
        from visionpool_server.imaging.decode import decode
        from visionpool_server.imaging.draw import draw, encode

        path = self._path / self._name(picture) if self._folder else self._path
        annotated = draw(decode(picture.read_bytes(), max_pixels=max_pixels), result)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(annotated, "png" if path.suffix.lower() == ".png" else "jpeg"))
        except OSError as error:
            raise InvalidSetting(f"--save {path}: {os.strerror(error.errno or 0).lower()}") from error

    def _name(self, picture: Path) -> str:
        """`street.jpg`; `street-2.jpg` for a second street, of another folder or format."""
        same = self._stems.count(picture.stem)
        self._stems.append(picture.stem)
        return f"{picture.stem}-{same + 1}.jpg" if same else f"{picture.stem}.jpg"
