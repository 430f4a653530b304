"""Regions of real POSIX shared memory: what is read and written, what is refused, and what a client cannot break."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import shared_memory as mp
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.utils.shared_memory as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException
from visionpool.errors import InvalidRequest, NotFound, QueueFull, TooLarge, Unimplemented
from visionpool_server.api.bodies import BodyLimits
from visionpool_server.api.budget import ByteBudget
from visionpool_server.api.kserve.control import Control
from visionpool_server.api.kserve.messages import InferRequest, InferResponse, InputTensor
from visionpool_server.api.kserve.protocol import Kserve
from visionpool_server.api.kserve.shared_memory import SEGMENTS, SharedMemory
from visionpool_server.api.kserve.switches import Tracing
from visionpool_server.models.loader import Defaults
from visionpool_server.models.repository import Repository
from visionpool_server.service import Service

from tests.conftest import Serve
from tests.kserve_models import operator

BOUND = 20.0  # seconds that anything here may take at most
SIZE = 4096

pytestmark = pytest.mark.skipif(not SEGMENTS.is_dir(), reason="POSIX shared memory lies elsewhere on this system")


@contextmanager
def segment_of(size: int = SIZE) -> Iterator[mp.SharedMemory]:
    segment = mp.SharedMemory(f"visionpool-{uuid4().hex}", create=True, size=size)
    try:
        yield segment
    finally:
        segment.close()
        segment.unlink()


@pytest.fixture
def segment() -> Iterator[mp.SharedMemory]:
    with segment_of() as made:
        yield made


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory()
    yield made
    made.close()


def view(segment: mp.SharedMemory) -> memoryview:
    assert segment.buf is not None
    return segment.buf


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_tensor_of_tritons_client_is_read_and_the_answer_is_found_by_it(memory: SharedMemory) -> None:
    key = f"/visionpool-{uuid4().hex}"
    handle = triton.create_shared_memory_region("data", key, SIZE)
    try:
        sent = np.arange(16, dtype=np.int32).reshape(4, 4)
        triton.set_shared_memory_region(handle, [sent])
        memory.register("data", key, 0, SIZE)
        assert np.frombuffer(memory.read("data", 0, sent.nbytes), np.int32).tolist() == list(range(16))
        memory.write("data", 1024, (sent * 2).tobytes())
        assert (triton.get_contents_as_numpy(handle, np.int32, [4, 4], 1024) == sent * 2).all()
    finally:
        triton.destroy_shared_memory_region(handle)


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_a_key_may_be_led_by_slashes_as_in_shm_open(
    memory: SharedMemory, segment: mp.SharedMemory, slashes: str
) -> None:
    memory.register("data", slashes + segment.name.lstrip("/"), 0, SIZE)
    assert memory.read("data", 0, SIZE) == bytes(SIZE)


def test_the_offset_of_a_region_counts_from_the_segments_start(memory: SharedMemory, segment: mp.SharedMemory) -> None:
    view(segment)[:8] = b"01234567"
    memory.register("data", segment.name, 2, 5)
    assert memory.read("data", 1, 3) == b"345"
    memory.write("data", 4, memoryview(b"x"))
    assert bytes(view(segment)[:8]) == b"012345x7"


def test_arrays_of_any_type_can_be_written(memory: SharedMemory, segment: mp.SharedMemory) -> None:
    values = np.array([[1.5, 2.5]], np.float64)
    memory.register("data", segment.name, 0, SIZE)
    memory.write("data", 0, values.data)
    assert np.frombuffer(view(segment), np.float64, 2).tolist() == [1.5, 2.5]


def test_the_status_tells_of_one_region_or_of_all(memory: SharedMemory, segment: mp.SharedMemory) -> None:
    memory.register("a", segment.name, 0, 10)
    memory.register("b", segment.name, 5, 10)  # they may overlap
    every, one = memory.status().regions, memory.status("b").regions
    assert sorted(every) == ["a", "b"]
    assert list(one) == ["b"]
    assert (one["b"].name, one["b"].key, one["b"].offset, one["b"].byte_size) == ("b", segment.name, 5, 10)


def test_an_unknown_region_is_not_found_and_may_be_unregistered(memory: SharedMemory) -> None:
    for ask in (lambda: memory.status("x"), lambda: memory.read("x", 0, 1), lambda: memory.write("x", 0, b"1")):
        with pytest.raises(NotFound, match="'x'"):
            ask()
    memory.unregister("x")


def test_one_region_is_unregistered_or_all_and_every_descriptor_is_closed(
    memory: SharedMemory, segment: mp.SharedMemory
) -> None:
    before = descriptors()
    for name in "abc":
        memory.register(name, segment.name, 0, SIZE)
    memory.unregister("b")
    assert sorted(memory.status().regions) == ["a", "c"]
    memory.unregister()
    assert not memory.status().regions
    assert descriptors() == before


def test_a_name_that_is_taken_is_refused_until_it_is_free(memory: SharedMemory, segment: mp.SharedMemory) -> None:
    memory.register("a", segment.name, 0, SIZE)
    with pytest.raises(InvalidRequest, match="registered already"):
        memory.register("a", segment.name, 0, SIZE)
    memory.unregister("a")
    memory.register("a", segment.name, 0, SIZE)


@pytest.mark.parametrize(
    "key", ["", "/", "a/b", "/a/b", "..", "/..", ".", "a\0b", "x" * 300, "sem.lock", "/sem.lock", "\udc80", "a\nb"]
)
def test_keys_that_no_segment_has_are_refused(memory: SharedMemory, key: str) -> None:
    with pytest.raises(InvalidRequest, match="is no key"):
        memory.register("a", key, 0, 1)


def test_a_segment_that_is_not_there_is_refused(memory: SharedMemory) -> None:
    before = descriptors()
    with pytest.raises(InvalidRequest, match="No such file") as caught:
        memory.register("a", "/visionpool-nothing", 0, 1)
    assert "create it first" in str(caught.value)
    assert descriptors() == before


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_plain_files_are_segments(memory: SharedMemory, tmp_path: Path, kind: str) -> None:
    path = SEGMENTS / f"visionpool-{uuid4().hex}"
    secret = tmp_path / "secret"
    secret.write_bytes(b"0123")
    before = descriptors()
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    try:
        with pytest.raises(InvalidRequest):
            memory.register("a", path.name, 0, 1)
    finally:
        path.rmdir() if kind == "folder" else path.unlink()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 0), (-1, 5), (0, -5), (0, SIZE + 1), (SIZE, 1), (2**63, 1), (0, 2**64 - 1)]
)
def test_a_region_has_to_lie_in_its_segment(
    memory: SharedMemory, segment: mp.SharedMemory, offset: int, size: int
) -> None:
    before = descriptors()
    with pytest.raises(InvalidRequest):
        memory.register("a", segment.name, offset, size)
    assert descriptors() == before
    assert not memory.status().regions


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "\ud800"])
def test_names_that_make_no_sense_are_refused(memory: SharedMemory, segment: mp.SharedMemory, name: str) -> None:
    with pytest.raises(InvalidRequest, match="printable"):
        memory.register(name, segment.name, 0, 1)


SOMEWHERE = st.integers(-3, 70) | st.integers(-(2**70), 2**70)


@given(start=st.integers(0, 64), size=st.integers(1, 64), offset=SOMEWHERE, count=SOMEWHERE)
def test_nothing_outside_of_a_region_is_ever_read(start: int, size: int, offset: int, count: int) -> None:
    content = bytes(range(128))
    with segment_of(128) as segment:
        view(segment)[:] = content
        memory = SharedMemory()
        memory.register("a", segment.name, start, size)
        try:
            if offset >= 0 and 0 <= count <= size - offset:
                assert memory.read("a", offset, count) == content[start + offset : start + offset + count]
            else:
                with pytest.raises(InvalidRequest):
                    memory.read("a", offset, count)
        finally:
            memory.close()


@given(start=st.integers(0, 64), size=st.integers(1, 64), offset=SOMEWHERE, data=st.binary(max_size=80))
def test_nothing_outside_of_a_region_is_ever_written(start: int, size: int, offset: int, data: bytes) -> None:
    expected = bytearray(128)
    with segment_of(128) as segment:
        memory = SharedMemory()
        memory.register("a", segment.name, start, size)
        try:
            if offset >= 0 and len(data) <= size - offset:
                expected[start + offset : start + offset + len(data)] = data
                memory.write("a", offset, data)
            else:
                with pytest.raises(InvalidRequest):
                    memory.write("a", offset, data)
        finally:
            memory.close()
        assert bytes(view(segment)) == bytes(expected)


@pytest.mark.parametrize("left", [0, SIZE // 2])
def test_a_client_that_shrinks_its_segment_harms_only_itself(
    memory: SharedMemory, segment: mp.SharedMemory, left: int
) -> None:
    memory.register("a", segment.name, 0, SIZE)
    path = SEGMENTS / segment.name.lstrip("/")
    os.truncate(path, left)
    with pytest.raises(InvalidRequest, match="smaller than when"):
        memory.read("a", 0, SIZE)
    with pytest.raises(InvalidRequest, match="smaller than when"):
        memory.write("a", 0, bytes(SIZE))
    assert path.stat().st_size == left  # it did not grow


def test_a_segment_that_was_unlinked_is_still_the_one_registered(memory: SharedMemory) -> None:
    with segment_of() as segment:
        view(segment)[:3] = b"old"
        memory.register("a", segment.name, 0, SIZE)
    assert memory.read("a", 0, 3) == b"old"


def test_where_it_is_switched_off_every_call_says_so() -> None:
    memory = SharedMemory(allowed=False)
    assert not memory.available
    for call in (
        lambda: memory.register("a", "/a", 0, 1),
        memory.unregister,
        memory.status,
        lambda: memory.read("a", 0, 1),
        lambda: memory.write("a", 0, b"1"),
    ):
        with pytest.raises(Unimplemented, match=r"switched off .*--no-system-shared-memory"):
            call()
    memory.close()


def test_there_is_a_limit_to_the_regions(
    memory: SharedMemory, segment: mp.SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionpool_server.api.kserve.shared_memory._MAX_REGIONS", 3)
    for i in range(3):
        memory.register(f"a{i}", segment.name, 0, SIZE)
    with pytest.raises(InvalidRequest, match="no more are taken"):
        memory.register("one more", segment.name, 0, SIZE)


def test_a_region_in_use_outlives_its_registration(
    memory: SharedMemory, segment: mp.SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    view(segment)[:4] = b"data"
    memory.register("a", segment.name, 0, SIZE)
    before = descriptors()
    reading, unregistered = threading.Event(), threading.Event()
    pread = os.pread

    def slow(*arguments: Any) -> bytes:
        reading.set()
        assert unregistered.wait(BOUND)
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", slow)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(memory.read, "a", 0, 4)
        assert reading.wait(BOUND)
        memory.unregister("a")
        assert descriptors() == before  # still open
        unregistered.set()
        assert answer.result(BOUND) == b"data"
    assert descriptors() == before - 1


def test_many_threads_register_read_and_unregister_at_once(memory: SharedMemory, segment: mp.SharedMemory) -> None:
    view(segment)[:] = b"x" * SIZE
    before = descriptors()

    def churn(name: str) -> int:
        right = 0
        for _ in range(200):
            try:
                memory.register(name, segment.name, 0, SIZE)
                right += memory.read(name, 0, SIZE) == b"x" * SIZE
            except (InvalidRequest, NotFound):
                """Another thread was first."""
            memory.unregister(name)
        return right

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(churn, "aabbccdd", timeout=BOUND)) > 0
    assert not memory.status().regions
    assert descriptors() == before


# In a server


def test_tensors_in_shared_memory_are_bounded_and_counted_as_those_in_requests() -> None:
    limits = BodyLimits(max_bytes=100, budget=ByteBudget(150))
    models = Repository()
    service = Service(models, threads=1)
    control, tracing = Control(models, [], Defaults(), explicit=False), Tracing(None, models)
    kserve = Kserve(service, control, tracing, SharedMemory(), limits=limits, ready=lambda: True)

    async def asking(request: InferRequest) -> None:
        begun = kserve.begin(request)
        assert not isinstance(begun, InferResponse)
        await begun

    def asked(*sizes: Any) -> None:
        places = [{"shared_memory_region": "r", "shared_memory_byte_size": size} for size in sizes]
        inputs = [InputTensor(f"x{i}", "UINT8", (1,), None, place) for i, place in enumerate(places)]
        asyncio.run(asking(InferRequest("nobody", "", inputs)))

    try:
        for too_much in ((101,), (60, 41)):
            with pytest.raises(TooLarge, match="larger than"):
                asked(*too_much)
        for fine in ((60, 40), (-1,), ("1",), (None,)):  # or refused where it is read
            with pytest.raises(NotFound, match="nobody"):
                asked(*fine)
        with limits.budget.hold() as held, pytest.raises(QueueFull):
            held.take(100)
            asked(60)
        assert limits.budget.used == 0
    finally:
        kserve.close()
        service.close()


def test_a_server_without_it_names_it_nowhere_and_refuses_its_calls(serve: Serve, tmp_path: Path) -> None:
    server = serve(operator(tmp_path / "same", "Identity", "FP32", ["n", 4]), "--no-system-shared-memory")
    with (
        httpx.Client(base_url=server.url, timeout=BOUND) as http,
        triton_grpc.InferenceServerClient(server.grpc) as rpc,
    ):
        assert "system_shared_memory" not in http.get("/v2").json()["extensions"]
        place = {"shared_memory_region": "r", "shared_memory_byte_size": 16}
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": place}
        for answer in (
            http.get("/v2/systemsharedmemory/status"),
            http.post("/v2/systemsharedmemory/region/r/register", json={"key": "/k", "byte_size": 16}),
            http.post("/v2/systemsharedmemory/unregister"),
            http.post("/v2/models/same/infer", json={"inputs": [tensor]}),
        ):
            assert answer.status_code == 501
            assert "--no-system-shared-memory" in answer.json()["error"]
        for call in (
            rpc.get_system_shared_memory_status,
            rpc.unregister_system_shared_memory,
            lambda: rpc.register_system_shared_memory("r", "/k", 16),
        ):
            with pytest.raises(InferenceServerException, match="switched off") as refused:
                call()
            assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
