"""What a server says at /metrics, read by prometheus_client's own parsers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families
from visionpool_server.api.metrics import Metrics

WAIT = 20.0  # seconds; what is waited for comes in milliseconds


@dataclass(frozen=True, slots=True)
class Scrape:
    """`samples`: by name and labels."""

    text: str
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def of(cls, text: str) -> Scrape:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        named = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
        assert len(named) == len(samples), "a sample is there twice"
        return cls(text, named)

    def value(self, name: str, /, **labels: str) -> float | None:
        """None where there is no such sample."""
        return self.samples.get((name, frozenset(labels.items())))

    def __call__(self, name: str, /, **labels: str) -> float:
        """The value of a sample that is there."""
        value = self.value(name, **labels)
        assert value is not None, f"no {name}{labels} in {sorted(map(str, self.samples))}"
        return value

    def labels(self, name: str, label: str) -> set[str]:
        """All values of a label."""
        return {dict(labels)[label] for found, labels in self.samples if found == name and label in dict(labels)}

    def families(self) -> set[str]:
        return {line.split()[2] for line in self.text.splitlines() if line.startswith("# TYPE ")}


def scrape(url: str, **headers: str) -> Scrape:
    answer = httpx.get(f"{url}/metrics", headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return Scrape.of(answer.text)


def until(url: str, holds: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape of which something holds."""
    end = time.monotonic() + WAIT
    while not holds(found := scrape(url)):
        assert time.monotonic() < end, f"it never held; at last:\n{found.text}"
    return found


def asked(metrics: Metrics, method: str, **headers: str) -> httpx.Response:
    """From the application that stands on a port of its own, without a socket."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(metrics.endpoint)
        async with httpx.AsyncClient(transport=transport, base_url="http://metrics") as client:
            return await client.request(method, "/metrics", headers=headers)

    return asyncio.run(ask())


def in_process(metrics: Metrics) -> Scrape:
    return Scrape.of(asked(metrics, "GET").text)
