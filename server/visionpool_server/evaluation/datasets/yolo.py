"""YOLO's labels: for images/a.jpg a labels/a.txt, each line `class x y w h` relative to the picture, or `class x1 y1 x2 y2 ...`,
an outline. Folders may be split (images/val, labels/val), and a data.yaml says what the classes are called (Ultralytics)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from visionpool.errors import InvalidImage, InvalidSetting, UnsupportedMedia

from visionpool_server.evaluation.datasets.files import (
    class_names,
    folders_in,
    is_picture,
    pictures_in,
    read_text,
    read_yaml_map,
)
from visionpool_server.evaluation.truth import Dataset, Objects, Sample
from visionpool_server.imaging.headers import read_header

EXPECTED = "a folder with images/ and labels/*.txt, or its data.yaml"
_SPLITS = ("val", "valid", "validation", "test", "train")  # the first that is there is taken
_ON_ITS_SIDE = 5  # EXIF orientations from here on turn the picture


def recognise(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml")
    return _described(path) is not None or (path / "labels").is_dir() or bool(_split_first(path))


def read(path: Path, images: Path | None) -> Dataset:
    """Raises InvalidSetting."""
    description = path if path.is_file() else _described(path)
    root = path if path.is_dir() else path.parent
    said = read_yaml_map(description) if description else {}
    folder, notes = (images, ()) if images else _pictures_of(root, said)
    names = _names(said) or class_names(root)
    found = _listed(folder) if folder.is_file() else pictures_in(folder)
    if not found:
        raise InvalidSetting(f"no pictures in {folder}", hint=f"expected: {EXPECTED}")
    samples = tuple(Sample(_name(picture, root), picture, _objects(picture)) for picture in found)
    if not any(isinstance(sample.truth, Objects) and sample.truth.class_ids for sample in samples):
        raise InvalidSetting(
            f"no labels for any of the {len(samples)} pictures in {folder}",
            hint=f"the first would be {_labels_of(found[0])}",
        )
    return Dataset(path, "yolo", "boxes", samples, names, notes)


def _described(folder: Path) -> Path | None:
    """The YAML file of a folder that names the classes."""
    candidates = [folder / "data.yaml", folder / "data.yml", folder / "dataset.yaml", *sorted(folder.glob("*.yaml"))]
    return next((path for path in candidates if path.is_file() and _names_classes(path)), None)


def _names_classes(file: Path) -> bool:
    try:
        return "names" in read_yaml_map(file)
    except InvalidSetting:  # some other YAML
        return False


def _split_first(root: Path) -> list[Path]:
    """Roboflow's layout has the split outside: valid/images, valid/labels."""
    inside = [root / split for split in _SPLITS]
    return [folder / "images" for folder in inside if (folder / "images").is_dir() and (folder / "labels").is_dir()]


def _pictures_of(root: Path, said: dict[Any, Any]) -> tuple[Path, tuple[str, ...]]:
    """The folder, or list, of the pictures to take, and a note where others were left."""
    base = root / str(said.get("path", "."))
    base = base if base.is_dir() else root
    written = next((said[key] for key in ("val", "test", "train") if isinstance(said.get(key), str)), None)
    if written:
        candidates = [base / written, root / written, root / written.removeprefix("../")]  # Roboflow's is one too high
        found = next((path for path in candidates if path.exists()), None)
        if found:
            return found, ()
    splits = (
        [folder for folder in folders_in(root / "images") if folder.name in _SPLITS]
        if (root / "images").is_dir()
        else []
    )
    splits = splits or _split_first(root)
    if splits:
        chosen = min(
            splits, key=lambda folder: _SPLITS.index((folder if folder.name in _SPLITS else folder.parent).name)
        )
        note = (f"of its parts, {chosen.relative_to(root)} was taken",) if len(splits) > 1 else ()
        return chosen, note
    folder = root / "images"
    if not folder.is_dir():
        raise InvalidSetting(f"no images/ in {root}", hint=f"expected: {EXPECTED}; or say --images")
    return folder, ()


def _listed(file: Path) -> list[Path]:
    """The pictures that a .txt names, one a line, relative to it."""
    paths = [file.parent / line.strip() for line in read_text(file).splitlines() if line.strip()]
    return [path for path in paths if is_picture(path)]


def _names(said: dict[Any, Any]) -> dict[int, str]:
    names = said.get("names", {})
    try:
        items = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(key): str(name) for key, name in items}
    except (TypeError, ValueError) as error:
        raise InvalidSetting(f"names in its .yaml is neither a list nor a map from number to name: {error}") from error


def _name(picture: Path, root: Path) -> str:
    return str(picture.relative_to(root)) if picture.is_relative_to(root) else str(picture)


def _labels_of(picture: Path) -> Path:
    """As Ultralytics: the last `images` of the path becomes `labels`."""
    parts = list(picture.parent.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts) / f"{picture.stem}.txt"


def _objects(picture: Path) -> Objects:
    file = _labels_of(picture)
    rows = _rows(file) if file.is_file() else []
    size = _size(picture) if rows else (0, 0)
    scale = np.array([size[1], size[0]], np.float64)
    outlines = [values.reshape(-1, 2) * scale if len(values) > 4 else None for _, values in rows]
    boxes = [
        _box(values, scale) if outline is None else _around(outline)
        for (_, values), outline in zip(rows, outlines, strict=True)
    ]
    stacked = np.array(boxes, np.float64).reshape(-1, 4)
    return Objects(
        stacked,
        class_ids=tuple(class_id for class_id, _ in rows),
        crowds=(False,) * len(rows),
        areas=tuple((stacked[:, 2:] - stacked[:, :2]).prod(axis=1).tolist()),
        size=size,
        segments=tuple(None if outline is None else [outline.reshape(-1).tolist()] for outline in outlines),
    )


def _rows(file: Path) -> list[tuple[int, NDArray[np.float64]]]:
    rows = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        try:
            first, *rest = (float(value) for value in line.split())
            values = np.array(rest, np.float64)
            fits = len(rest) == 4 or (len(rest) >= 6 and len(rest) % 2 == 0)
            if not fits or not np.isfinite(values).all() or first != int(first) or first < 0:
                raise ValueError
        except (ValueError, OverflowError):
            if not line.strip():
                continue
            raise InvalidSetting(
                f"{file}, line {number}: {line.strip()[:60]!r} is no label",
                hint="expected: class x y w h, relative to the picture's size; or class x1 y1 x2 y2 ..., an outline",
            ) from None
        rows.append((int(first), values))
    return rows


def _box(values: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    centre, half = values[:2] * scale, values[2:] * scale / 2
    return np.concatenate([centre - half, centre + half])


def _around(outline: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([outline.min(axis=0), outline.max(axis=0)])


def _size(picture: Path) -> tuple[int, int]:
    """(height, width) as it is shown. A picture that cannot be read has none: the model will say why."""
    try:
        header = read_header(picture.read_bytes())
    except (InvalidImage, UnsupportedMedia, OSError):
        return 0, 0
    size = (header.height, header.width)
    return size[::-1] if header.orientation >= _ON_ITS_SIDE else size
