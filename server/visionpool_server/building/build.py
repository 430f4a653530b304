"""The whole of a build, from the original to the report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from numpy.typing import NDArray
from visionpool.errors import InvalidSetting

from visionpool_server.backends import Placement, Precision
from visionpool_server.building import agreement
from visionpool_server.building.accuracy import score
from visionpool_server.building.bundle import write_bundle
from visionpool_server.building.pictures import Pictures, choose
from visionpool_server.building.progress import Notify, silent, told
from visionpool_server.building.report import Compared, Report, Size, size_of
from visionpool_server.building.runner import Runner
from visionpool_server.building.speed import race
from visionpool_server.building.subject import Subject, opened

if TYPE_CHECKING:
    from visionpool_server.evaluation import Dataset

BUILDERS = {
    "openvino": "visionpool_server.building.openvino",
    "tensorrt": "visionpool_server.building.tensorrt",
}
_AS_IN_FILE = "as in the file"  # a placement's precision, of runtimes that do not choose one
_NOISE = 8  # made-up inputs to compare on where no picture is given


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be built. `samples`: pictures to calibrate with, at most. `device`: to measure on; None: the backend's usual."""

    model: Path
    out: Path
    precision: Precision
    calibration: Path | None = None
    samples: int = 300
    dataset: Path | None = None
    device: str | None = None
    backend: str = "openvino"
    max_pixels: int = 50_000_000
    cache_dir: Path | None = None


class Builder(Protocol):
    """A module of BUILDERS."""

    PRECISIONS: tuple[Precision, ...]

    def runner(self, device: str | None) -> Runner:
        """What both models are run by. Raises BackendUnavailable for a device that is not there, InvalidSetting for one of
        another runtime."""

    def check_file(self, weights: Path) -> None:
        """Raises InvalidModel for a file that is none to build from, before it is loaded."""

    def check(self, subject: Subject, precision: Precision) -> None:
        """Raises InvalidModel for a model that cannot be built so, before anything is spent on it."""

    def write(
        self, subject: Subject, folder: Path, precision: Precision, pictures: Pictures | None, notify: Notify
    ) -> str:
        """Writes the weights into `folder` and returns their file's name."""

    def cache_in(self, out: Path) -> Path | None:
        """Where what the runtime compiles of the new bundle is kept; None: nowhere."""

    def finish(self, built: Subject, precision: Precision, notify: Notify) -> Sequence[str]:
        """Adds to the complete bundle what it serves without, too; notes for the report."""


def build(wish: Wish, notify: Notify = silent) -> Report:
    """Writes the bundle `wish.out`, which appears complete or not at all, and measures it beside the original.

    Raises SetupError.
    """
    builder = check(wish)
    dataset, runner = _dataset(wish), builder.runner(wish.device)
    notify("loading", 0, None)
    with opened(wish.model, runner, wish.max_pixels, wish.cache_dir, builder.check_file) as original:
        builder.check(original, wish.precision)
        pictures = _pictures(wish, original, notify)
        with _appearing(wish.out) as folder:
            weights = builder.write(original, folder, wish.precision, pictures, notify)
            write_bundle(original, folder, weights, backend=wish.backend, precision=wish.precision)
        notify("loading what was built", 0, None)
        with (
            _gone_if_it_fails(wish.out),
            opened(wish.out, runner, wish.max_pixels, builder.cache_in(wish.out)) as built,
        ):
            notes = builder.finish(built, wish.precision, notify)
            return _measured(wish, (original, built), _Material(pictures, dataset, tuple(notes)), notify)


