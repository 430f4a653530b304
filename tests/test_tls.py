"""TLS on both transports, with certificates of an authority that exists only here: real processes, real handshakes."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import trustme
import visionpool
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import Serve
from tests.real_server import Server, picture, serving, write_model

BOUND = 60.0  # seconds that anything may take at most
RED = picture((200, 20, 30))


@dataclass(frozen=True)
class Files:
    """What a server is given: `--tls-cert` and so on; `ca` is what its clients trust."""

    folder: Path

    @property
    def cert(self) -> Path:
        return self.folder / "tls.crt"

    @property
    def key(self) -> Path:
        return self.folder / "tls.key"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def flags(self) -> tuple[object, ...]:
        return "--tls-cert", self.cert, "--tls-key", self.key

    def issue(self, authority: trustme.CA) -> Files:
        self.folder.mkdir(parents=True, exist_ok=True)
        made = authority.issue_cert("127.0.0.1", "localhost")
        self.cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        self.key.write_bytes(made.private_key_pem.bytes())
        self.ca.write_bytes(authority.cert_pem.bytes())
        return self


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    return trustme.CA(organization_name="nobody that we know")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "colours")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Files:
    return Files(tmp_path_factory.mktemp("tls")).issue(authority)


@pytest.fixture(scope="module")
def server(model: Path, files: Files) -> Iterator[Server]:
    with serving(model, *files.flags, "--metrics-port", 0) as made:
        yield made


@pytest.fixture(scope="module")
def mutual(model: Path, files: Files) -> Iterator[Server]:
    with serving(model, *files.flags, "--tls-client-ca", files.ca) as made:
        yield made


def context(ca: Path, files: Files | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=ca)
    if files:
        made.load_cert_chain(files.cert, files.key)
    return made


def health(server: Server, ca: Path, files: Files | None = None) -> int:
    """What the health service answers on a new connection. Raises grpc.RpcError."""
    own = (files.key.read_bytes(), files.cert.read_bytes()) if files else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), *own)
    with grpc.secure_channel(server.grpc, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        asked = health_pb2.HealthCheckRequest()
        return int(health_pb2_grpc.HealthStub(channel).Check(asked, timeout=BOUND).status)


def refused(server: Server, ca: Path, files: Files | None = None) -> bool:
    """On both transports alike."""
    try:
        httpx.get(f"{server.url}/health/live", verify=context(ca, files), timeout=BOUND)
    except httpx.TransportError:
        with pytest.raises(grpc.RpcError) as caught:
            health(server, ca, files)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        return True
    assert health(server, ca, files) == health_pb2.HealthCheckResponse.SERVING
    return False


class TestServing:
    def test_our_clients_get_predictions_over_both_transports(self, server: Server, files: Files) -> None:
        tls = visionpool.Tls(ca=files.ca)
        assert server.url.startswith("https://")
        with visionpool.Client(server.url, tls=tls) as client:
            over_http = client.predict("colours", RED)
        with visionpool.GrpcClient(f"grpcs://{server.grpc}", tls=tls) as client:
            over_grpc = client.predict("colours", RED)
            streamed = list(client.stream("colours", [RED, RED]))
        assert [over_grpc, *streamed] == [over_http] * 3

    def test_our_clients_that_await_do_so_too(self, server: Server, files: Files) -> None:
        tls = visionpool.Tls(ca=files.ca)

        async def ask() -> None:
            async with visionpool.AsyncClient(server.url, tls=tls) as client:
                over_http = await client.predict("colours", RED)
            async with visionpool.AsyncGrpcClient(f"grpcs://{server.grpc}", tls=tls) as client:
                assert await client.predict("colours", RED) == over_http

        asyncio.run(ask())

    def test_tritons_client_over_http(self, server: Server, files: Files) -> None:
        address = server.url.removeprefix("https://")
        client = tritonclient.http.InferenceServerClient(
            address, ssl=True, ssl_context_factory=lambda: context(files.ca), network_timeout=BOUND
        )
        try:
            sent = tritonclient.http.InferInput("images", [1], "BYTES")
            sent.set_data_from_numpy(np.array([RED], np.object_))
            assert client.is_server_ready()
            assert client.infer("colours", [sent]).as_numpy("result") is not None
        finally:
            client.close()

    def test_tritons_client_over_grpc(self, server: Server, files: Files) -> None:
        with tritonclient.grpc.InferenceServerClient(server.grpc, ssl=True, root_certificates=str(files.ca)) as client:
            sent = tritonclient.grpc.InferInput("images", [1], "BYTES")
            sent.set_data_from_numpy(np.array([RED], np.object_))
            assert client.is_server_ready()
            assert client.infer("colours", [sent]).as_numpy("result") is not None

    def test_who_trusts_another_authority_is_not_served(
        self, server: Server, stranger: trustme.CA, tmp_path: Path
    ) -> None:
        assert refused(server, Files(tmp_path).issue(stranger).ca)

    def test_plain_clients_get_nothing_and_hurt_nobody(self, server: Server, files: Files) -> None:
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http"), timeout=BOUND)
        with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError):
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=BOUND)
        assert not refused(server, files.ca)

    def test_versions_before_1_2_are_refused(self, server: Server, files: Files) -> None:
        old = context(files.ca)
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health/live", verify=old, timeout=BOUND)

    def test_probes_and_metrics_on_their_own_port_need_no_tls(self, server: Server) -> None:
        url = server.wait_for(r"metrics +(http://\S+)/metrics").group(1)
        assert httpx.get(f"{url}/health/ready", timeout=BOUND).status_code == 200
        assert "visionpool_ready 1.0" in httpx.get(f"{url}/metrics", timeout=BOUND).text

    def test_a_kept_connection_does_not_hold_up_the_end(self, model: Path, files: Files, serve: Serve) -> None:
        """Also where the client never answers TLS's farewell."""
        server = serve(model, *files.flags, "--grace-period", 600)
        with httpx.Client(verify=context(files.ca), timeout=BOUND) as client:
            assert client.get(f"{server.url}/health/ready").status_code == 200
            assert server.stop() == 0


