"""Two thousand requests of every kind at once: each good one is answered rightly, each bad one told so, nothing stays.

Real sockets, one server process, the fake backend: its answer is the picture's mean colour, so that no answer can be
mistaken for another's.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from visionpool_server.cpu import cpu_count

from tests.conftest import Serve
from tests.real_server import Server, picture, scores, shares, write_model

POOLED = 6  # asyncio's own pool starts its threads one by one, as it needs them, and may not be done
REQUESTS, AT_ONCE, SEED = 2000, 64, 20
BOUND = 60.0  # seconds for one request, with all its retries
PATH = "/v1/models/colours/predict"
BODY_SECONDS = 1.0
MEGABYTE = 2**20

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    retry_after: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture file and the colour that it shows."""

    colour: Colour
    data: bytes


def samples(rng: random.Random) -> list[Sample]:
    """Files of many colours, sizes and formats."""
    made = []
    for _ in range(150):
        colour = (rng.randrange(5, 250), rng.randrange(5, 250), rng.randrange(5, 250))
        size = (rng.randrange(8, 320), rng.randrange(8, 240))
        made.append(Sample(colour, picture(colour, size, rng.choice([".png", ".jpg", ".bmp", ".webp"]))))
    return made


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    status = int((await reader.readline()).split()[1])
    headers = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers["content-length"]))
    return Answer(status, headers.get("retry-after"), body)


