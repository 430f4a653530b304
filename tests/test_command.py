"""The package in fresh processes: what importing it costs, and the command `visionpool` without a server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import visionpool

CLIENT = Path(visionpool.__file__).parents[1]


def python(*args: str, path: Path = CLIENT) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds only what is in `path` and what is installed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(path), str(CLIENT)))}
    command = [sys.executable, *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_importing_the_package_is_light_and_the_client_comes_on_demand() -> None:
    code = """if True:
        import sys, visionpool
        heavy = {"httpx", "numpy", "anyio", "cv2", "pydantic", "importlib.metadata"} & sys.modules.keys()
        assert not heavy, heavy
        assert "Client" in dir(visionpool)
        assert visionpool.Client.__name__ == "Client"
        assert visionpool.AsyncClient is visionpool.http.AsyncClient
        assert visionpool.__version__
        assert "httpx" in sys.modules and "numpy" not in sys.modules
        from visionpool import *
        assert Client is visionpool.Client
    """
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        visionpool.Klient  # noqa: B018 - the look-up is the test


def test_the_command_runs_the_servers_command_line(tmp_path: Path) -> None:
    write_server(tmp_path, "def main(): print('served')")
    done = python("-m", "visionpool", path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "served\n", "")


def test_the_command_says_what_to_install_where_the_server_is_not(tmp_path: Path) -> None:
    write_server(tmp_path, "import not_installed_here")
    done = python("-m", "visionpool", path=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "visionpool: only the client is installed ('not_installed_here' is missing); "
        "for the server: pip install 'visionpool[server,openvino]' (in a clone: pip install '.[server,openvino]')\n"
    )


def test_the_command_does_not_hide_a_fault_of_the_server(tmp_path: Path) -> None:
    write_server(tmp_path, "import visionpool_server.gone")
    done = python("-m", "visionpool", path=tmp_path)
    assert done.returncode == 1
    assert "No module named 'visionpool_server.gone'" in done.stderr


def write_server(folder: Path, code: str) -> None:
    (folder / "visionpool_server").mkdir()
    (folder / "visionpool_server" / "__init__.py").touch()
    (folder / "visionpool_server" / "cli.py").write_text(code)
