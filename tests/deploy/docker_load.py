"""Callers over REST and gRPC that go on until the server says that it is no longer ready, as behind a load balancer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import httpx
import numpy as np
import tritonclient.grpc

from tests.deploy.docker_container import Container
from tests.real_server import picture

GIVE_UP_SECONDS = 60.0
CALLERS = 4  # of each kind
PICTURE, PNG = picture((90, 60, 30)), {"content-type": "image/png"}


class Load:
    """`start()`, then `finish()`: how requests ended, how often. Anything but "ok" is a request that was lost."""

    def __init__(self, container: Container, model: str) -> None:
        self._url = f"http://{container.port(8000)}/v1/models/{model}/predict"
        self._grpc = container.port(8001)
        self._ready = f"http://{container.port(8002)}/health/ready"
        self._model = model
        self._away = threading.Event()  # the balancer has taken this server off its list
        self._first = threading.Semaphore(0)
        self._counted: Counter[str] = Counter()
        self._lock = threading.Lock()
        targets = [self._balance, *[self._rest] * CALLERS, *[self._rpc] * CALLERS]
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]

    def start(self) -> None:
        """Returns when every caller has had an answer."""
        for thread in self._threads:
            thread.start()
        for _ in range(2 * CALLERS):
            assert self._first.acquire(timeout=GIVE_UP_SECONDS), "the callers got no answer"

    def finish(self) -> Counter[str]:
        for thread in self._threads:
            thread.join(GIVE_UP_SECONDS)
        assert self._away.is_set(), "the server never said that it is not ready"
        return self._counted

    def _balance(self) -> None:
        """Asks every tenth of a second, as load balancers do."""
        end = time.monotonic() + GIVE_UP_SECONDS
        with httpx.Client(timeout=5) as client:
            while time.monotonic() < end and client.get(self._ready).status_code == httpx.codes.OK:
                time.sleep(0.1)
        self._away.set()

    def _rest(self) -> None:
        with httpx.Client(timeout=20) as client:
            self._call(lambda: str(client.post(self._url, content=PICTURE, headers=PNG).status_code))

    def _rpc(self) -> None:
        tensor = tritonclient.grpc.InferInput("images", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([PICTURE], dtype=np.object_))
        with tritonclient.grpc.InferenceServerClient(self._grpc) as client:
            self._call(lambda: "200" if client.infer(self._model, [tensor]).get_response() else "nothing")

    def _call(self, once: Callable[[], str]) -> None:
        while not self._away.is_set():
            try:
                ended = once()
            except Exception as error:  # whatever happens to a request is what is counted
                ended = repr(error)
            with self._lock:
                self._counted["ok" if ended == "200" else ended] += 1
            self._first.release()