class Crowd:
    """The clients of one server. Each kind of request is a method; each fails where its answer is not as it must be."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._samples = samples(random.Random(SEED))
        self._huge = picture((1, 2, 3), (1200, 900))  # more than the million pixels that the server takes
        self.retries = 0

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def send(self, head: str, *pieces: bytes, pause: float = 0.0) -> Answer:
        """One request on a connection of its own."""
        reader, writer = await self.open()
        try:
            writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if pause:
                    await asyncio.sleep(pause)
            return await read_answer(reader)
        finally:
            writer.close()

    async def until_let_in(self, rng: random.Random, head: str, *pieces: bytes, pause: float = 0.0) -> Answer:
        """As `send`, but where the queue is full it comes back."""
        while (answer := await self.send(head, *pieces, pause=pause)).status == 429:
            assert answer.retry_after is not None
            assert int(answer.retry_after) >= 1
            self.retries += 1
            await asyncio.sleep(rng.uniform(0.02, 0.3))  # sooner than it was told: it is a rude crowd
        return answer

    def check(self, answer: Answer, *wanted: Sample) -> None:
        assert answer.status == 200, answer
        said: Any = json.loads(answer.body)
        assert len(said["results"]) == len(wanted)
        for index, sample in enumerate(wanted):
            assert scores(said, index) == pytest.approx(shares(sample.colour), abs=0.015)

    def refused(self, answer: Answer, status: int, code: str) -> None:
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)

    async def good(self, rng: random.Random) -> None:
        sample = rng.choice(self._samples)
        head = f"Content-Type: image/png\r\nContent-Length: {len(sample.data)}"
        self.check(await self.until_let_in(rng, head, sample.data), sample)

    async def good_json(self, rng: random.Random) -> None:
        chosen = rng.sample(self._samples, 2)
        images = [{"base64": base64.b64encode(sample.data).decode()} for sample in chosen]
        body = json.dumps({"images": images}).encode()
        head = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
        self.check(await self.until_let_in(rng, head, body), *chosen)

    async def good_form(self, rng: random.Random) -> None:
        chosen = rng.sample(self._samples, 3)
        part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        body = b"".join(part + sample.data + b"\r\n" for sample in chosen) + b"--x--\r\n"
        head = f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}"
        self.check(await self.until_let_in(rng, head, body), *chosen)

    async def good_but_slow(self, rng: random.Random) -> None:
        sample = rng.choice(self._samples)
        step = max(1, len(sample.data) // 5)
        pieces = [sample.data[i : i + step] for i in range(0, len(sample.data), step)]
        chunks = [f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces]
        head = "Content-Type: image/png\r\nTransfer-Encoding: chunked"
        self.check(await self.until_let_in(rng, head, *chunks, b"0\r\n\r\n", pause=0.03), sample)

    async def corrupt(self, rng: random.Random) -> None:
        data = rng.choice([sample.data for sample in self._samples if sample.data[:1] in b"\x89\xff"])
        body = data[: rng.randrange(20, 40)]
        head = f"Content-Type: image/png\r\nContent-Length: {len(body)}"
        self.refused(await self.until_let_in(rng, head, body), 422, "invalid_image")

    async def no_picture(self, rng: random.Random) -> None:
        body = rng.randbytes(rng.randrange(1, 5000)).replace(b"BM", b"XX")
        head = f"Content-Type: image/png\r\nContent-Length: {len(body)}"
        answer = await self.until_let_in(rng, head, b"?" + body[1:])
        self.refused(answer, 415, "unsupported_media")

    async def too_many_pixels(self, rng: random.Random) -> None:
        head = f"Content-Type: image/png\r\nContent-Length: {len(self._huge)}"
        self.refused(await self.until_let_in(rng, head, self._huge), 413, "too_large")

    async def too_many_bytes(self, rng: random.Random) -> None:
        """Its length is not declared, and it sends all before it reads."""
        chunk = b"40000\r\n" + bytes(0x40000) + b"\r\n"
        head = "Content-Type: image/png\r\nTransfer-Encoding: chunked"
        self.refused(await self.send(head, *[chunk] * 6, b"0\r\n\r\n"), 413, "too_large")

    async def too_many_bytes_declared(self, rng: random.Random) -> None:
        head = f"Content-Type: image/png\r\nContent-Length: {3 * MEGABYTE}"
        self.refused(await self.send(head, bytes(MEGABYTE), bytes(2 * MEGABYTE)), 413, "too_large")

    async def too_slow(self, rng: random.Random) -> None:
        head = "Content-Type: image/png\r\nContent-Length: 100"
        self.refused(await self.send(head, b"\x89PNG"), 408, "request_timeout")

    async def gone_in_its_body(self, rng: random.Random) -> None:
        sample = rng.choice(self._samples)
        _, writer = await self.open()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sample.data)}\r\n\r\n"
        writer.write(head.encode() + sample.data[: len(sample.data) // 2])
        await writer.drain()
        await asyncio.sleep(rng.uniform(0, 0.02))
        writer.transport.abort()

    async def gone_before_its_answer(self, rng: random.Random) -> None:
        sample = rng.choice(self._samples)
        _, writer = await self.open()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sample.data)}\r\n\r\n"
        writer.write(head.encode() + sample.data)
        await writer.drain()
        await asyncio.sleep(rng.uniform(0, 0.02))
        writer.transport.abort()

    async def run(self, requests: range) -> Counter[str]:
        """The requests of these numbers, `AT_ONCE` at a time. How many of each kind came out as they must."""
        kinds: list[tuple[Callable[[random.Random], Awaitable[None]], int]] = [
            (self.good, 55),
            (self.good_json, 6),
            (self.good_form, 6),
            (self.good_but_slow, 5),
            (self.corrupt, 6),
            (self.no_picture, 3),
            (self.too_many_pixels, 4),
            (self.too_many_bytes, 2),
            (self.too_many_bytes_declared, 2),
            (self.too_slow, 1),
            (self.gone_in_its_body, 5),
            (self.gone_before_its_answer, 5),
        ]
        places = asyncio.Semaphore(AT_ONCE)
        done: Counter[str] = Counter()

        async def one(number: int) -> None:
            rng = random.Random(SEED + number)  # its own: what it does must not depend on the order of the others
            (kind,) = rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
            async with places, asyncio.timeout(BOUND):
                await kind(rng)
            done[kind.__name__] += 1

        async with asyncio.TaskGroup() as group:
            for number in requests:
                group.create_task(one(number))
        return done


def eventually(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, f"not within 30 s: {what}"
        time.sleep(0.05)


def open_connections(process: psutil.Process) -> int:
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections("tcp4"))


UNEQUAL = (  # groups of workers, each with two batches under way
    {"count": 1, "options": {"latency_ms": 4, "depth": 2}},
    {"count": 1, "options": {"latency_ms": 40, "depth": 2}},
)


@pytest.fixture(params=["batches", "worker-prepares", "unequal-groups"])
def crowded(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Server:
    """A server that is soon full, of any kind: one worker and batches of 8 that take 4 ms, their pictures prepared by stage
    threads; a worker for each core, which prepares picture by picture itself; or two workers of which one is slow, and takes
    only what the other leaves."""
    workers: Any
    if request.param == "batches":
        options, workers, batch = {"latency_ms": 4}, 1, 8
    elif request.param == "worker-prepares":
        options, workers, batch = {"latency_ms": 1, "on_cpu": True}, cpu_count(), 1
    else:
        options, workers, batch = {}, list(UNEQUAL), 4
    batching = {"max_batch_size": batch, "max_queue_size": 8}
    folder = write_model(tmp_path / "colours", options, workers=workers, batching=batching)
    limits = ("--max-body-mb", 1, "--max-pixels", 1_000_000, "--body-timeout", BODY_SECONDS)
    return serve(folder, *limits)


def test_of_two_thousand_mixed_requests_none_is_lost_and_the_server_is_as_before(crowded: Server) -> None:
    process = psutil.Process(crowded.process.pid)
    crowd = Crowd(crowded.port)
    warm_up = range(REQUESTS, REQUESTS + 300)  # afterwards all threads are there, and all that is kept for later
    asyncio.run(crowd.run(warm_up))
    eventually(lambda: open_connections(process) == 0, "idle")
    threads, files, memory = process.num_threads(), process.num_fds(), process.memory_info().rss

    done = asyncio.run(crowd.run(range(REQUESTS)))

    assert sum(done.values()) == REQUESTS
    assert len(done) == 12
    assert crowd.retries > 0  # it was full at times, or this has shown less than it says
    eventually(lambda: open_connections(process) == 0, "no connection is held")
    with httpx.Client(base_url=crowded.url, timeout=30) as client:
        assert client.get("/health/ready").status_code == 200
        answer = client.post(PATH, content=picture((200, 20, 30)))
        assert scores(answer.json()) == pytest.approx(shares((200, 20, 30)), abs=0.01)
        assert client.get("/v1/models/colours").json()["restarts"] == 0
    eventually(lambda: open_connections(process) == 0, "idle again")
    assert process.num_threads() <= threads + POOLED  # a thread for each request that went wrong would be hundreds
    assert process.num_fds() <= files
    assert process.memory_info().rss - memory < 64 * MEGABYTE
    assert "Traceback" not in crowded.log()