class TestMutual:
    def test_who_shows_a_certificate_of_the_authority_is_served(
        self, mutual: Server, files: Files, authority: trustme.CA, tmp_path: Path
    ) -> None:
        own = Files(tmp_path).issue(authority)
        assert not refused(mutual, files.ca, own)
        tls = visionpool.Tls(ca=files.ca, cert=own.cert, key=own.key)
        with visionpool.Client(mutual.url, tls=tls) as client:
            over_http = client.predict("colours", RED)
        with visionpool.GrpcClient(f"grpcs://{mutual.grpc}", tls=tls) as client:
            assert client.predict("colours", RED) == over_http

    def test_who_shows_none_is_not(self, mutual: Server, files: Files) -> None:
        assert refused(mutual, files.ca)

    def test_nor_who_shows_that_of_another(
        self, mutual: Server, files: Files, stranger: trustme.CA, tmp_path: Path
    ) -> None:
        assert refused(mutual, files.ca, Files(tmp_path).issue(stranger))


class TestChange:
    def test_files_are_read_again_when_they_change(
        self, model: Path, authority: trustme.CA, stranger: trustme.CA, tmp_path: Path, serve: Serve
    ) -> None:
        """As Kubernetes does it: a symbolic link to a folder is replaced. The issuers of clients change too."""
        old, new = Files(tmp_path / "old").issue(authority), Files(tmp_path / "new").issue(stranger)
        mounted = Files(tmp_path / "mounted")
        mounted.folder.symlink_to(old.folder)
        server = serve(model, *mounted.flags, "--tls-client-ca", mounted.ca)
        assert not refused(server, old.ca, old)
        assert refused(server, new.ca, new)
        with httpx.Client(verify=context(old.ca, old), timeout=BOUND) as kept:
            assert kept.get(f"{server.url}/health/live").status_code == 200
            link = tmp_path / "next"
            link.symlink_to(new.folder)
            link.replace(mounted.folder)
            assert not refused(server, new.ca, new)
            assert refused(server, old.ca, old)
            assert refused(server, new.ca, old)  # whose issuer is not trusted any more
            assert refused(server, old.ca, new)
            assert kept.get(f"{server.url}/health/live").status_code == 200  # what is connected stays so
        server.wait_for("the TLS certificate was read again")

    def test_what_cannot_be_used_is_told_once_and_the_old_one_stays(
        self, model: Path, authority: trustme.CA, tmp_path: Path, serve: Serve
    ) -> None:
        files = Files(tmp_path / "tls").issue(authority)
        trusted = Path(shutil.copy(files.ca, tmp_path / "trusted.crt"))
        server = serve(model, *files.flags)
        whole = files.key.read_bytes()
        for number, broken in enumerate((b"", whole[:60], trustme.CA().issue_cert("x").private_key_pem.bytes()), 1):
            files.key.write_bytes(broken)
            for _ in range(2):
                assert not refused(server, trusted)
            server.wait_for("(?s)" + "cannot be used.*" * number)
        files.key.unlink()
        for _ in range(2):
            assert not refused(server, trusted)
        files.issue(authority)
        assert not refused(server, trusted)
        server.wait_for("the TLS certificate was read again")
        assert server.log().count("cannot be used") == 4
        assert "Traceback" not in server.log()


