"""The command `visionpool`: the server's command line, where the server is installed."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """Runs the server's command line. Exits with 2 and one line where only the client is installed."""
    try:
        # By name, and not above: the client must not depend on the server.
        command_line = import_module("visionpool_server.cli")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("visionpool.", "visionpool_server.")):
            raise  # a fault of ours, not a missing dependency
        sys.stderr.write(
            f"visionpool: only the client is installed ({error.name!r} is missing); "
            "for the server: pip install 'visionpool[server,openvino]' (in a clone: pip install '.[server,openvino]')\n"
        )
        raise SystemExit(2) from None
    command_line.main()


if __name__ == "__main__":
    main()
