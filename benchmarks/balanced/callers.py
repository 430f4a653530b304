"""Ways to ask replicas: our clients, which ask again where one is gone, and plain ones, which do not.

Each gives the version that answered, which is the replica's name, and raises `WrongAnswer` for an answer to another picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import cv2
import grpc
import grpc.aio
import httpx
import numpy as np
import visionpool
from visionpool.v1 import vision_pb2 as v1

from benchmarks.balanced.fleet import MODEL

TIMEOUT = 30.0  # seconds
PATIENT = ("client, HTTP", "client, gRPC", "client, gRPC dns:///")
PLAIN = ("httpx", "grpcio", "grpcio dns:///")


class WrongAnswer(Exception):
    """The answer is not that of the picture that was sent."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The balancer's addresses, and a name for all replicas, for clients that balance by themselves."""

    http: str
    grpc: str
    name: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture of one colour, and its scores."""

    data: bytes
    shares: tuple[float, ...]

    @classmethod
    def of(cls, red: int, green: int, blue: int) -> Sample:
        pixels = np.full((150, 150, 3), (blue, green, red), np.uint8)
        # Not compressed: 66 KiB are more than a proxy buffers, so that requests can break in the middle.
        written, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 0])
        assert written
        return cls(data.tobytes(), tuple(value / (red + green + blue) for value in (red, green, blue)))

    def check(self, labels: Any, scores: Any) -> None:
        found = dict(zip(labels, scores, strict=True))
        wanted = dict(zip(("red", "green", "blue"), self.shares, strict=True))
        if found.keys() != wanted.keys() or any(abs(found[name] - wanted[name]) > 2e-3 for name in wanted):
            raise WrongAnswer(f"{found} in place of {wanted}")


class Caller(ABC):
    @abstractmethod
    async def ask(self, sample: Sample) -> str:
        """The version that answered."""

    @abstractmethod
    async def close(self) -> None: ...


class OurClient(Caller):
    def __init__(self, client: visionpool.AsyncClient | visionpool.AsyncGrpcClient) -> None:
        self._client = client

    async def ask(self, sample: Sample) -> str:
        prediction = await self._client.predict_full(MODEL, sample.data)
        result = prediction.results[0]
        assert isinstance(result, visionpool.ClassifyResult)
        sample.check(result.labels, result.scores)
        return prediction.version

    async def close(self) -> None:
        await self._client.aclose()


class Httpx(Caller):
    """As anybody would write it. Raises HTTPStatusError, TransportError."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT)

    async def ask(self, sample: Sample) -> str:
        headers = {"Content-Type": "image/png"}
        response = await self._http.post(f"/v1/models/{MODEL}/predict", content=sample.data, headers=headers)
        answer = response.raise_for_status().json()
        sample.check(answer["results"][0]["labels"], answer["results"][0]["scores"])
        return str(answer["version"])

    async def close(self) -> None:
        await self._http.aclose()


class GrpcStub(Caller):
    """grpcio with nothing around it. Raises AioRpcError."""

    def __init__(self, target: str, *options: tuple[str, Any]) -> None:
        self._channel = grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1), *options])
        self._predict = self._channel.unary_unary(
            "/visionpool.v1.Vision/Predict", v1.PredictRequest.SerializeToString, v1.PredictResponse.FromString
        )

    async def ask(self, sample: Sample) -> str:
        answer = await self._predict(v1.PredictRequest(model=MODEL, pictures=[sample.data]), timeout=TIMEOUT)
        result = answer.results[0].classification
        sample.check(result.labels, result.scores)
        return str(answer.version)

    async def close(self) -> None:
        await self._channel.close()


def callers(targets: Targets) -> dict[str, Caller]:
    """One of each way; to be made within the running event loop."""
    in_turn = ("grpc.lb_policy_name", "round_robin"), ("grpc.dns_min_time_between_resolutions_ms", 5_000)
    made: list[Caller] = [
        OurClient(visionpool.AsyncClient(targets.http, timeout=TIMEOUT)),
        OurClient(visionpool.AsyncGrpcClient(targets.grpc, timeout=TIMEOUT)),
        OurClient(visionpool.AsyncGrpcClient(targets.name, timeout=TIMEOUT)),
        Httpx(targets.http),
        GrpcStub(targets.grpc),
        GrpcStub(targets.name, *in_turn),
    ]
    return dict(zip((*PATIENT, *PLAIN), made, strict=True))


def kind_of(error: Exception) -> str:
    """What happened, in a few words that stand in a table."""
    if isinstance(error, httpx.HTTPStatusError):
        return str(error.response.status_code)
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {(error.details() or '')[:60]}"
    return (
        f"{type(error).__name__}: {str(error)[:60]}"
        if isinstance(error, visionpool.VisionpoolError)
        else type(error).__name__
    )
