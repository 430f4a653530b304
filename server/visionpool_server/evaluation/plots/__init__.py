"""An evaluation as one PNG: the curves or the confusion of a model, or two models beside each other."""

from __future__ import annotations

import os
from pathlib import Path

from visionpool.errors import InvalidSetting

from visionpool_server.evaluation.extra import needed
from visionpool_server.evaluation.report import Comparison, Report


def check_plot(path: Path) -> None:
    """Raises InvalidSetting where no plot can be written there, before anything is spent on it."""
    needed("matplotlib")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InvalidSetting(f"--plot {path}: the name must end in .png, .svg or .pdf")


def save_plot(path: Path, found: Report | Comparison) -> None:
    """Raises InvalidSetting where it cannot be written."""
    check_plot(path)
    from visionpool_server.evaluation.plots.pages import comparison_page, report_page

    figure = comparison_page(found) if isinstance(found, Comparison) else report_page(found)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise InvalidSetting(f"--plot {path}: {os.strerror(error.errno or 0).lower()}") from error
