"""Masks: for each picture of images/ a PNG of masks/ (or annotations/, labels/) whose pixels are class ids, grey or palette."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidSetting

from visionpool_server.evaluation.datasets.files import class_names, folders_in, pictures_in, present, read_text, some
from visionpool_server.evaluation.extra import needed
from visionpool_server.evaluation.truth import Dataset, MaskFile, Sample

EXPECTED = "a folder with images/ and masks/*.png of class ids, or a .txt of lines PICTURE MASK"
_FOLDERS = ("masks", "mask", "annotations", "labels", "gt", "SegmentationClass")
_PICTURES = ("images", "image", "JPEGImages")
_SPLITS = ("val", "valid", "validation", "test")
_LOOKED_AT = 8  # masks read to see what they hold
_WHITE = 255


def recognise(path: Path) -> bool:
    return path.is_dir() and _masks_of(path) is not None


def read(path: Path, images: Path | None) -> Dataset:
    """Raises InvalidSetting."""
    masks = _masks_of(path)
    folder = images or next((path / name for name in _PICTURES if (path / name).is_dir()), None)
    if masks is None or folder is None:
        raise InvalidSetting(f"{path} has not both pictures and masks", hint=f"expected: {EXPECTED}")
    folder, masks = _split(folder), _split(masks)
    pairs = [(picture, _mask_for(picture, folder, masks)) for picture in pictures_in(folder)]
    without = [str(picture.relative_to(folder)) for picture, mask in pairs if mask is None]
    both = [
        (str(picture.relative_to(path) if picture.is_relative_to(path) else picture), picture, mask)
        for picture, mask in pairs
        if mask
    ]
    if not both:
        raise InvalidSetting(f"no picture of {folder} has its mask in {masks}", hint=f"expected: {EXPECTED}")
    notes = (f"{len(without)} pictures have no mask: {some(without)}",) if without else ()
    return of_pairs(path, both, class_names(path), notes)


def read_list(path: Path, images: Path | None) -> Dataset:
    """PaddleSeg's val.txt: `PICTURE MASK` on each line, relative to the list."""
    root = images or path.parent
    pairs = [line.split() for line in read_text(path).splitlines() if line.strip()]
    found, notes = present((Sample(first, root / first, MaskFile(root / second)) for first, second in pairs), path)
    listed = [(s.name, s.path, s.truth.path) for s in found if isinstance(s.truth, MaskFile)]
    return of_pairs(path, listed, class_names(path.parent), notes)


def of_pairs(path: Path, pairs: list[tuple[str, Path, Path]], names: dict[int, str], notes: tuple[str, ...]) -> Dataset:
    """A data set of (name, picture, mask)."""
    values: set[int] = set()
    for _, _, mask in pairs[:_LOOKED_AT]:
        values.update(np.unique(read_mask(MaskFile(mask))).tolist())
    binary = _WHITE in values and values <= {0, _WHITE}
    if binary:
        notes = (*notes, "the masks hold only 0 and 255, which are taken for the classes 0 and 1")
    samples = tuple(Sample(name, picture, MaskFile(mask, binary)) for name, picture, mask in pairs)
    return Dataset(path, "masks", "masks", samples, names, notes)


def read_mask(mask: MaskFile) -> NDArray[np.int32]:
    """(H, W) class ids. Raises InvalidSetting for a file that is no picture of class ids."""
    needed("PIL")
    from PIL import Image  # OpenCV makes colours of a palette's numbers

    try:
        with Image.open(mask.path) as picture:
            values = np.array(picture)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidSetting(f"the mask {mask.path} cannot be read: {error}", hint=f"expected: {EXPECTED}") from error
    if values.ndim == 3 and (values[..., :1] == values[..., :3]).all():
        values = values[..., 0]  # grey, saved as colours
    if values.ndim != 2:
        raise InvalidSetting(
            f"the mask {mask.path} is a picture in colours",
            hint="each pixel must be a class id: grey, or with a palette",
        )
    ids = values.astype(np.int32)
    if mask.binary:
        if not np.isin(ids, (0, _WHITE)).all():
            raise InvalidSetting(
                f"the mask {mask.path} has other values than 0 and 255, as others have not",
                hint="use class ids in all masks",
            )
        ids //= _WHITE
    return ids


def _masks_of(path: Path) -> Path | None:
    """The folder of masks: of these names, with PNG files in it, and pictures beside it."""
    if not any((path / name).is_dir() for name in _PICTURES):
        return None
    candidates = (path / name for name in _FOLDERS)
    return next((folder for folder in candidates if folder.is_dir() and any(folder.rglob("*.png"))), None)


def _split(folder: Path) -> Path:
    parts = {part.name: part for part in folders_in(folder)}
    return next((parts[name] for name in _SPLITS if name in parts), folder)


def _mask_for(picture: Path, folder: Path, masks: Path) -> Path | None:
    """`a.png`, or with the endings that are in use: a_mask.png, a_labelTrainIds.png ..."""
    place = masks / picture.relative_to(folder).parent
    candidates = [place / f"{picture.stem}{end}.png" for end in ("", "_mask", "_label", "_labelTrainIds", "_gt")]
    return next((path for path in candidates if path.is_file()), None)
