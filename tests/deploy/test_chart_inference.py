"""What `helm test` runs, run for real: against a server as the chart configures it, plain and with all its locks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.real_server import Server, serving

SCRIPT = Path(__file__).parents[2] / "helm/visionpool/files/inference.py"
KEYS = "# callers\nalice:a-key:with-colon\nanother\n"


def infer(**environment: object) -> subprocess.CompletedProcess[str]:
    """As the pod does: the script by -c, in isolation, with nothing but the environment."""
    said = {f"TEST_{name}": str(value) for name, value in environment.items()} | {"TEST_TIMEOUT": "30"}
    command = [sys.executable, "-I", "-c", SCRIPT.read_text()]
    return subprocess.run(command, check=False, env={**os.environ, **said}, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the chart mounts: tls with ca.crt, client-tls, the keys; and the same of a stranger."""
    folder = tmp_path_factory.mktemp("secrets")
    ours = trustme.CA()
    for whose, authority in (("server", ours), ("client", ours), ("stranger", trustme.CA())):
        (folder / whose).mkdir()
        issued = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(str(folder / whose / "ca.crt"))
        issued.private_key_pem.write_to_path(str(folder / whose / "tls.key"))
        issued.cert_chain_pems[0].write_to_path(str(folder / whose / "tls.crt"))
    (folder / "api-keys").write_text(KEYS)
    return folder


@pytest.fixture(scope="module")
def locked(secrets: Path) -> Iterator[Server]:
    environment = {
        "VISIONPOOL_API_KEYS": str(secrets / "api-keys"),
        "VISIONPOOL_TLS_CERT": str(secrets / "server/tls.crt"),
        "VISIONPOOL_TLS_KEY": str(secrets / "server/tls.key"),
        "VISIONPOOL_TLS_CLIENT_CA": str(secrets / "server/ca.crt"),
        "VISIONPOOL_METRICS_PORT": "0",
    }
    with serving(environment=environment, ready=False) as server:
        server.url = server.wait_for(r"ready at (https://\S+)").group(1)
        server.grpc = server.wait_for(r"gRPC +(\S+:\d+)").group(1)
        yield server


def test_it_predicts_over_rest_and_grpc() -> None:
    with serving() as server:
        done = infer(HTTP=f"http://127.0.0.1:9 {server.url}", GRPC=f"grpc://{server.grpc}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "REST: shapes answered with DetectionResult\ngRPC: shapes answered with DetectionResult\n"


def test_it_has_the_keys_and_the_certificates(locked: Server, secrets: Path) -> None:
    done = infer(
        HTTP=locked.url,
        GRPC=f"grpcs://{locked.grpc}",
        KEYS=secrets / "api-keys",
        TLS=secrets / "server",
        CLIENT_TLS=secrets / "client",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("answered with DetectionResult") == 2


@pytest.mark.parametrize(
    ("keys", "tls", "client", "told"),
    [
        ("", "server", "client", "Unauthenticated"),
        ("api-keys", "stranger", "client", "CERTIFICATE_VERIFY_FAILED"),
        ("api-keys", "server", "stranger", "ConnectionFailed"),
    ],
)
def test_it_fails_where_callers_would(
    locked: Server, secrets: Path, keys: str, tls: str, client: str, told: str
) -> None:
    with_key = {"KEYS": secrets / keys} if keys else {}
    done = infer(HTTP=locked.url, TLS=secrets / tls, CLIENT_TLS=secrets / client, **with_key)
    assert done.returncode == 1
    assert told in done.stderr


def test_it_fails_where_nothing_answers() -> None:
    done = infer(HTTP="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "ConnectionFailed" in done.stderr
