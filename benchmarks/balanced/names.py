"""A name server for one name, whose addresses change: what Docker and Kubernetes have for replicas."""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType
from typing import Self

_A, _IN, _SECONDS_TO_LIVE = 1, 1, 1
_ANSWER, _NO_SUCH_NAME = 0x8580, 0x8583  # a response of the authority, recursion available (RFC 1035, 4.1.1)


class Names:
    """`addresses` (IPv4) are those of `name` from now on; `at` is its own host:port. Other names do not exist."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.addresses: tuple[str, ...] = ()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.at = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._answer, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.sendto(b"", self._socket.getsockname())  # wakes it, and says that it is over
        self._thread.join(5)
        self._socket.close()

    def _answer(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(answer(query, self.name, self.addresses), asker)


def answer(query: bytes, name: str, addresses: tuple[str, ...]) -> bytes:
    """The response to a query with one question. Of a type other than A, the name has no records."""
    end = query.index(0, 12) + 5  # the name's end, type and class
    asked, kind = _text(query[12 : end - 4]), struct.unpack(">H", query[end - 4 : end - 2])[0]
    known = asked.lower() == name
    records = [
        b"\xc0\x0c" + struct.pack(">HHIH", _A, _IN, _SECONDS_TO_LIVE, 4) + socket.inet_aton(address)
        for address in (addresses if known and kind == _A else ())
    ]
    head = struct.pack(">HHHHH", _ANSWER if known else _NO_SUCH_NAME, 1, len(records), 0, 0)
    return query[:2] + head + query[12:end] + b"".join(records)


def _text(labels: bytes) -> str:
    parts = []
    while labels[0]:
        parts.append(labels[1 : 1 + labels[0]].decode("ascii", "replace"))
        labels = labels[1 + labels[0] :]
    return ".".join(parts)
