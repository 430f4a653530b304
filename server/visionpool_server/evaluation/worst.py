"""The pictures on which two models differ most, drawn side by side."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from visionpool.errors import InvalidSetting
from visionpool.results import Result

from visionpool_server.evaluation.report import Comparison, PictureDifference
from visionpool_server.evaluation.run import USUAL, Settings
from visionpool_server.evaluation.subjects import Subject
from visionpool_server.evaluation.truth import Dataset
from visionpool_server.families import Options
from visionpool_server.imaging.decode import decode
from visionpool_server.imaging.draw import draw, encode
from visionpool_server.imaging.lettering import WHITE, Picture, Style, shortened, write

_INK = (30, 41, 59)
_GAP = 12  # pixels between the two
_SMALLEST, _LARGEST = 320, 1280  # pixels that each of the two is wide


def save_worst(
    folder: Path,
    comparison: Comparison,
    subjects: tuple[Subject, Subject],
    dataset: Dataset,
    settings: Settings = USUAL,
    *,
    count: int = 10,
    max_pixels: int = 50_000_000,
) -> list[Path]:
    """The `count` worst as 01-NAME.jpg, ...: the models are asked once more, for what they show a user. Raises
    InvalidSetting where the folder cannot be written."""
    worst = comparison.worst(count)
    paths = {sample.name: sample.path for sample in dataset.samples}
    results = asyncio.run(_asked(subjects, [paths[entry.picture] for entry in worst], settings))
    written = []
    for index, (entry, (one, other)) in enumerate(zip(worst, results, strict=True), 1):
        image = decode(paths[entry.picture].read_bytes(), max_pixels=max_pixels)
        titles = [f"{subject.name} ({subject.where})" for subject in subjects]
        drawn = _side_by_side([_captioned(image, one, titles[0]), _captioned(image, other, titles[1])], entry)
        path = folder / f"{index:02d}-{Path(entry.picture).stem}.jpg"
        _write(path, encode(drawn, "jpeg"))
        written.append(path)
    return written


async def _asked(subjects: Sequence[Subject], paths: Sequence[Path], settings: Settings) -> list[tuple[Result, Result]]:
    results = []
    for path in paths:
        picture = _read(path)
        one, other = [await subject.predict(picture, _shown(subject, settings)) for subject in subjects]
        results.append((one, other))
    return results


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _shown(subject: Subject, settings: Settings) -> Options:
    """Objects from the score on from which they were compared."""
    if subject.task not in ("classification", "ocr") and "score_threshold" in subject.accepts:
        return Options(score_threshold=settings.compared, iou_threshold=settings.options.iou_threshold)
    return settings.options if subject.task == "ocr" else Options()


def _captioned(image: Picture, result: Result, title: str) -> Picture:
    """The picture with its result, of a handy width, and below it a line that says whose it is."""
    width = min(max(image.shape[1], _SMALLEST), _LARGEST)
    drawn = draw(image, result)
    if width > image.shape[1] and result.type == "classification":  # says nothing of places: written in a readable size
        drawn = draw(_wide(image, width), result)
    return _with_line(_wide(drawn, width), title, top=False)


def _wide(image: Picture, width: int) -> Picture:
    """Scaled to this width."""
    height, old = image.shape[:2]
    if old == width:
        return image
    how = cv2.INTER_AREA if width < old else cv2.INTER_NEAREST
    scaled = cv2.resize(image, (width, max(1, round(height * width / old))), interpolation=how)
    return np.asarray(scaled, np.uint8)


def _side_by_side(pictures: Sequence[Picture], entry: PictureDifference) -> Picture:
    left, right = pictures
    gap = np.full((left.shape[0], _GAP, 3), 255, np.uint8)
    return _with_line(np.hstack([left, gap, right]), f"{entry.agreement:.3f}  {entry.what}", top=True)


def _with_line(image: Picture, text: str, *, top: bool) -> Picture:
    """One line of text above the picture, or below it."""
    size = min(Style.of(image).text, 22)
    pad = size // 2
    band = np.full((size + 2 * pad, image.shape[1], 3), WHITE, np.uint8)
    write(band, shortened(text, size, image.shape[1] - 2 * pad), (pad, pad), size, _INK)
    return np.vstack([band, image] if top else [image, band])


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise InvalidSetting(f"--save-worst {path.parent}: {os.strerror(error.errno or 0).lower()}") from error
