"""The packages that only evaluation needs, which an installation may lack."""

from __future__ import annotations

from importlib.util import find_spec

from visionpool.errors import InvalidSetting


def needed(*modules: str) -> None:
    """Raises InvalidSetting that names the extra, where one of the modules is not installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise InvalidSetting(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed for this, and not installed",
            hint="pip install 'visionpool[evaluate]' (in a clone: pip install '.[evaluate]')",
        )
