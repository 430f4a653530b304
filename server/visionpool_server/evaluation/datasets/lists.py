"""Lists: a csv of `file` and `index` or `label`, or a .txt with a picture and what it shows on each line.

n01440764_tench.JPEG,0          csv, with a head that says what is what
val/a.jpg 65                    PaddleClas: the class's number
word_1.png<TAB>Hello            PaddleOCR: the line of text
images/a.jpg masks/a.png        PaddleSeg: see masks.py
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from visionpool.errors import InvalidSetting

from visionpool_server.evaluation.datasets import masks
from visionpool_server.evaluation.datasets.files import class_names, folders_in, present, read_text
from visionpool_server.evaluation.truth import Dataset, Sample

CSV = "a .csv whose head names the columns `file` and `index` (or `label`, a name)"
CLASSES = "a .txt of lines PICTURE NUMBER"
TEXT = "a .txt of lines PICTURE<TAB>TEXT, such as PaddleOCR's rec_gt.txt"
_FILE = ("file", "filename", "file_name", "image", "path", "picture", "name")
_INDEX = ("index", "class_id", "label_id", "target", "id")
_LABEL = ("label", "class", "class_name", "category")
_TEXTS = ("rec_gt.txt", "rec_gt_test.txt", "rec_gt_val.txt", "gt.txt")
_TABLES = ("labels.csv", "val.csv", "test.csv")


def recognise_csv(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv") if path.is_file() else _table_in(path) is not None


def read_csv(path: Path, images: Path | None) -> Dataset:
    """Raises InvalidSetting."""
    file = path if path.is_file() else _table_in(path)
    if file is None:
        raise InvalidSetting(f"no .csv in {path}", hint=f"expected: {CSV}")
    text = read_text(file)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ";" if ";" in text.partition("\n")[0] else ","
    head, *rows = list(csv.reader(text.splitlines(), delimiter=delimiter)) or [[]]
    columns = [column.strip().lower() for column in head]
    picture, value, by_number = _columns(file, columns, rows)
    listed = [(row[picture].strip(), row[value].strip()) for row in rows if len(row) > max(picture, value)]
    ids, names = _numbered([said for _, said in listed], by_number=by_number, file=file)
    root = images or file.parent
    samples, notes = present(
        (Sample(name, root / name, class_id) for (name, _), class_id in zip(listed, ids, strict=True)), file
    )
    return Dataset(path, "csv", "classes", samples, names or class_names(file.parent), notes)


def _table_in(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    usual = [folder / name for name in _TABLES if (folder / name).is_file()]
    found = usual or sorted(folder.glob("*.csv"))
    return found[0] if found and (usual or len(found) == 1) else None


def _columns(file: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[int, int, bool]:
    """Which columns have the picture and its class, and whether that is a number."""
    picture = next((columns.index(name) for name in _FILE if name in columns), None)
    index = next((columns.index(name) for name in _INDEX if name in columns), None)
    label = next((columns.index(name) for name in _LABEL if name in columns), None)
    if picture is None or (index is None and label is None):
        raise InvalidSetting(f"{file} has the columns {', '.join(columns) or 'none'}", hint=f"expected: {CSV}")
    if index is not None:
        return picture, index, True
    assert label is not None
    return picture, label, all(row[label].strip().isdecimal() for row in rows if len(row) > label)


def _numbered(values: Sequence[str], *, by_number: bool, file: Path) -> tuple[list[int], dict[int, str]]:
    """The class of each value; names are numbered in the order of the alphabet, as torchvision does."""
    if not by_number:
        order = {name: index for index, name in enumerate(sorted(set(values)))}
        return [order[name] for name in values], {index: name for name, index in order.items()}
    wrong = next((value for value in values if not value.isdecimal()), None)
    if wrong is not None:
        raise InvalidSetting(f"{file}: {wrong[:60]!r} is no number of a class", hint=f"expected: {CSV}")
    return [int(value) for value in values], {}


def recognise_text(path: Path) -> bool:
    file = _text_in(path)
    return file is not None and "\t" in _first_line(file)


def read_lines(path: Path, images: Path | None) -> Dataset:
    """Raises InvalidSetting."""
    file = _text_in(path)
    lines = [line for line in read_text(file).splitlines() if line.strip()] if file else []
    if file is None or not lines or any("\t" not in line for line in lines):
        raise InvalidSetting(f"{file or path} is no list of lines of text", hint=f"expected: {TEXT}")
    parts = [line.partition("\t") for line in lines]
    root = images or file.parent
    samples, notes = present((Sample(name, _found(root, name), text) for name, _, text in parts), file)
    return Dataset(path, "text", "text", samples, {}, notes)


def _found(root: Path, name: str) -> Path:
    """PaddleOCR's lists start at the folder that holds the list's, too; and the pictures may lie in one beside it."""
    tried = [root / name, root.parent / name, *(folder / name for folder in folders_in(root))]
    return next((path for path in tried if path.is_file()), tried[0])


def _text_in(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() == ".txt" else None
    return next((path / name for name in _TEXTS if (path / name).is_file()), None)


def _first_line(file: Path) -> str:
    return next((line for line in read_text(file).splitlines() if line.strip()), "")


def recognise_classes(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".txt" and bool(re.fullmatch(r"\S.*\s\d+\s*", _first_line(path)))


def read_classes(path: Path, images: Path | None) -> Dataset:
    """PaddleClas's val_list.txt. Raises InvalidSetting."""
    parts = [line.rstrip().rpartition(" ") for line in read_text(path).replace("\t", " ").splitlines() if line.strip()]
    if not parts or any(not name or not said.isdecimal() for name, _, said in parts):
        raise InvalidSetting(f"{path} is no list of pictures and classes", hint=f"expected: {CLASSES}")
    root = images or path.parent
    listed = (Sample(name.strip(), root / name.strip(), int(said)) for name, _, said in parts)
    samples, notes = present(listed, path)
    return Dataset(path, "list", "classes", samples, class_names(path.parent), notes)


def recognise_masks(path: Path) -> bool:
    return (
        path.is_file() and path.suffix.lower() == ".txt" and bool(re.fullmatch(r"\S+\s+\S+\.png\s*", _first_line(path)))
    )


read_masks = masks.read_list
