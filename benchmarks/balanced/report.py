"""What became of the requests, phase by phase, and second by second around each event: tables in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.balanced.callers import PATIENT, PLAIN
from benchmarks.balanced.load import Outcome
from benchmarks.balanced.stage import Phase

BEFORE, AFTER = 2, 6  # seconds around an event


def rate(outcomes: Iterable[Outcome], start: float, end: float) -> float:
    """Good answers a second."""
    return sum(1 for one in outcomes if one.replica and start <= one.done < end) / (end - start)


def failed(outcomes: Iterable[Outcome], ways: Sequence[str]) -> list[Outcome]:
    return [one for one in outcomes if one.error and one.way in ways]


def during(outcomes: Iterable[Outcome], phase: Phase) -> list[Outcome]:
    return [one for one in outcomes if phase.start <= one.done < phase.end]


def phases(outcomes: Sequence[Outcome], listed: Sequence[Phase], steady: float) -> list[str]:
    """`steady`: good answers a second of that phase to which the others are held."""
    lines = [
        "| | seconds | answers/s | ratio | which replica | our clients: requests | failed | without retries: requests "
        "| failed |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|",
    ]
    for phase in listed:
        here = during(outcomes, phase)
        speed = rate(here, phase.start, phase.end)
        counts = [(sum(1 for one in here if one.way in ways), len(failed(here, ways))) for ways in (PATIENT, PLAIN)]
        lines.append(
            f"| {phase.what} | {phase.end - phase.start:.1f} | {speed:.0f} | **{speed / steady:.2f}** | {_shares(here)} | "
            + " | ".join(f"{asked} | **{bad}**" for asked, bad in counts)
            + " |"
        )
    return lines


def _shares(outcomes: Sequence[Outcome]) -> str:
    """Such as `1: 34 %, 2: 66 %`."""
    counted = Counter(one.replica for one in outcomes if one.replica)
    return ", ".join(f"{name}: {count / counted.total():.0%}" for name, count in sorted(counted.items()))


def by_way(outcomes: Sequence[Outcome]) -> list[str]:
    lines = ["| | requests | failed | how |", "|---|--:|--:|---|"]
    for way in (*PATIENT, *PLAIN):
        kinds = Counter(one.error for one in failed(outcomes, [way]))
        how = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
        lines.append(f"| {way} | {sum(one.way == way for one in outcomes)} | {kinds.total()} | {how} |")
    return lines


def around(outcomes: Sequence[Outcome], events: Sequence[tuple[float, str]], steady: float) -> list[str]:
    """The ratio to `steady` in the seconds around each event, and failures without retries in them as (-n)."""
    seconds = range(-BEFORE, AFTER)
    lines = [
        "| | " + " | ".join(f"{second:+d} s" for second in seconds) + " |",
        "|---|" + "--:|" * len(seconds),
    ]
    for when, event in events:
        cells = []
        for second in seconds:
            start, end = when + second, when + second + 1
            lost = sum(1 for one in failed(outcomes, PLAIN) if start <= one.done < end)
            cells.append(f"{rate(outcomes, start, end) / steady:.2f}" + (f" (-{lost})" if lost else ""))
        lines.append(f"| {event} | " + " | ".join(cells) + " |")
    return lines
