"""The calibration pictures: which of a folder are taken, which cannot be read, and which are held out to measure with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from visionpool.errors import InvalidSetting, VisionpoolError

from visionpool_server.building.progress import Notify, told

HELD_OUT = 100  # pictures to measure with at most
_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".jp2"),
}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A picture that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """`calibration`: what the ranges are taken from. `measured`: what the two models are compared on; `held_out`: whether
    those are others."""

    calibration: tuple[Path, ...]
    measured: tuple[Path, ...]
    held_out: bool
    skipped: tuple[Skipped, ...]


def choose(folder: Path, count: int, check: Callable[[bytes], object], notify: Notify) -> Pictures:
    """`count` pictures of a folder and its subfolders, spread evenly over their sorted names, and up to HELD_OUT others.

    Fewer are fine; those that `check` refuses with an error of ours are skipped. Raises InvalidSetting where none is left.
    """
    candidates = _candidates(folder)
    first = _spread(candidates, count)
    others = sorted(set(candidates) - set(first))
    wanted = min(count + HELD_OUT, len(candidates))
    skipped: list[Skipped] = []
    readable = _readable([*first, *_spread(others, len(others))], check, skipped)
    good = list(told(_at_most(readable, wanted), "reading pictures", wanted, notify))
    if not good:
        what = (
            f"none of its {len(skipped)} pictures can be read: {skipped[0].reason}" if skipped else "no picture in it"
        )
        raise InvalidSetting(f"--calibration {folder}: {what}", hint="name a folder of pictures like those to come")
    held_out = tuple(good[count:])
    return Pictures(tuple(good[:count]), held_out or tuple(good[:HELD_OUT]), bool(held_out), tuple(skipped))


def _candidates(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InvalidSetting(f"--calibration {folder} is not a folder", hint="name a folder of pictures")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """`count` of them, evenly: folders that hold a class each are all represented."""
    count = min(count, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def _readable(paths: Sequence[Path], check: Callable[[bytes], object], skipped: list[Skipped]) -> Iterator[Path]:
    for path in paths:
        try:
            check(path.read_bytes())
        except VisionpoolError as error:
            skipped.append(Skipped(path, error.message))
        except OSError as error:
            skipped.append(Skipped(path, (error.strerror or str(error)).lower()))
        else:
            yield path


def _at_most(paths: Iterator[Path], count: int) -> Iterator[Path]:
    return (path for _, path in zip(range(count), paths, strict=False))
