"""A JupyterLab server on a checkout of its own, for the browser tests.

Nothing of the user's is read or written: settings, workspaces and notebooks lie in a temporary
folder. The server listens on the loopback device only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

LIMIT = 300.0
"""Seconds that any one thing may take; a loaded machine is many times slower than a free one."""

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
# Otherwise JupyterLab asks whether to fetch news, in front of the notebook.
NOTIFICATIONS = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}


@dataclass(frozen=True)
class Lab:
    """A running server: its address with a closing slash, its token, the checkout it shows."""

    url: str
    token: str
    checkout: Path


def make_checkout(folder: Path) -> Path:
    """Make a folder into what the library takes for the checkout, so that runs go below it."""
    (folder / "notebooks").mkdir()
    (folder / "pyproject.toml").touch()
    return folder


def write_notebook(path: Path, *cells: str, parameters: str = "") -> None:
    """Write a notebook that has not been run: a title, a parameters cell if any, code cells."""
    code = [new_code_cell(parameters, metadata={"tags": ["parameters"]})] if parameters else []
    code += [new_code_cell(cell) for cell in cells]
    notebook = new_notebook(
        cells=[new_markdown_cell(f"# Title of {path.stem}"), *code],
        metadata={"kernelspec": KERNEL},
    )
    nbformat.write(notebook, path)


@contextmanager
def running_lab(checkout: Path) -> Iterator[Lab]:
    """Start a server on ``checkout``, wait until it listens, and stop it at the end."""
    home = checkout / ".jupyter"
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(NOTIFICATIONS))
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--ServerApp.root_dir={checkout}"),
        "--KernelManager.transport_encryption=auto",
    ]
    log = home / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            command,
            cwd=checkout,
            env=os.environ | {name: str(home / place) for name, place in places.items()},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        url, token = _address(server, home / "runtime", log)
        yield Lab(url, token, checkout)
    finally:
        # It stops its kernels first; where it is killed, they notice and end by themselves.
        server.terminate()
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _address(server: subprocess.Popen[bytes], runtime: Path, log: Path) -> tuple[str, str]:
    """The address and the token, which the server writes to a file once it listens."""
    info = runtime / f"jpserver-{server.pid}.json"
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and server.poll() is None:
        if info.is_file() and (text := info.read_text()).rstrip().endswith("}"):
            values = json.loads(text)
            return values["url"], values["token"]
        time.sleep(0.05)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-4000:]}")
