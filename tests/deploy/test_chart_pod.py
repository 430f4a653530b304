"""The pod of the chart, for real: a Docker daemon runs the image as a kubelet would, with everything that locks it down."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.deploy.chart_docker import Pod, publish
from tests.deploy.chart_rendering import Object, kind, objects, pod_spec
from tests.deploy.docker_daemon import Docker
from tests.deploy.docker_load import PICTURE, PNG

pytestmark = pytest.mark.timeout(580)  # the first one waits for the image
SECONDS = 60.0
COPY = """
import shutil, visionpool_server.app as app
for path in app.DEMO_MODELS.iterdir():
    shutil.copytree(path, f"/models/{path.name}") if path.is_dir() else shutil.copyfile(path, f"/models/{path.name}")
"""
NAMES = ("demo-visionpool.vision.svc", "demo-visionpool-grpc.vision.svc")
DRAIN = 3  # seconds


def values(image: str) -> dict[str, Any]:
    fetching = {"image": image, "command": ["python3", "-c"], "args": [COPY]}
    return {
        "models": {"source": "initContainer", "initContainer": fetching},
        "auth": {"existingSecret": "callers"},
        "tls": {"enabled": True, "existingSecret": "certificate"},
        "server": {"drainDelay": DRAIN, "gracePeriod": 10},
    }


@dataclass
class Running:
    docker: Docker
    pod: Pod
    spec: Object
    name: str
    secrets: dict[str, dict[str, str]]
    authority: ssl.SSLContext
    key: str = "first-key"  # that is valid now

    def address(self, port: int) -> str:
        return self.docker.run("port", self.name, port).splitlines()[0]

    def probe(self, which: str) -> int:
        """As the kubelet asks; 0 where nothing answers."""
        asked = self.spec["containers"][0][f"{which}Probe"]["httpGet"]
        (port,) = [each for each in self.spec["containers"][0]["ports"] if each["name"] == asked["port"]]
        try:
            return httpx.get(f"http://{self.address(port['containerPort'])}{asked['path']}", timeout=5).status_code
        except httpx.TransportError:
            return 0

    def predict(self, key: str) -> int:
        with httpx.Client(verify=self.authority, timeout=20) as client:
            url = f"https://{self.address(8000)}/v1/models/shapes/predict"
            return client.post(url, content=PICTURE, headers={**PNG, "X-API-Key": key}).status_code


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {SECONDS:g} s"
        time.sleep(0.1)


def certificate() -> tuple[dict[str, str], ssl.SSLContext]:
    authority, context = trustme.CA(), ssl.create_default_context()
    issued = authority.issue_cert("127.0.0.1", *NAMES)
    authority.configure_trust(context)
    chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
    files = {"tls.crt": chain, "tls.key": issued.private_key_pem.bytes(), "ca.crt": authority.cert_pem.bytes()}
    return {name: pem.decode() for name, pem in files.items()}, context


@pytest.fixture(scope="module")
def running(docker: Docker, cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    files, context = certificate()
    secrets = {"callers": {"api-keys": f"alice:{Running.key}\n"}, "certificate": files}
    spec = pod_spec(objects(values(cpu_image)))
    pod = Pod(docker, spec, tmp_path_factory.mktemp("pod"), secrets)
    try:
        pod.fetch()
        name = pod.start(*(option for port in (8000, 8001, 8002) for option in ("--publish", f"127.0.0.1::{port}")))
        found = Running(docker, pod, spec, name, secrets, context)
        until(lambda: found.probe("startup") == 200, "ready")
        yield found
    finally:
        pod.close()


def test_the_pod_is_ready_and_alive_and_takes_who_has_a_key(running: Running) -> None:
    assert [running.probe(which) for which in ("startup", "readiness", "liveness")] == [200] * 3
    assert [running.predict(key) for key in (running.key, "no-key")] == [200, 401]


def test_the_models_are_those_that_were_fetched(running: Running) -> None:
    fetched = sorted(path.name for path in running.pod.volumes["models"].iterdir())
    assert {"shapes", "digits"} <= {name.partition(".")[0] for name in fetched}


def test_helm_test_passes(running: Running, cpu_image: str, tmp_path: Path) -> None:
    """By the Services' names, with the Secrets that the pod of `helm test` mounts."""
    spec = kind(objects(values(cpu_image)), "Pod")["spec"]
    where = running.docker.run("inspect", "--format", "{{.NetworkSettings.IPAddress}}", running.name)
    hosts = [option for name in NAMES for option in ("--add-host", f"{name}:{where}")]
    pod = Pod(running.docker, spec, tmp_path, running.secrets)
    try:
        said = pod.run(spec["containers"][0], *hosts)
    finally:
        pod.close()
    assert said.splitlines() == [f"{how}: digits answered with ClassifyResult" for how in ("REST", "gRPC")]


def test_a_new_key_is_taken_without_a_restart(running: Running) -> None:
    group = running.spec["securityContext"]["fsGroup"]
    old, running.key = running.key, "second-key"
    publish(running.pod.volumes["api-keys"], {"api-keys": f"alice:{running.key}\n"}, group)
    until(lambda: running.predict(running.key) == 200, "the new key")
    assert running.predict(old) == 401


def test_it_drains_within_the_time_that_kubernetes_gives(running: Running) -> None:
    """Last, as it ends the pod: not ready at once, and still serving for the drain's delay."""
    patience = running.spec["terminationGracePeriodSeconds"]
    stopping = threading.Thread(target=running.docker.run, args=("stop", "--time", patience, running.name))
    stopping.start()
    until(lambda: running.probe("readiness") == 503, "not ready any more")
    assert running.predict(running.key) == 200
    assert running.probe("liveness") == 200
    stopping.join(patience)
    status = running.docker.run("inspect", "--format", "{{.State.ExitCode}}", running.name)
    assert status == "0"
