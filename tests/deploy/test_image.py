"""The cpu image, built from this checkout and run by a real Docker daemon: what is in it, what it may do, how it stops."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from visionpool_server.app import DEMO_MODELS

from tests.deploy.docker_container import START_SECONDS, Container, running
from tests.deploy.docker_daemon import Docker
from tests.deploy.docker_images import VERSION
from tests.deploy.docker_load import PICTURE, PNG, Load
from tests.real_server import write_model

pytestmark = pytest.mark.timeout(580)  # the first one waits for the image
MEGABYTE = 1_000_000
PORTS = tuple(option for port in (8000, 8001, 8002) for option in ("--publish", f"127.0.0.1::{port}"))

INSIDE = """
import http.client, json
import cv2, numpy, tritonclient.grpc

picture = cv2.imencode(".png", numpy.full((32, 32, 3), 200, numpy.uint8))[1].tobytes()
web = http.client.HTTPConnection("127.0.0.1", 8000)
web.request("POST", "/v1/models/shapes/predict", picture, {"content-type": "image/png"})
answer = web.getresponse()
rest = (answer.status, json.loads(answer.read())["results"][0]["type"])

tensor = tritonclient.grpc.InferInput("images", [1], "BYTES")
tensor.set_data_from_numpy(numpy.array([picture], dtype=numpy.object_))
rpc = tritonclient.grpc.InferenceServerClient("127.0.0.1:8001").infer("digits", [tensor])
print(json.dumps([rest, rpc.get_response().model_name]))
"""


def predict(address: str, model: str, timeout: float = 20) -> httpx.Response:
    return httpx.post(f"http://{address}/v1/models/{model}/predict", content=PICTURE, headers=PNG, timeout=timeout)


def test_answers_rest_and_grpc_on_published_ports_and_metrics_on_their_own(container: Container) -> None:
    assert predict(container.port(8000), "shapes").json()["results"][0]["type"] == "detection"
    with tritonclient.grpc.InferenceServerClient(container.port(8001)) as client:
        tensor = tritonclient.grpc.InferInput("images", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([PICTURE], dtype=np.object_))
        assert client.infer("digits", [tensor]).get_response().model_name == "digits"
    metrics = httpx.get(f"http://{container.port(8002)}/metrics").text
    assert re.search(r'visionpool_requests_total\{.*model="shapes".*\} 1\.0', metrics)


def test_needs_no_network_no_capability_no_root_and_no_writable_file_system(docker: Docker, cpu_image: str) -> None:
    with running(docker, cpu_image, "--network", "none") as alone:
        assert json.loads(alone.wait().python(INSIDE)) == [[200, "detection"], "digits"]
        status = alone.exec("cat", "/proc/1/status")
        assert re.search(r"^Uid:\s+10001\s+10001\s+10001\s+10001$", status, re.MULTILINE)
        assert set(re.findall(r"^Cap(?:Prm|Eff|Bnd):\s+(\S+)$", status, re.MULTILINE)) == {"0" * 16}
        assert "NoNewPrivs:\t1" in status


def test_can_write_nowhere_but_to_its_volume_and_memory(docker: Docker, container: Container, cpu_image: str) -> None:
    """Mounts that are writable, and what would be if the root file system were."""
    mounts = "[line.split()[1] for line in open('/proc/self/mounts')]"
    mounted = container.python(f"import os\nfor path in {mounts}: os.access(path, os.W_OK) and print(path)").split()
    assert {path for path in mounted if not path.startswith(("/dev", "/proc"))} == {"/tmp", "/cache"}
    program = ("/", "-xdev", "-writable", "-not", "-type", "l")
    found = docker.process("run", "--rm", "--entrypoint", "find", cpu_image, *program).stdout.split()
    assert {path for path in found if not path.startswith("/dev")} <= {"/tmp", "/var/tmp", "/run/lock", "/cache"}


def test_has_no_setuid_file_no_compiler_no_pip_and_no_downloader(docker: Docker, cpu_image: str) -> None:
    look = (
        "find / -xdev -type f -perm /6000; command -v gcc cc g++ c++ clang ld make pip pip3 curl wget git;"
        "find / -xdev -name pip -o -xdev -name '*.whl' -o -xdev -path '*/.cache/*' -o -xdev -path '/var/lib/apt/lists/*'"
    )
    found = docker.run("run", "--rm", "--user", "0", "--entrypoint", "sh", cpu_image, "-c", look, check=False)
    assert found == ""


def test_is_within_700_megabytes(docker: Docker, cpu_image: str) -> None:
    assert int(docker.run("image", "inspect", "--format", "{{.Size}}", cpu_image)) <= 700 * MEGABYTE


def test_lists_in_its_sbom_all_that_is_installed(container: Container) -> None:
    bill = json.loads(container.exec("cat", "/opt/visionpool/sbom.cdx.json"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {(part["name"].lower().replace("_", "-"), part["version"]) for part in bill["components"]}
    program = "import importlib.metadata as m\nfor d in m.distributions(): print(d.metadata['Name'], d.version)"
    python = {
        (name.lower().replace("_", "-"), version)
        for name, version in map(str.split, container.python(program).splitlines())
    }
    debian = {tuple(line.split("\t")) for line in container.exec("dpkg-query", "--show").splitlines()}
    debian = {(name.partition(":")[0], version) for name, version in debian}
    assert ("visionpool", VERSION) in python
    assert len(debian) > 50
    assert listed == python | debian


def test_says_what_it_is(docker: Docker, cpu_image: str) -> None:
    config = json.loads(docker.run("image", "inspect", cpu_image))[0]["Config"]
    labels = {key.removeprefix("org.opencontainers.image."): text for key, text in config["Labels"].items()}
    assert (labels["title"], labels["version"], labels["licenses"]) == ("visionpool", VERSION, "Apache-2.0")
    assert config["User"] == "10001:10001"
    assert set(config["ExposedPorts"]) == {"8000/tcp", "8001/tcp", "8002/tcp"}
    assert set(config["Volumes"]) == {"/cache"}


def test_is_unhealthy_where_nothing_answers(docker: Docker, cpu_image: str) -> None:
    healthy = docker.process("run", "--rm", "--entrypoint", "visionpool-healthy", cpu_image)
    assert healthy.returncode == 1
    assert "127.0.0.1:8002: " in healthy.stderr


def test_loses_nothing_on_docker_stop_under_load(docker: Docker, cpu_image: str, tmp_path: Path) -> None:
    """Callers that go by its readiness, as a load balancer does, lose no request; nor does one that is still computed when
    the listeners close."""
    models = mounted(tmp_path)
    drain = ("--env", "VISIONPOOL_DRAIN_DELAY=2", "--env", "VISIONPOOL_GRACE_PERIOD=20")
    with running(docker, cpu_image, *PORTS, *drain, "--volume", f"{models}:/models:ro") as server:
        server.wait()
        load = Load(server, "shapes")
        load.start()
        slow: list[int] = []
        caller = threading.Thread(target=lambda: slow.append(predict(server.port(8000), "slow", 60).status_code))
        caller.start()
        assert server.stop(40) == 0
        caller.join(60)
        counted = load.finish()
        assert slow == [200]
        assert set(counted) == {"ok"}, counted
        assert counted["ok"] > 20


def mounted(folder: Path) -> Path:
    """The demo models, and `slow`, which takes longer than the drain delay; for user 10001 to read."""
    models = folder / "models"
    for name in ("shapes", "digits"):
        shutil.copytree(DEMO_MODELS / name, models / name)
    write_model(models / "slow", {"latency_ms": 4000})
    for path in (models, *models.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return models


def test_is_started_anew_when_it_dies(docker: Docker, cpu_image: str) -> None:
    with running(docker, cpu_image, *PORTS, "--restart", "unless-stopped") as server:
        before = server.wait().inspect()
        os.kill(before["State"]["Pid"], signal.SIGKILL)
        end = time.monotonic() + START_SECONDS
        while server.inspect()["RestartCount"] == 0:
            assert time.monotonic() < end, server.inspect()["State"]
            time.sleep(0.1)
        server.wait()
        assert predict(server.port(8000), "shapes").status_code == httpx.codes.OK


def test_survives_a_restart_of_the_daemon(docker: Docker, cpu_image: str) -> None:
    """Containers go on without the daemon; ports that Docker's proxy publishes are back with it."""
    with running(docker, cpu_image, *PORTS) as server:
        before = server.wait().inspect()
        inside = f"{before['NetworkSettings']['IPAddress']}:8000"
        restarted = threading.Thread(target=docker.restart)
        restarted.start()
        answers = []
        while restarted.is_alive():
            answers.append(predict(inside, "shapes").status_code)
        restarted.join()
        after = server.wait().inspect()
        assert after["State"]["StartedAt"] == before["State"]["StartedAt"]
        assert set(answers) == {200}
        assert predict(server.port(8000), "shapes").status_code == httpx.codes.OK
