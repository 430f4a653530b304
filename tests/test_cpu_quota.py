"""What control groups say of a container's share of the CPU, from files as Linux has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from visionpool_server import cpu
from visionpool_server.backends import LoadOptions, Source, get_backend
from visionpool_server.cpu_quota import cpu_quota

from tests import tiny_models


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/pod/container\n", {"pod/cpu.max": "400000 100000\n", "pod/container/cpu.max": "max 100000\n"}, 4.0),
        ("0::/pod/container\n", {"pod/cpu.max": "400000 100000\n", "pod/container/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/of/the/host\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/../outside\n", {"cpu.max": "max 100000\n"}, None),
        ("3:cpu,cpuacct:/docker/1\n0::/\n", {"cpu,cpuacct/docker/1/cpu.cfs_quota_us": "300000\n",
                                           "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n"}, 3.0),
        ("2:cpu:/docker/1\n", {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("5:cpuset:/a\n", {"cpuset/a/cpu.max": "100000 100000\n"}, None),
        ("0::/\n", {"cpu.max": "many few\n"}, None),
        ("0::/\n", {"cpu.max": "100000 0\n"}, None),
        ("nonsense\n", {"cpu.max": "max 100000\n"}, None),
    ],
)  # fmt: skip
def test_it_is_the_least_that_any_group_allows(
    tmp_path: Path, own: str, files: dict[str, str], quota: float | None
) -> None:
    mount = written(tmp_path / "cgroup", {"none": "", **files})
    assert cpu_quota(mount, written(tmp_path, {"own": own}) / "own") == quota


def test_without_control_groups_there_is_none(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "nothing", tmp_path / "no file") is None


@pytest.mark.parametrize(("quota", "cores"), [(0.3, 1), (1.0, 1), (1.2, 2), (1000.0, None), (None, None)])
def test_cores_are_counted_by_it(monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int | None) -> None:
    """Rounded up, and never more than there are."""
    monkeypatch.setattr(cpu, "cpu_quota", lambda: quota)
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert cpu.cpu_count() == min(there, cores or there)


def test_openvino_starts_no_more_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = Source(tiny_models.two_by_two(tmp_path / "model.onnx"))
    monkeypatch.setattr(cpu, "cpu_quota", lambda: 1.0)
    engine = get_backend("openvino").load(source, LoadOptions())
    try:
        assert engine.contexts == 1
    finally:
        engine.close()
