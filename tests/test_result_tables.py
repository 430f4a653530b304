"""What `visionpool predict` prints of each kind of result."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console
from visionpool.results import (
    RESULT_TYPES,
    ClassifyResult,
    DetectionResult,
    EmbeddingResult,
    FaceDetectionResult,
    KeyPointDetectionResult,
    OCRResult,
    Result,
    SegmentationResult,
)
from visionpool_server.cli.result_tables import table
from visionpool_server.imaging.masks import png_of

BOX = (1.0, 2.0, 30.25, 40.0)
MAP = (0, 0, 0, 1, 1, 2)
PERSON = KeyPointDetectionResult(((1.0, 2.0), (3.0, 4.0)), (0.9, 0.1), 2, (BOX,), (0.75,))
CASES: list[tuple[Result, list[str]]] = [
    (DetectionResult((BOX,), (0.5,), (0,), ("[bold]cat",)), ["[bold]cat", "0.500", "1.0", "2.0", "30.2", "40.0"]),
    (ClassifyResult((3,), (0.25,), ("dog",)), ["dog", "0.2500"]),
    (SegmentationResult(MAP, (), (2, 3), False, ("sky", "sea")), ["sky 3 50.0%", "sea 2 33.3%", "2 1 16.7%"]),
    (
        SegmentationResult(shape=(2, 3), labels=("sky", "sea"), label_map_png=png_of(np.array(MAP).reshape(2, 3))),
        ["sky 3 50.0%", "sea 2 33.3%", "2 1 16.7%"],
    ),
    (OCRResult(((1, 2, 3, 2, 3, 4, 1, 4),), ("a [b] c",), (0.875,)), ["a [b] c 0.875 1 2 3 2 3 4 1 4"]),
    (OCRResult(((1, 2, 3, 2, 3, 4, 1, 4),), (), (0.875,)), ["0.875 1 2 3 2 3 4 1 4"]),
    (PERSON, ["1 0.750 1 of 2 1.0 2.0 30.2 40.0"]),
    (FaceDetectionResult((BOX,), (0.625,)), ["0.625 1.0 2.0 30.2 40.0"]),
    (EmbeddingResult((0.5,) * 512), ["512 0.5000 0.5000"]),
]


@pytest.mark.parametrize(("result", "texts"), CASES)
def test_a_table_says_what_was_seen(result: Result, texts: list[str]) -> None:
    shown = " ".join(printed(result).replace("│", " ").split())
    for text in texts:
        assert text in shown


@pytest.mark.parametrize("kind", RESULT_TYPES.values())
def test_a_result_of_nothing_has_a_table_too(kind: type[Result]) -> None:
    assert kind in {type(result) for result, _ in CASES}
    printed(kind())


def printed(result: Result) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(table(result))
    return out.getvalue()
