"""What a client trusts, and what it shows of itself, where a server is asked over TLS with certificates of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from visionpool.errors import InvalidOption

if TYPE_CHECKING:
    import ssl

File: TypeAlias = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. `ca`: the issuers that the server's certificate may come from, in place of those that the system trusts;
    `cert` and `key`: the client's own certificate, for a server that asks for one.

        with visionpool.Client("https://vision.example:8000", tls=visionpool.Tls(ca="ca.crt")) as client:
            ...
    """

    ca: File | None = None
    cert: File | None = None
    key: File | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidOption("a certificate needs its key, and a key its certificate", hint="give both cert and key")

    def context(self) -> ssl.SSLContext:
        """For HTTP. Raises InvalidOption for files that cannot be used."""
        import ssl

        try:
            made = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None:
                made.load_cert_chain(self.cert, self.key)
        except OSError as error:  # ssl.SSLError is one too
            raise InvalidOption(
                f"the files for TLS cannot be used: {error}",
                hint="PEM files are wanted, and the key of the certificate",
            ) from error
        return made

    def contents(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """For gRPC: of ca, key and cert. Raises InvalidOption for files that cannot be used."""
        self.context()  # gRPC itself would only say that it cannot connect
        ca, key, cert = (
            Path(file).read_bytes() if file is not None else None for file in (self.ca, self.key, self.cert)
        )
        return ca, key, cert
