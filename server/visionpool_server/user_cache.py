"""Where what takes long to make is kept between runs, unless `--cache-dir` says otherwise."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """`visionpool` in XDG_CACHE_HOME or ~/.cache; None for a user without a home, as containers have."""
    said = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if said.is_absolute():  # the specification has relative ones ignored
        return said / "visionpool"
    try:
        return Path.home() / ".cache" / "visionpool"
    except RuntimeError:
        return None
