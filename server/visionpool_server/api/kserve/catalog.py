"""What lies in the folders that the server was started with, looked at afresh each time: models come and go there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from visionpool.errors import InvalidModel, ModelNotFound, SetupError

from visionpool_server.models.bundle import read_bundle
from visionpool_server.models.files import ModelFiles, find_models, is_weights


@dataclass(frozen=True, slots=True)
class Listing:
    """`models`: by the name that each is served under, more than one where they share it. `broken`: what is no model."""

    models: dict[str, list[ModelFiles]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Catalog:
    paths: Sequence[Path]

    def scan(self) -> Listing:
        """All there is; a folder that cannot be read does not hide the others."""
        listing = Listing()
        for path in self.paths:
            for files in _models_at(path, listing.broken):
                listing.models.setdefault(served_name(files), []).append(files)
        return listing

    def find(self, name: str) -> ModelFiles:
        """Raises ModelNotFound, naming what there is; InvalidModel where two are called so."""
        listing = self.scan()
        found = listing.models.get(name, [])
        if not found:
            there = ", ".join(sorted(listing.models)) or "none"
            unread = f"; not readable: {'; '.join(listing.broken)}" if listing.broken else ""
            raise ModelNotFound(f"there is no model {name!r}", hint=f"models there: {there}{unread}")
        if len(found) > 1:
            places = ", ".join(str(files.folder) for files in found)
            raise InvalidModel(f"{len(found)} models are called so: {places}", hint="give one another name:")
        return found[0]


def served_name(files: ModelFiles) -> str:
    """The name in a model's own model.yaml, else that of its folder or file."""
    try:
        written = read_bundle(files.config).name if files.config else None
    except SetupError:
        return files.name  # loading it says what is wrong
    return written or files.name


def _models_at(path: Path, broken: list[str]) -> list[ModelFiles]:
    try:
        return find_models(path)
    except (SetupError, OSError) as error:
        if not path.is_dir():
            broken.append(_reason(error))
            return []
    return list(_models_beside(path, broken))


def _models_beside(folder: Path, broken: list[str]) -> Iterator[ModelFiles]:
    """The models of a repository one by one, where one of them keeps it from being read as a whole."""
    for child in sorted(folder.iterdir()):
        if child.name.startswith(".") or not (child.is_dir() or is_weights(child)):
            continue
        try:
            found = find_models(child)
        except (SetupError, OSError) as error:
            broken.append(_reason(error))
            continue
        if len(found) > 1:
            broken.append(f"{child} holds several models")
        elif child in (found[0].folder, found[0].folder.parent, found[0].weights):
            yield found[0]


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, SetupError) else str(error)
