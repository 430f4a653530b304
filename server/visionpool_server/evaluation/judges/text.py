"""How many characters of a line are wrong: edits to make it right, over its length (the character error rate)."""

from __future__ import annotations

import unicodedata
from collections import Counter

from visionpool.errors import InvalidSetting
from visionpool.results import OCRResult, Result

from visionpool_server.evaluation.extra import needed
from visionpool_server.evaluation.judges import Scores, mismatch
from visionpool_server.evaluation.report import LineErrors, Mistake
from visionpool_server.evaluation.truth import Sample

_CONTEXT, _READABLE = 12, 80  # characters of texts around a difference, and in all


class TextJudge:
    """Raises InvalidSetting where rapidfuzz is not installed. Unicode's ways to write the same character are one (NFC)."""

    def __init__(self, *, ignore_case: bool = False, ignore_spaces: bool = False) -> None:
        needed("rapidfuzz")
        self._ignore_case, self._ignore_spaces = ignore_case, ignore_spaces
        self._edits = self._length = self._exact = 0
        self._rates: list[float] = []
        self._similarities: list[float] = []
        self._characters: Counter[tuple[str, str]] = Counter()
        self._mistakes: list[Mistake] = []

    def add(self, sample: Sample, result: Result) -> None:
        from rapidfuzz.distance import Levenshtein

        if not isinstance(result, OCRResult) or not isinstance(sample.truth, str):
            raise mismatch(sample, result)
        if result.boxes and not result.text:
            raise InvalidSetting(
                "the model finds lines of text and reads none", hint="evaluate the pipeline that it is a step of"
            )
        truth, said = self._plain(sample.truth), self._plain(spoken(result))
        edits = Levenshtein.distance(truth, said)
        self._edits += edits
        self._length += len(truth)
        self._exact += truth == said
        self._rates.append(edits / len(truth) if truth else float(edits > 0))
        self._similarities.append(Levenshtein.normalized_similarity(truth, said))
        if edits:
            self._mistakes.append(Mistake(sample.name, truth, said, self._rates[-1]))
        for edit in Levenshtein.editops(truth, said):
            wanted = "" if edit.tag == "insert" else truth[edit.src_pos]
            self._characters[wanted, "" if edit.tag == "delete" else said[edit.dest_pos]] += 1

    def _plain(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text.strip())
        text = text.casefold() if self._ignore_case else text
        return "".join(text.split()) if self._ignore_spaces else text

    def scores(self) -> Scores:
        if not self._rates:
            return Scores()
        lines = len(self._rates)
        metrics = {
            "cer": self._edits / max(self._length, 1),
            "line_accuracy": self._exact / lines,
            "similarity": sum(self._similarities) / lines,
        }
        chart = LineErrors(tuple(self._rates), dict(self._characters))
        return Scores(metrics, chart=chart, mistakes=tuple(sorted(self._mistakes, key=lambda m: -m.error)))


def spoken(result: OCRResult) -> str:
    """All lines of a result, which are in reading order, as one."""
    return " ".join(result.text)


def where_apart(one: str, other: str) -> tuple[str, str]:
    """Both texts from shortly before the first difference to shortly after the last, as far as that is worth reading."""
    start = _alike(one, other)
    end = _alike(one[start:][::-1], other[start:][::-1])
    first = 0 if start <= _CONTEXT else start - _CONTEXT
    return _cut(one, first, len(one) - end + _CONTEXT), _cut(other, first, len(other) - end + _CONTEXT)


def _alike(one: str, other: str) -> int:
    """How many characters are the same from the beginning on."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _cut(text: str, first: int, last: int) -> str:
    last = min(last, first + _READABLE)
    return f"{'…' if first else ''}{text[first:last]}{'…' if last < len(text) else ''}"
