"""Clones share their weights: the memory of four after all of them have predicted is that of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from visionpool_server.cpu import cpu_count

from benchmarks.memory import measure, resnet50


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = resnet50(tmp_path_factory.mktemp("memory") / "resnet50.onnx")
    assert 100e6 < path.stat().st_size < 105e6  # 25.5 million parameters
    return path


def test_four_clones_take_hardly_more_memory_than_one(resnet: Path) -> None:
    one, four = (measure(resnet, "openvino", copies, cloned=True) for copies in (1, 4))
    streams = min(4, cpu_count())  # OpenVINO runs at most one on a core; each has activations of its own, 10 MB
    assert four.predicted <= one.predicted * 1.05 + 10 * max(0, streams - 2)
    assert four.created <= one.created * 1.05


def test_two_separate_models_take_the_weights_twice(resnet: Path) -> None:
    """So that the measure above is shown to measure."""
    clones, separate = (measure(resnet, "openvino", 2, cloned=cloned) for cloned in (True, False))
    assert separate.predicted > clones.predicted + 100
