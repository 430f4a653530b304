"""docker/compose.yaml: what Compose makes of it, and its services up and healthy under a real Docker daemon.

There is no registry here: Prometheus is Debian's, under the public image's name, and what stands in for Triton is visionpool
itself, which speaks the same protocol. Grafana cannot be had; of it only what is written here is checked.
"""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import stat
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import yaml
from visionpool_server.app import DEMO_MODELS

from tests.deploy import docker_compose, docker_images
from tests.deploy.docker_compose import Compose
from tests.deploy.docker_daemon import ROOT, Docker
from tests.deploy.docker_images import VERSION
from tests.deploy.docker_load import PICTURE, PNG

pytestmark = pytest.mark.timeout(580)
ACCELERATORS = ("cpu", "intel-gpu", "nvidia", "remote")
WAIT_SECONDS = 60.0


@pytest.fixture(scope="session")
def compose(docker: Docker) -> Compose:
    return Compose(docker_compose.command(docker.folder), docker)


@pytest.fixture
def ports() -> dict[str, object]:
    """Free ones. They are told to Compose, which can take no other that is free and say which."""
    with ExitStack() as stack:
        names = ("HTTP_PORT", "GRPC_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: listener.getsockname()[1] for name, listener in zip(names, taken, strict=True)}


def predict(port: object, **more: Any) -> httpx.Response:
    scheme = "https" if "verify" in more else "http"
    url = f"{scheme}://127.0.0.1:{port}/v1/models/shapes/predict"
    headers = {**PNG, **more.pop("headers", {})}
    return httpx.post(url, content=PICTURE, headers=headers, timeout=20, **more)


@pytest.mark.parametrize("profile", ACCELERATORS)
def test_confines_every_service(compose: Compose, profile: str) -> None:
    for name, service in compose.config(profile, "monitoring")["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert service["logging"]["options"]["max-size"], name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name


@pytest.mark.parametrize("profile", ACCELERATORS)
def test_gives_a_server_limits_and_the_time_to_drain(compose: Compose, profile: str) -> None:
    service = compose.config(profile)["services"][profile]
    target = "cpu" if profile == "remote" else profile
    assert service["image"] == f"visionpool:{VERSION}-{target}"
    assert service["build"]["target"] == target
    environment = service["environment"]
    drain = int(environment["VISIONPOOL_DRAIN_DELAY"]) + int(environment["VISIONPOOL_GRACE_PERIOD"])
    assert int(service["stop_grace_period"].removesuffix("s")) > drain
    assert int(service["mem_limit"]) > 0
    assert service["pids_limit"] > 0
    assert {volume["target"] for volume in service["volumes"]} == {"/models", "/cache"}


def test_hands_devices_over(compose: Compose) -> None:
    intel = compose.config("intel-gpu", settings={"RENDER_GROUP": 110})["services"]["intel-gpu"]
    assert [device["source"] for device in intel["devices"]] == ["/dev/dri"]
    assert intel["group_add"] == ["110"]
    assert intel["environment"]["VISIONPOOL_DEVICE"] == "GPU"
    nvidia = compose.config("nvidia", settings={"GPUS": "all", "DEVICE": "cuda:1"})["services"]["nvidia"]
    (reserved,) = nvidia["deploy"]["resources"]["reservations"]["devices"]
    assert (reserved["driver"], reserved["capabilities"]) == ("nvidia", ["gpu"])
    assert reserved["count"] in {"all", -1}
    assert nvidia["environment"]["VISIONPOOL_DEVICE"] == "cuda:1"


def test_grafana_finds_its_datasource_and_its_dashboard(compose: Compose) -> None:
    """By what is written: there is no Grafana here to run."""
    grafana = compose.config("monitoring")["services"]["grafana"]
    files = {config["target"]: config["source"] for config in grafana["configs"]}
    (source,) = yaml.safe_load((ROOT / "docker/monitoring/grafana-datasources.yaml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((ROOT / "docker/monitoring/grafana-dashboards.yaml").read_text())["providers"]
    assert files[f"{provider['options']['path']}/visionpool.json"] == "dashboard"
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert files[home] == "dashboard"
    assert json.loads((ROOT / "helm/visionpool/files/dashboard.json").read_text())["panels"]


def test_cpu_serves_the_demo_models_and_prometheus_scrapes_it(
    docker: Docker, compose: Compose, cpu_image: str, ports: dict[str, object]
) -> None:
    docker_images.prometheus(docker)
    with compose.up("cpu", "monitoring", services=("cpu", "prometheus"), settings=ports):
        assert predict(ports["HTTP_PORT"]).json()["results"][0]["type"] == "detection"
        asked = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}/api/v1"
        # Counters begin at 0: the first scrape may have come before the request.
        query = 'sum(visionpool_requests_total{model="shapes", outcome="ok"}) >= 1'
        end = time.monotonic() + WAIT_SECONDS
        while not httpx.get(f"{asked}/query", params={"query": query}).json()["data"]["result"]:
            assert time.monotonic() < end, httpx.get(f"{asked}/targets").text
            time.sleep(0.5)
        groups = httpx.get(f"{asked}/rules").json()["data"]["groups"]
        assert {group["file"] for group in groups} == {"/etc/prometheus/rules.yaml"}


def test_models_of_ones_own_with_keys_and_tls(
    compose: Compose, cpu_image: str, ports: dict[str, object], tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    (tmp_path / "api-keys").write_text("camera:a-long-key\n")
    shutil.copytree(DEMO_MODELS / "shapes", tmp_path / "models/shapes")
    for path in tmp_path.rglob("*"):
        path.chmod(path.stat().st_mode | stat.S_IRGRP | stat.S_IROTH)
    files = {
        name: tmp_path / file
        for name, file in (("API_KEYS", "api-keys"), ("TLS_CERT", "tls.crt"), ("TLS_KEY", "tls.key"))
    }
    with compose.up("cpu", settings={"MODELS": tmp_path / "models", **files, **ports}):
        trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        assert predict(ports["HTTP_PORT"], verify=trusting).status_code == httpx.codes.UNAUTHORIZED
        answer = predict(ports["HTTP_PORT"], verify=trusting, headers={"x-api-key": "a-long-key"})
        assert answer.json()["results"][0]["type"] == "detection"
        missing = httpx.get(
            f"https://127.0.0.1:{ports['HTTP_PORT']}/v2/models/digits",
            verify=trusting,
            headers={"x-api-key": "a-long-key"},
        )
        assert missing.status_code == httpx.codes.NOT_FOUND


def test_remote_has_another_server_compute(
    docker: Docker, compose: Compose, cpu_image: str, ports: dict[str, object], tmp_path: Path
) -> None:
    """visionpool in Triton's place: it is asked over KServe's protocol for tensors, as Triton would be."""
    stand_in = "tritonserver:stand-in"
    lines = [
        f"FROM {cpu_image}",
        "USER 0",
        "RUN printf '#!/bin/sh\\nexec visionpool serve /models\\n' > /usr/local/bin/tritonserver"
        " && printf '#!/bin/sh\\nexec visionpool-healthy\\n' > /usr/local/bin/curl && chmod 755 /usr/local/bin/*",
        "ENTRYPOINT []",
        "USER 10001",
    ]
    built = docker.process("build", "--tag", stand_in, "-", stdin="\n".join(lines))
    assert built.returncode == 0, built.stderr
    shutil.copytree(DEMO_MODELS / "shapes", tmp_path / "models/shapes")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    settings = {"TRITON_IMAGE": stand_in, "TRITON_MODELS": tmp_path / "models", **ports}
    with compose.up("remote", settings=settings):
        assert predict(ports["HTTP_PORT"]).json()["results"][0]["type"] == "detection"
        log = compose.run(("remote",), "logs", "triton", settings=settings)
        assert log.count('"call":"/inference.GRPCInferenceService/ModelInfer"') == 2  # when it was loaded, and now
