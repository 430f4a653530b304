"""Where plans are kept: building one takes minutes, and it is good for this file, this TensorRT, this GPU and these settings.

They are looked for beside the weights, and then in the cache's folder, where they are written. Their names tell people what they
are of, and end in a key of all that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from visionpool.errors import InvalidModel

from visionpool_server.backends import Precision, Signature
from visionpool_server.backends.tensorrt.api import Api
from visionpool_server.backends.tensorrt.plans import PlanFile, read_plan, write_plan
from visionpool_server.backends.tensorrt.profiles import Profile
from visionpool_server.backends.tensorrt.settings import TensorRtSettings
from visionpool_server.cuda.driver import Properties
from visionpool_server.user_cache import user_cache

log = logging.getLogger(__name__)

_FORM = 1  # of the builds themselves: counts up where the same wish leads to another engine


@dataclass(frozen=True, slots=True)
class PlanCache:
    """`into` None: nothing is kept."""

    beside: Path
    into: Path | None

    def find(self, name: str) -> PlanFile | None:
        """An entry that cannot be read is none."""
        for folder in (self.beside, self.into):
            path = folder / name if folder else None
            if path and path.is_file():
                try:
                    return read_plan(path)
                except InvalidModel as error:
                    log.warning("%s is built anew: %s", path, error.message)
        return None

    def keep(self, name: str, plan: bytes, signature: Signature) -> None:
        """Two processes that keep the same one both leave a good one."""
        if self.into is None:
            return
        try:
            write_plan(self.into / name, plan, signature)
        except OSError as error:
            log.warning("the engine is not kept in %s, and built anew the next time: %s", self.into, error)


def cache_folder(said: Path | None) -> Path | None:
    """`said`, or `tensorrt` in the user's cache; None where there is neither."""
    users = user_cache()
    return said or (users / "tensorrt" if users else None)


def plan_name(
    api: Api,
    weights: Path,
    gpu: Properties,
    profiles: Sequence[Profile],
    settings: TensorRtSettings,
    *,
    precision: Precision | None = None,
    external: Sequence[str] = (),
    plugins: Sequence[Path] = (),
) -> str:
    """`external`: names of further files with weights, relative to the folder of `weights`."""
    place = _place(api, settings, gpu)
    depends = {
        "form": _FORM,
        "weights": _digests([weights, *(weights.parent / name for name in external)]),
        "library": [api.name, *api.version],
        "place": place,
        "precision": precision or "f32",
        "profiles": [sorted((name, *ranged) for name, ranged in profile.items()) for profile in profiles],
        "settings": settings.of_the_build(),
        "plugins": _digests(plugins),
    }
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    library = f"{'rtx' if api.rtx else 'trt'}{'.'.join(map(str, api.version))}"
    return f"{_slug(weights.stem)}-{_slug(place)}-{library}-{key}.plan"


def timings_name(api: Api, gpu: Properties) -> str:
    """Of the file with what the builder has measured on this kind of GPU."""
    return f"timings-{_slug(gpu.name)}-{'.'.join(map(str, api.version))}.cache"


def _place(api: Api, settings: TensorRtSettings, gpu: Properties) -> str:
    """What the engine is good for: a kind of GPU, or more."""
    capability = "{}.{}".format(*gpu.capability)
    if api.rtx:
        return capability if settings.current else "-".join(settings.compute_capability) or "any"
    if settings.hardware_compatibility == "ampere_plus":
        return "ampere plus"
    return capability if settings.hardware_compatibility == "same_compute_capability" else f"{gpu.name} {capability}"


def _digests(paths: Sequence[Path]) -> list[str]:
    """Of the files' bytes; a file that is not there is said to be missing by whoever needs it."""
    found = []
    for path in paths:
        try:
            with path.open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError:
            found.append(f"none: {path.name}")
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:60] or "model"