class TestRefusals:
    """Settings that cannot work end the start with one line that says what to do."""

    @pytest.fixture
    def files(self, tmp_path: Path, authority: trustme.CA) -> Files:
        return Files(tmp_path / "tls").issue(authority)

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (("--tls-cert", "{cert}"), "--tls-cert without --tls-key"),
            (("--tls-key", "{key}"), "--tls-key without --tls-cert"),
            (("--tls-client-ca", "{ca}"), "--tls-client-ca is for TLS"),
            (("--tls-cert", "{cert}", "--tls-key", "{key}.no"), "cannot read .*tls.key.no: No such file"),
            (("--tls-cert", "{folder}", "--tls-key", "{key}"), "cannot read .*tls: Is a directory"),
            (("--tls-cert", "{key}", "--tls-key", "{key}"), "tls.key holds no certificate"),
            (("--tls-cert", "{cert}", "--tls-key", "{cert}"), "tls.crt holds no private key"),
            (("--tls-cert", "{ca}", "--tls-key", "{key}"), "ca.crt and .*tls.key do not belong together"),
            (("--tls-cert", "{damaged}", "--tls-key", "{key}"), "are the files damaged"),
            (("--tls-cert", "{cert}", "--tls-key", "{key}", "--tls-client-ca", "{key}"), "tls.key holds no certificate"),
            (("--tls-cert", "{cert}", "--tls-key", "{key}", "--tls-client-ca", "{damaged}"), "are the files damaged"),
            (("--tls-cert", "{cert}", "--tls-key", "{locked}"), "has a password"),
        ],
    )  # fmt: skip
    def test_at_the_start(self, flags: tuple[str, ...], said: str, files: Files) -> None:
        from visionpool.errors import InvalidSetting
        from visionpool_server.api.tls import tls_of

        damaged, locked = files.folder / "damaged.crt", files.folder / "locked.key"
        damaged.write_bytes(files.cert.read_bytes()[:200] + b"\n-----END CERTIFICATE-----\n")
        locked.write_bytes(_with_a_password(files.key))
        paths = {"cert": files.cert, "key": files.key, "ca": files.ca, "folder": files.folder}
        given = [flag.format(**paths, damaged=damaged, locked=locked) for flag in flags]
        values = dict(zip(given[::2], map(Path, given[1::2]), strict=True))
        with pytest.raises(InvalidSetting, match=said) as caught:
            tls_of(*(values.get(flag) for flag in ("--tls-cert", "--tls-key", "--tls-client-ca")))
        assert caught.value.hint

    def test_it_exits_with_1_and_no_traceback(self, model: Path, files: Files) -> None:
        command = [
            sys.executable,
            "-m",
            "visionpool",
            "serve",
            str(model),
            "--http-port",
            "0",
            "--tls-cert",
            str(files.cert),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: --tls-cert without --tls-key\nhint: ")

    def test_clients_say_what_is_wrong(self, files: Files) -> None:
        for wrong in ({"cert": files.cert}, {"key": files.key}):
            with pytest.raises(visionpool.InvalidOption, match="needs its"):
                visionpool.Tls(**wrong)
        for unusable in (visionpool.Tls(ca=files.key), visionpool.Tls(ca=files.folder / "no.crt")):
            with pytest.raises(visionpool.InvalidOption, match="cannot be used"):
                visionpool.Client("https://127.0.0.1:1", tls=unusable)
            with pytest.raises(visionpool.InvalidOption, match="cannot be used"):
                visionpool.GrpcClient("grpcs://127.0.0.1:1", tls=unusable)
        for make in (visionpool.Client, visionpool.AsyncClient):
            with pytest.raises(visionpool.InvalidOption, match="of no use"):
                make("http://127.0.0.1:1", tls=visionpool.Tls(ca=files.ca))
        for make_grpc in (visionpool.GrpcClient, visionpool.AsyncGrpcClient):
            with pytest.raises(visionpool.InvalidOption, match="of no use"):
                make_grpc("127.0.0.1:1", tls=visionpool.Tls(ca=files.ca))


def _with_a_password(key: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization

    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    kind = serialization.PrivateFormat.TraditionalOpenSSL
    return loaded.private_bytes(serialization.Encoding.PEM, kind, serialization.BestAvailableEncryption(b"secret"))


class TestConnectionAge:
    def test_grpc_connections_by_tls_end_when_they_are_old_and_no_call_is_lost(
        self, model: Path, files: Files, serve: Serve
    ) -> None:
        server = serve(model, *files.flags, "--grpc-max-connection-age", 1)
        credentials = grpc.ssl_channel_credentials(files.ca.read_bytes())
        states: list[grpc.ChannelConnectivity] = []
        with grpc.secure_channel(server.grpc, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            channel.subscribe(states.append)
            check = health_pb2_grpc.HealthStub(channel).Check
            while states.count(grpc.ChannelConnectivity.READY) < 3:
                assert check(health_pb2.HealthCheckRequest(), timeout=BOUND).status == 1
