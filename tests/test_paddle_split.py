"""How the rows of a PaddleDetection export are handed out, packed or padded, in batches that are padded themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from visionpool_server.families import NO_OPTIONS, FamilySpec, build_family
from visionpool_server.imaging.recipe import Geometry, Recipe, Resize

from tests.conftest import Serve

SPEC = FamilySpec(
    inputs={"image": (None, 3, 32, 32), "scale_factor": (None, 2)},
    outputs={"rows": (None, 6), "counts": (None,)},
    labels=("a", "b"),
    recipe=Recipe((Resize((32, 32)),)),
)


def outputs(counts: list[int], share: int | None) -> dict[str, Any]:
    """Rows that name their picture in xmin; with `share`, each picture's are filled up to so many."""
    rows = []
    for picture, count in enumerate(counts):
        rows += [[0, 0.9, picture, 1, picture + 5, 9]] * count
        rows += [[-1, 0, 0, 0, 0, 0]] * ((share or count) - count)
    return {"rows": np.array(rows, np.float32).reshape(-1, 6), "counts": np.array(counts, np.int32)}


@pytest.mark.parametrize("share", [None, 4])
@pytest.mark.parametrize("counts", [[1, 2, 3, 3], [0, 4, 0, 1], [0, 0, 0, 0], [4, 4, 4, 4]])
@pytest.mark.parametrize("pictures", [1, 2, 4])
def test_each_picture_gets_its_own_rows(counts: list[int], share: int | None, pictures: int) -> None:
    family = build_family("paddle_detection", SPEC)
    parts = family.split(outputs(counts, share), pictures)
    assert len(parts) == pictures
    for picture, (part, count) in enumerate(zip(parts, counts, strict=False)):
        result: Any = family.finish(part, Geometry(32, 32), NO_OPTIONS)
        assert [box[0] for box in result.boxes] == [picture] * count


def test_a_shifted_picture_is_shifted_back() -> None:
    family = build_family("paddle_detection", SPEC)
    part = {"rows": np.array([[0, 0.9, 10, 10, 20, 20]], np.float32)}
    result: Any = family.finish(part, Geometry(100, 100, 0.5, 0.5, 2, 1), NO_OPTIONS)
    assert result.boxes == ((6, 8, 16, 18),)  # the graph divides by the scale, not by the offset


def test_padded_batches_of_a_real_export_cost_no_worker(testdata: Path, serve: Serve, tmp_path: Path) -> None:
    source = testdata / "models" / "picodet_s_320_paddle"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.yaml").write_text("{name: pico, batching: {sizes: [4]}, workers: 1}")
    server = serve(tmp_path)
    photo = (testdata / "images" / "photos" / "dog.jpg").read_bytes()
    answers = [
        httpx.post(f"{server.url}/v1/models/pico/predict", content=photo, timeout=60).json()["results"]
        for _ in range(6)
    ]
    assert answers[0][0]["labels"] and all(answer == answers[0] for answer in answers)
    assert httpx.get(f"{server.url}/v1/models/pico").json()["restarts"] == 0
