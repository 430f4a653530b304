"""The Markdown that a run prints as it goes, and the clock that ends it."""

from __future__ import annotations

import time
from collections.abc import Callable


class OutOfTime(Exception):
    """The section's time is up: what was measured stands."""


class NotRun(Exception):
    """Something that is needed is missing: its text says what."""


class Report:
    """`write` gets a line at a time. `until`: on time.monotonic()'s clock."""

    def __init__(self, write: Callable[[str], None], until: float = float("inf")) -> None:
        self._write = write
        self._until = until

    def text(self, line: str) -> None:
        self._write(f"{line}\n")

    def table(self, *columns: str) -> None:
        """Begins one; the first column is text, the others are numbers."""
        self.text("")
        self.text(f"| {' | '.join(columns)} |")
        self.text(f"|---|{'--:|' * (len(columns) - 1)}")

    def row(self, *cells: object) -> None:
        self.text(f"| {' | '.join(map(shown, cells))} |")

    def check_time(self, seconds: float = 0.0) -> None:
        """Before something that takes so long. Raises OutOfTime."""
        if time.monotonic() + seconds > self._until:
            raise OutOfTime


def shown(value: object) -> str:
    """A number with three digits or more."""
    if not isinstance(value, float):
        return str(value)
    if value and abs(value) < 0.001:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def ratio(value: float, to: float) -> str:
    return f"**{value / to:.3f}**" if to else ""


def per_second(step: Callable[[], object], seconds: float, *, warm_up: int = 2) -> float:
    """How often `step` can be called in a second, one call after the other."""
    for _ in range(warm_up):
        step()
    calls, started = 0, time.perf_counter()
    while True:
        step()
        calls += 1
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return calls / elapsed


def failing(section: Callable[[], None], report: Report, missing: type[Exception]) -> None:
    """Runs a part, and says in a line why it did not run, or ended early."""
    try:
        section()
    except OutOfTime:
        report.text("\nended here: no time left")
    except ModuleNotFoundError as error:
        report.text(f"\nnot run: the Python package {error.name} is not installed")
    except (NotRun, missing) as error:
        report.text(f"\nnot run: {error}")
    except Exception as error:  # the others are still to be measured
        report.text(f"\nfailed: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
