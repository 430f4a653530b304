"""What a client would rather have: the weighted lists of Accept and its kin (RFC 9110, 12.4.2)."""

from __future__ import annotations


def preferred(header: str) -> list[str]:
    """What the header names, in lower case and best first, equals in the order given; without what has weight 0, or one
    that is no number."""
    weighted = []
    for part in header.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weight = _weight(next((p[2:] for p in parameters if p.startswith("q=")), "1"))
        if weight > 0:
            weighted.append((weight, name))
    weighted.sort(key=lambda entry: -entry[0])  # stable
    return [name for _, name in weighted]


def _weight(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdecimal() else 0.0
