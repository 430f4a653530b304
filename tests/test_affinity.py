"""Workers that stay on cores of the CPU: what is written, what is near a device, and where their threads really run."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from visionpool.errors import InvalidModel
from visionpool_server import cpu
from visionpool_server.assembly import Pictures
from visionpool_server.backends import LoadOptions
from visionpool_server.backends.fake import FakeEngine
from visionpool_server.batching import Job
from visionpool_server.cpu import cores_near, cpu_count, parse_cores, pinned, usable_cores
from visionpool_server.families import split_by_row
from visionpool_server.pool import Group, Pool

BOUND = 30.0
OWN = usable_cores()
several_cores = pytest.mark.skipif(len(OWN) < 2, reason="this machine has one core, or does not tell where threads run")


class TestWriting:
    @pytest.mark.parametrize(
        ("said", "cores"),
        [
            ("3", {3}),
            ("0-3,8", {0, 1, 2, 3, 8}),
            (" 1 , 5-6\n", {1, 5, 6}),
            ("7-7", {7}),
            ("0,0-1,1", {0, 1}),
        ],
    )
    def test_lists_as_linux_writes_them(self, said: str, cores: set[int]) -> None:
        assert parse_cores(said) == cores

    @pytest.mark.parametrize("said", ["", ",", "a", "1-", "-1", "1-2-3", "0x1", "1.5", "0,,1", "٣", "123456", "all"])
    def test_anything_else_is_told_how_to_write_it(self, said: str) -> None:
        with pytest.raises(InvalidModel, match="no list of cores") as raised:
            parse_cores(said)
        assert "0-3,8" in (raised.value.hint or "")

    def test_a_range_rises(self) -> None:
        with pytest.raises(InvalidModel, match="3-1 in '0,3-1' ends before it begins"):
            parse_cores("0,3-1")


class TestNear:
    @pytest.fixture
    def devices(self, tmp_path: Path) -> Path:
        (tmp_path / "0000:3b:00.0").mkdir()
        return tmp_path

    def tell(self, devices: Path, text: str) -> None:
        (devices / "0000:3b:00.0" / "local_cpulist").write_text(text)

    @pytest.mark.parametrize("bus", ["0000:3b:00.0", "0000:3B:00.0", "00000000:3B:00.0"])
    def test_the_cores_of_its_node_that_may_be_used(self, devices: Path, bus: str) -> None:
        first = min(OWN, default=0)
        self.tell(devices, f"{first},60000-60003\n")
        assert cores_near(bus, devices) == ({first} if OWN else None)

    @pytest.mark.parametrize("text", ["", "\n", "60000-60003\n", "?"])
    def test_where_none_of_them_may_be_used_nobody_is_kept_there(self, devices: Path, text: str) -> None:
        self.tell(devices, text)
        assert cores_near("0000:3b:00.0", devices) is None

    @pytest.mark.parametrize("bus", ["0000:99:00.0", "", "../../etc", "0000:3b:00.0/..", "GPU-1"])
    def test_of_an_unknown_device_nothing_is_told(self, devices: Path, bus: str) -> None:
        self.tell(devices, "0-3")
        assert cores_near(bus, devices) is None


class Watched(FakeEngine):
    """Notes on which cores each batch may run."""

    def __init__(self, **options: Any) -> None:
        super().__init__(LoadOptions(options=options))
        self.cores: list[frozenset[int]] = []

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        self.cores.append(usable_cores())
        return super().run(images)


def run_one(pool: Pool) -> None:
    job = Job({"images": np.full((8, 8, 3), 9, np.uint8)}, dict)
    pool.submit(job)
    job.future.result(BOUND)


def pool_of(*groups: Group) -> Pool:
    pool = Pool("fake", groups, Pictures(split_by_row))
    pool.start()
    return pool


@several_cores
class TestThreads:
    @pytest.mark.parametrize("depth", [1, 2])
    def test_a_worker_stays_on_its_cores_and_so_do_the_threads_that_it_starts(self, depth: int) -> None:
        engine, cores = Watched(depth=depth), frozenset({max(OWN)})
        pool = pool_of(Group(engine, 1, cores))
        run_one(pool)
        pool.close()
        assert engine.cores == [cores]
        assert usable_cores() == OWN  # only it

    def test_the_worker_that_replaces_it_does_too(self) -> None:
        engine, cores = Watched(die=[9, 9, 9], once=True), frozenset({min(OWN)})
        pool = pool_of(Group(engine, 1, cores))
        run_one(pool)
        assert pool.restarts == 1
        pool.close()
        assert engine.cores == [cores, cores]

    def test_without_cores_it_runs_anywhere(self) -> None:
        engine = Watched()
        pool = pool_of(Group(engine, 1))
        run_one(pool)
        pool.close()
        assert engine.cores == [OWN]

    def test_each_group_has_its_own(self) -> None:
        one, two = Watched(), Watched()
        pool = pool_of(Group(one, 1, frozenset({min(OWN)})), Group(two, 1, frozenset({max(OWN)})))
        while not (one.cores and two.cores):
            run_one(pool)
        pool.close()
        assert set(one.cores) == {frozenset({min(OWN)})}
        assert set(two.cores) == {frozenset({max(OWN)})}

    def test_what_is_loaded_on_cores_sees_only_them_and_the_thread_is_free_again(self) -> None:
        with pinned(frozenset({min(OWN)})):
            assert cpu_count() == 1
            with ThreadPoolExecutor(1) as threads:
                assert threads.submit(usable_cores).result(BOUND) == {min(OWN)}
        assert cpu_count() == len(OWN)
        with pinned(None):
            assert usable_cores() == OWN

    def test_cores_that_are_not_there_cost_a_line_in_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        engine = Watched()
        cpu._tell_once.cache_clear()
        with caplog.at_level(logging.WARNING):
            pool = pool_of(Group(engine, 3, frozenset({60000})))
            run_one(pool)
            pool.close()
        assert engine.cores == [OWN]
        assert caplog.text.count("not kept on the cores 60000: Invalid argument") == 1
        assert usable_cores() == OWN


def test_where_the_system_cannot_threads_run_anywhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu._tell_once.cache_clear()
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == frozenset()
    assert cpu_count() == os.cpu_count()
    with caplog.at_level(logging.WARNING), pinned(frozenset({0})):
        assert threading.current_thread().is_alive()
    assert "not kept on the cores 0: this system cannot" in caplog.text


@pytest.mark.parametrize(
    ("cores", "prepares"),
    [
        ([None], True),
        ([frozenset({0, 1})], False),  # two more cores are for stage threads
        ([frozenset({0, 1}), frozenset({2, 3})], True),
        ([frozenset({0, 1}), None], True),
        ([frozenset(range(64))], True),
    ],
)
def test_workers_prepare_where_none_of_the_cores_is_without_them(
    monkeypatch: pytest.MonkeyPatch, cores: list[frozenset[int] | None], prepares: bool
) -> None:
    monkeypatch.setattr(cpu, "usable_cores", lambda: frozenset(range(4)))
    monkeypatch.setattr("visionpool_server.pool.usable_cores", lambda: frozenset(range(4)))
    groups = [Group(FakeEngine(LoadOptions(options={"on_cpu": True})), 4, each) for each in cores]
    assert Pool("fake", groups, Pictures(split_by_row)).prepares is prepares
