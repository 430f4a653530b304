"""Folders alone: one for each class (ImageNet's way, torchvision's `ImageFolder`), or just pictures."""

from __future__ import annotations

from pathlib import Path

from visionpool.errors import InvalidSetting

from visionpool_server.evaluation.datasets.files import class_names, folders_in, pictures_in
from visionpool_server.evaluation.truth import Dataset, Sample

EXPECTED = "a folder with one folder of pictures for each class"
PICTURES = "a folder of pictures (only to compare two models)"
_SPLITS = ("val", "valid", "validation", "test")


def recognise(path: Path) -> bool:
    return path.is_dir() and len(_classes(path)) > 1


def read(path: Path, images: Path | None) -> Dataset:
    """Classes are numbered in the order of their folders' names, or by these where they all are numbers."""
    root = images or path
    folders = _classes(root)
    if not folders:
        raise InvalidSetting(f"no folders with pictures in {root}", hint=f"expected: {EXPECTED}")
    names = [folder.name for folder in folders]
    by_number = all(name.isdecimal() for name in names)
    ids = [int(name) if by_number else index for index, name in enumerate(names)]
    samples = tuple(
        Sample(str(picture.relative_to(path) if picture.is_relative_to(path) else picture), picture, class_id)
        for class_id, folder in zip(ids, folders, strict=True)
        for picture in pictures_in(folder)
    )
    named = class_names(path) if by_number else dict(zip(ids, names, strict=True))
    return Dataset(path, "folders", "classes", samples, named)


def _classes(path: Path) -> list[Path]:
    """The folders that have pictures; those of its validation part, where it is split."""
    found = [folder for folder in folders_in(path) if folder.name != "__MACOSX"]
    split = next((folder for name in _SPLITS for folder in found if folder.name == name and folders_in(folder)), None)
    if split:
        return _classes(split)
    return [folder for folder in found if pictures_in(folder)]


def recognise_pictures(path: Path) -> bool:
    return path.is_dir() and bool(pictures_in(path))


def read_pictures(path: Path, images: Path | None) -> Dataset:
    root = images or path
    samples = tuple(Sample(str(picture.relative_to(root)), picture, None) for picture in pictures_in(root))
    if not samples:
        raise InvalidSetting(f"no pictures in {root}", hint=f"expected: {PICTURES}")
    return Dataset(path, "pictures", "pictures", samples)
