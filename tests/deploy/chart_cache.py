"""What tests fetch from package registries is kept from one run to the next."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest


def kept(name: str, *command: str) -> Path:
    """The user's cache folder of that name, which `command FOLDER` fills when it is missing; skips the test where it fails."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visionpool-tests"
    folder = cache / name
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:
        filled = Path(made, name)
        filled.mkdir()
        done = subprocess.run([*command, str(filled)], check=False, capture_output=True, text=True, timeout=200)
        if done.returncode:
            pytest.skip(f"{command[0]} cannot fetch {name}: {done.stderr.strip()[-200:]}")
        try:
            filled.rename(folder)
        except OSError:  # another run was quicker
            assert folder.exists()
    return folder
