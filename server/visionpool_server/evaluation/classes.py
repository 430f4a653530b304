"""Which class of a model is which of a data set: by name where both have names, else by number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from visionpool.errors import InvalidSetting

from visionpool_server.evaluation.datasets.files import some

_SHOWN = 8
_WORDNET = re.compile(r"^(n\d{8})\b\s*")  # ImageNet's ids, which PaddleClas and others write before a name


@dataclass(frozen=True, slots=True)
class ClassMap:
    """`to_dataset`: model's id -> data set's id, of the classes that both have. `names`: of these, by the data set's id.

    Classes of the data set that are not in it cannot be found by the model, and are left out of all figures; `notes` say so.
    """

    to_dataset: Mapping[int, int]
    names: Mapping[int, str]
    by: str  # "name" or "number"
    notes: tuple[str, ...] = ()


def named(labels: Sequence[str]) -> bool:
    """Whether labels are names, and not just the numbers that stand for those."""
    return any(label != str(index) for index, label in enumerate(labels))


def match_classes(
    names: Mapping[int, str],
    ids: Sequence[int],
    labels: Sequence[str],
    count: int | None,
    *,
    by_index: bool = False,
) -> ClassMap:
    """`names` and `ids`: of the data set's classes; `labels` and `count`: of the model's. Raises InvalidSetting."""
    if names and named(labels) and not by_index:
        return _by_name(names, labels)
    return _by_number(names, ids, labels, count or len(labels) or None)


def _by_name(names: Mapping[int, str], labels: Sequence[str]) -> ClassMap:
    """Of classes that share a name, as ImageNet's cranes do, the one of the same number is taken, or else the first."""
    known: dict[str, list[int]] = {}
    for class_id, name in names.items():
        known.setdefault(_plain(name), []).append(class_id)
    to_dataset: dict[int, int] = {}
    for index, label in enumerate(labels):
        found = next((known[alias] for alias in _aliases(label) if alias in known), None)
        if found:
            to_dataset[index] = index if index in found else found[0]
    if not to_dataset:
        raise InvalidSetting(
            f"no class of the data set ({some(list(names.values()), 4)}) is one of the model's ({some(labels, 4)})",
            hint="--by-index matches them by number",
        )
    shared = set(to_dataset.values())
    return ClassMap(
        to_dataset,
        {class_id: name for class_id, name in names.items() if class_id in shared},
        "name",
        _mismatch(
            [name for class_id, name in names.items() if class_id not in shared],
            [label for index, label in enumerate(labels) if index not in to_dataset],
        ),
    )


def _mismatch(only_dataset: Sequence[str], only_model: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if only_dataset:
        notes.append(
            f"{len(only_dataset)} classes of the data set are none of the model's, and left out: {some(only_dataset, _SHOWN)}"
        )
    if only_dataset and only_model:
        notes.append(f"the model's without a namesake: {some(only_model, _SHOWN)}; --by-index matches by number")
    elif only_model:
        notes.append(
            f"{len(only_model)} classes of the model are not in the data set, and not counted: {some(only_model, _SHOWN)}"
        )
    return tuple(notes)


def _by_number(names: Mapping[int, str], ids: Sequence[int], labels: Sequence[str], count: int | None) -> ClassMap:
    """Class 7 is class 7; but COCO's ids, 80 of 1..90, are taken in their order by a model that has no room for 90."""
    in_order = sorted({*ids, *(() if names else range(count or 0))})  # unnamed: all of the model's
    gaps = bool(names) and in_order != list(range(len(in_order)))
    raw = not gaps or (count is not None and count > in_order[-1])
    shown = names if names else {i: labels[i] for i in range(len(labels))} if named(labels) else {}
    if raw:
        pairs = {class_id: class_id for class_id in in_order if count is None or class_id < count}
    else:
        pairs = {index: class_id for index, class_id in enumerate(in_order) if count is None or index < count}
    kept = set(pairs.values())
    left = [_called(class_id, shown) for class_id in in_order if class_id not in kept]
    notes = (
        [f"{len(left)} classes of the data set are beyond the model's {count}, and left out: {some(left, _SHOWN)}"]
        if left
        else []
    )
    if in_order and not raw:
        notes.append(
            f"the data set's {len(in_order)} classes ({in_order[0]} to {in_order[-1]}) are taken in the order of their ids"
        )
    if in_order and not pairs:
        raise InvalidSetting(
            f"no class of the data set is one of the model's {count}", hint="is it made for this model?"
        )
    return ClassMap(pairs, {class_id: _called(class_id, shown) for class_id in sorted(kept)}, "number", tuple(notes))


def _called(class_id: int, names: Mapping[int, str]) -> str:
    return names.get(class_id, str(class_id))


def _plain(name: str) -> str:
    """A name without what writers differ in: case, underscores, spaces around it."""
    return " ".join(name.replace("_", " ").casefold().split())


def _aliases(label: str) -> list[str]:
    """What a label may be called: as a whole first, then ImageNet's id, then each of its synonyms."""
    whole = _WORDNET.sub("", label)
    wordnet = _WORDNET.match(label)
    synonyms = whole.split(",") if "," in whole else []
    return [
        _plain(name) for name in (label, whole, *([wordnet.group(1)] if wordnet else []), *synonyms) if name.strip()
    ]
