"""The HTTP clients: `Client` blocks, `AsyncClient` awaits. What they can be asked is in `calls`."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from visionpool.answers import Answer, Refusal
from visionpool.calls import AwaitedCalls, Calls
from visionpool.protocol import Call, Patience
from visionpool.tls import Tls
from visionpool.transport import DEFAULT_URL, answer, request, settings, translated


class Client(Calls):
    """Talks to a visionpool server, and may be shared between threads.

        with visionpool.Client("http://127.0.0.1:8000") as client:
            result = client.predict("yolov8n", "street.jpg", score_threshold=0.4)
            if isinstance(result, visionpool.DetectionResult):
                for label, score, box in zip(result.labels, result.scores, result.boxes):
                    print(label, score, box)  # person 0.91 (xmin, ymin, xmax, ymax), in pixels

    A picture is a path, the bytes of an encoded picture, a file opened with "rb", a Pillow image, or an array
    of uint8 pixels: (H, W, 3) in the order blue, green, red as `cv2.imread` gives them (else `color="rgb"`),
    (H, W), (H, W, 1) or (H, W, 4). Arrays travel without loss, and so are large: far from the server, send
    the bytes of a JPEG.

    `timeout`: seconds for a call with all its retries and pauses; within one attempt it is httpx's, for connecting, and
    for each wait for a next piece of the answer. `retries`: how often a call comes back
    when the server is busy (429, or 503 with Retry-After), no sooner than it asks, or gone: nothing answers, or the
    connection broke, or a balancer says so; a request with which two servers went away is not sent to a third.
    `api_key` is sent as a bearer token. `tls` is for certificates of
    your own. `transport` is httpx's, for proxies and tests; it knows nothing of `tls`.

    Every call raises a subclass of `VisionpoolError`: what the server answered (RequestError, ServiceError),
    ConnectionFailed where nothing answers, DeadlineExceeded after `timeout`; and OSError for a picture's file that
    cannot be read.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(Patience(timeout, retries))
        self._http = httpx.Client(transport=transport, **settings(url, api_key, headers, tls))

    def close(self) -> None:
        self._http.close()

    def _exchange(self, call: Call) -> Answer | Refusal:
        sent = request(self._http, call)
        with translated(self._http, call):
            response = self._http.send(sent)
        return answer(call, response)


class AsyncClient(AwaitedCalls):
    """`Client` for asyncio and trio: the same calls with the same meaning, awaited. See there.

        async with visionpool.AsyncClient() as client:
            results = await asyncio.gather(*(client.predict("yolov8n", path) for path in paths))

    Paths, files and arrays are read in a thread, so that the event loop goes on.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float = 30.0,
        retries: int = 3,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(Patience(timeout, retries))
        self._http = httpx.AsyncClient(transport=transport, **settings(url, api_key, headers, tls))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _exchange(self, call: Call) -> Answer | Refusal:
        sent = request(self._http, call)
        with translated(self._http, call):
            response = await self._http.send(sent)
        return answer(call, response)
