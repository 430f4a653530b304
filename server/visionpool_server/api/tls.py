"""The server's certificate, for both transports: read from files, and again when they have changed, without a restart.

Whoever renews certificates replaces their files (cert-manager, or Kubernetes by a symbolic link). They are looked at when a
client connects. What cannot be used is logged once, and the certificate that was in use stays.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from visionpool.errors import InvalidSetting

log = logging.getLogger(__name__)

_ATTEMPTS = 3  # at files that change while they are read
Look = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files. `client_ca`: the issuers of clients' certificates, None where clients need none."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def look(self) -> Look:
        """What changes whenever a file does. Raises OSError."""
        files = [path.stat() for path in (self.cert, self.key, self.client_ca) if path]
        return tuple((file.st_ino, file.st_mtime_ns, file.st_size) for file in files)


@dataclass(frozen=True, slots=True)
class _Read:
    """What the files said, for each of the two libraries."""

    context: ssl.SSLContext
    grpc: grpc.ServerCertificateConfiguration


class Tls:
    """`context` is for HTTP, `grpc_credentials()` for gRPC. Raises InvalidSetting where the files cannot be used."""

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._lock = threading.Lock()  # gRPC asks from threads of its own
        self._look = _look(files)
        self._now = _read(files)
        self._told_grpc = self._now
        self.context = _context(files)
        self.context.sni_callback = self._choose

    def grpc_credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            *(self._now.grpc, self._changed),  # type: ignore[arg-type]  # None is fine, says gRPC
            require_client_authentication=self._files.client_ca is not None,
        )

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called within each handshake, also where the client names no server."""
        connection.context = self._newest().context

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called before each handshake; None where nothing has changed."""
        newest = self._newest()
        if newest is self._told_grpc:
            return None
        self._told_grpc = newest
        return newest.grpc

    def _newest(self) -> _Read:
        with self._lock:
            try:
                look = self._files.look()
                if look != self._look:
                    self._look = look  # also where it is of no use: it is told once
                    self._now = _read(self._files)
                    log.info("the TLS certificate was read again from %s", self._files.cert)
            except (OSError, InvalidSetting) as error:
                self._complain(error)
            return self._now

    def _complain(self, error: OSError | InvalidSetting) -> None:
        if isinstance(error, OSError):
            if not self._look:
                return
            self._look = ()
        log.error("the changed TLS files cannot be used, the certificate from before stays: %s", error)


def tls_of(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    """What --tls-cert, --tls-key and --tls-client-ca ask for. Raises InvalidSetting."""
    if cert is None and key is None:
        if client_ca is None:
            return None
        raise InvalidSetting("--tls-client-ca is for TLS", hint="give --tls-cert and --tls-key too")
    if cert is None or key is None:
        given, missing = ("--tls-cert", "--tls-key") if key is None else ("--tls-key", "--tls-cert")
        raise InvalidSetting(f"{given} without {missing}", hint=f"give {missing} too: TLS needs both")
    return Tls(CertificateFiles(cert, key, client_ca))


def _look(files: CertificateFiles) -> Look:
    try:
        return files.look()
    except OSError as error:
        raise _unreadable(error) from error


def _read(files: CertificateFiles) -> _Read:
    """What the files say, all of the same moment. Raises InvalidSetting."""
    for _ in range(_ATTEMPTS):
        before = _look(files)
        context = _context(files)
        pair = (_pem(files.key, "PRIVATE KEY-----"), _pem(files.cert, "BEGIN CERTIFICATE"))
        issuers = _pem(files.client_ca, "BEGIN CERTIFICATE") if files.client_ca else None
        if _look(files) == before:
            break
    return _Read(context, grpc.ssl_server_certificate_configuration([pair], issuers))


def _context(files: CertificateFiles) -> ssl.SSLContext:
    """Raises InvalidSetting."""
    _pem(files.cert, "BEGIN CERTIFICATE")
    _pem(files.key, "PRIVATE KEY-----")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _usable(lambda: context.load_cert_chain(files.cert, files.key, _no_password), f"{files.cert} and {files.key}")
    if files.client_ca is not None:
        _pem(files.client_ca, "BEGIN CERTIFICATE")
        _usable(lambda: context.load_verify_locations(files.client_ca), str(files.client_ca))
        context.verify_mode = ssl.CERT_REQUIRED
        # A session that is taken up again shows no certificate: issuers that are not trusted any more would still be let in.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _usable(load: Callable[[], Any], names: str) -> None:
    try:
        load()
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidSetting(
                f"{names} do not belong together", hint="the key must be the one that the certificate was made for"
            ) from error
        raise InvalidSetting(f"{names}: {error.reason or error}", hint="are the files damaged?") from error
    except OSError as error:
        raise _unreadable(error) from error


def _no_password() -> str:
    raise InvalidSetting("the key of --tls-key has a password", hint="a server starts unattended: give one without")


def _pem(path: Path, mark: str) -> bytes:
    """Raises InvalidSetting for a file that is not there, or is not what it should be."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(error) from error
    if mark.encode() not in content:
        what = "certificate" if "CERTIFICATE" in mark else "private key"
        raise InvalidSetting(f"{path} holds no {what}", hint="a PEM file is wanted: text with -----BEGIN ...")
    return content


def _unreadable(error: OSError) -> InvalidSetting:
    return InvalidSetting(
        f"cannot read {error.filename}: {error.strerror or error}",
        hint="is the path right, and may the server's user read it?",
    )