def check(wish: Wish) -> Builder:
    """Who builds it. Raises InvalidSetting for a wish that makes no sense, before a model is loaded."""
    builder = cast(Builder, import_module(BUILDERS[wish.backend]))
    if wish.precision not in builder.PRECISIONS:
        there = ", ".join(builder.PRECISIONS)
        raise InvalidSetting(f"{wish.backend} is not built in {wish.precision}", hint=f"--precision is one of {there}")
    if wish.precision == "int8" and wish.calibration is None:
        raise InvalidSetting(
            "int8 is calibrated on pictures", hint="say --calibration FOLDER, with some hundred like those to come"
        )
    if wish.out.exists() and (not wish.out.is_dir() or any(wish.out.iterdir())):
        raise InvalidSetting(f"-o {wish.out} is there already", hint="name a new folder, or remove that one")
    return builder


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` in the end; nothing is left of it where something fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as spare:
            folder = Path(spare) / "bundle"
            folder.mkdir()
            yield folder
            folder.replace(out)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise InvalidSetting(f"-o {out} cannot be written: {why}", hint="name a folder in one that can") from error


@contextmanager
def _gone_if_it_fails(out: Path) -> Iterator[None]:
    """What was built, and cannot be loaded or measured."""
    try:
        yield
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _pictures(wish: Wish, original: Subject, notify: Notify) -> Pictures | None:
    if wish.calibration is None or original.model.family is None:
        return None
    return choose(wish.calibration, wish.samples, lambda data: original.prepared(data, wish.max_pixels), notify)


def _dataset(wish: Wish) -> Dataset | None:
    """Read before anything is built: what is wrong with it shows at once."""
    if wish.dataset is None:
        return None
    from visionpool_server.evaluation import read_dataset

    return read_dataset(wish.dataset)


@dataclass(frozen=True, slots=True)
class _Material:
    """What the two are measured on, and what the builder has to say."""

    pictures: Pictures | None
    dataset: Dataset | None
    notes: tuple[str, ...]


def _measured(wish: Wish, pair: tuple[Subject, Subject], on: _Material, notify: Notify) -> Report:
    original, built = pair
    compared, row = _compared(pair, on.pictures, wish.max_pixels, notify)
    placements = [subject.model.pool.placements[0] for subject in pair]
    return Report(
        model=original.model.name,
        out=wish.out,
        precision=wish.precision,
        device=placements[1].device,
        before=_said(placements[0], "original"),
        after=_said(placements[1], wish.precision),
        size=Size(size_of(original.weights), size_of(built.weights)),
        speed=None if built.runner.stands_in else race(original, built, row, notify),
        compared=compared,
        scored=score(on.dataset, original, built, notify) if on.dataset else None,
        pictures=on.pictures,
        notes=(*on.notes, *_notes(wish.precision, placements[1], compared)),
    )


def _said(placement: Placement, precision: str) -> str:
    """The runtime and in what it computes: as it says itself, or as its file was built."""
    own = placement.precision
    return f"{placement.backend} {precision if own == _AS_IN_FILE else own}"


def _notes(precision: Precision, placement: Placement, compared: Compared) -> tuple[str, ...]:
    notes = []
    if placement.precision not in (precision, "device default", _AS_IN_FILE):
        notes.append(f"{placement.device} has no {precision}, and computes in {placement.precision}")
    if compared.figures.get("boxes") == 0:
        notes.append(f"neither found anything on the {compared.on}, so that the agreement says nothing")
    return tuple(notes)


def _compared(
    pair: tuple[Subject, Subject], pictures: Pictures | None, max_pixels: int, notify: Notify
) -> tuple[Compared, Mapping[str, NDArray[Any]]]:
    """How alike the two answer, and one row of tensors to time them with."""
    original, built = pair
    if pictures is None:
        rows = [original.noise(seed) for seed in range(_NOISE)]
        outputs = [(original.outputs(row), built.outputs(row)) for row in rows]
        return Compared("made-up inputs", len(rows), agreement.of_tensors(outputs)), rows[0]
    paths = pictures.measured
    files = (path.read_bytes() for path in told(paths, "comparing", len(paths), notify))
    results = [(original.predict(data), built.predict(data)) for data in files]
    row = original.prepared(paths[0].read_bytes(), max_pixels)
    figures, count = agreement.of_results(results), len(paths)
    if figures is None:
        rows = [original.prepared(path.read_bytes(), max_pixels) for path in paths[:_NOISE]]
        figures, count = agreement.of_tensors([(original.outputs(row), built.outputs(row)) for row in rows]), len(rows)
    return Compared("held-out pictures" if pictures.held_out else "calibration pictures", count, figures), row
