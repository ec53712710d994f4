"""Replicas of the page behind a real nginx, and visitors of theirs, for tests."""

import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.app.serving import encoded, free_port
from tests.forked import ForkedPython
from tests.sources import ROOT

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
TEMPLATE = ROOT / "docs" / "nginx.conf.template"

# An nginx in one process, which writes into its folder alone.
_AROUND = Template("""
daemon off;
master_process off;
pid $folder/nginx.pid;
error_log $folder/error.log;
events { worker_connections 512; }
http {
    client_body_temp_path $folder/body;
    proxy_temp_path $folder/proxy;
    fastcgi_temp_path $folder/fastcgi;
    uwsgi_temp_path $folder/uwsgi;
    scgi_temp_path $folder/scgi;
    log_format seen '$$mae_visitor $$status $$upstream_addr';
    access_log $folder/access.log seen;
    include $folder/demo.conf;
}
""")


# The page, whose output goes to a file.
_REPLICA = """
import os, sys
from app.__main__ import main

log = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)
sys.exit(main(sys.argv[2:]))
"""


@dataclass
class Replica:
    """One `python -m app`, which can be started again at its port."""

    port: int
    environ: dict[str, str]
    log: Path
    process: ForkedPython | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        arguments = str(self.log), "--port", str(self.port)
        self.process = ForkedPython(_REPLICA, *arguments, environ=self.environ)

    def wait_until_served(self) -> None:
        assert self.process is not None
        _wait_for(f"http://{self.address}/config", self.process)

    def kill(self) -> None:
        """As the kernel does when memory runs out."""
        if self.process is not None:
            self.process.close()


@dataclass
class Fleet:
    """Where nginx listens, and what is behind it."""

    url: str
    replicas: list[Replica]
    access_log: Path
    stack: ExitStack
    _looked: int = 0

    def visitor(self, number: int, *, keeps_cookies: bool = True) -> "Visitor":
        """Somebody new, who stays until the fleet ends."""
        visitor = Visitor(self.url, number, keeps_cookies)
        self.stack.callback(visitor.client.close)
        return visitor

    def served(self) -> dict[str, list[str]]:
        """Visitor, as nginx tells them apart -> address of the replica that answered, each time.

        Where several were tried, the last one answered. nginx writes a line after it has answered,
        one request after the other, so the line of a request of our own comes after all others.
        """
        onlooker = "127.0.2.1"
        transport = httpx.HTTPTransport(local_address=onlooker)
        with httpx.Client(base_url=self.url, transport=transport) as client:
            client.get("/metrics")
        self._looked += 1
        deadline = time.monotonic() + 60
        while True:
            answered: dict[str, list[str]] = {}
            for line in self.access_log.read_text().splitlines():
                visitor, _, *upstreams = line.split(" ")
                answered.setdefault(visitor, []).append(upstreams[-1])
            if len(answered.pop(onlooker, ())) == self._looked:
                return answered
            assert time.monotonic() < deadline, "nginx does not write its log"
            time.sleep(0.01)


@contextmanager
def fleet(weights: Path, folder: Path) -> Iterator[Fleet]:
    """Two replicas behind nginx, which share the folder for uploads and panels."""
    environ = {
        **os.environ, "MAE_WEIGHTS": str(weights), "MAE_DEVICE": "cpu", "MAE_FETCH": "none",
        "MAE_PROXIES": "1", "GRADIO_TEMP_DIR": str(folder / "uploads"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    replicas = [Replica(free_port(), environ, folder / f"replica-{n}.log") for n in (1, 2)]
    with ExitStack() as stack:
        for replica in replicas:
            stack.callback(replica.kill)
            replica.start()
        for replica in replicas:
            replica.wait_until_served()
        url = stack.enter_context(_nginx(replicas, folder))
        yield Fleet(url, replicas, folder / "access.log", stack)


def _wait_for(url: str, process: "ForkedPython | subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, "it has ended"
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=30).is_success:
                return
        time.sleep(0.1)
    raise TimeoutError(url)


@contextmanager
def _nginx(replicas: list[Replica], folder: Path) -> Iterator[str]:
    assert NGINX is not None
    listen = f"127.0.0.1:{free_port()}"
    names = {"MAE_LISTEN": listen}
    names |= {f"MAE_REPLICA_{n}": replica.address for n, replica in enumerate(replicas, 1)}
    # As envsubst replaces variables that it is given, and leaves nginx its own.
    (folder / "demo.conf").write_text(
        re.sub(r"\$\{(\w+)\}", lambda found: names[found[1]], TEMPLATE.read_text())
    )
    (folder / "nginx.conf").write_text(_AROUND.substitute(folder=folder))
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with subprocess.Popen(command) as process:
        try:
            _wait_for(f"http://{listen}/config", process)
            yield f"http://{listen}"
        finally:
            process.terminate()


@dataclass
class Visitor:
    """Somebody with a picture of their own, who keeps cookies or has an address of their own."""

    url: str
    number: int
    keeps_cookies: bool
    uploaded: str = ""
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        address = "127.0.0.1" if self.keeps_cookies else f"127.0.1.{self.number + 1}"
        transport = httpx.HTTPTransport(local_address=address)
        self.client = httpx.Client(base_url=self.url, timeout=60, transport=transport)

    @property
    def name(self) -> str:
        """What nginx tells this visitor by."""
        if self.keeps_cookies:
            return str(self.client.cookies["mae_visitor"])
        return f"127.0.1.{self.number + 1}"

    @property
    def picture(self) -> bytes:
        colours = np.random.default_rng(self.number).integers(0, 256, (7, 7, 3), dtype=np.uint8)
        return encoded(Image.fromarray(colours).resize((112, 112)))

    def open_page(self) -> None:
        response = self.client.get("/")
        assert "Masked Autoencoder" in response.raise_for_status().text
        if not self.keeps_cookies:
            self.client.cookies.clear()

    def upload(self) -> None:
        files = {"files": ("mine.png", self.picture, "image/png")}
        response = self.client.post("/gradio_api/upload", files=files)
        (self.uploaded,) = response.raise_for_status().json()

    def ask(self, seed: int) -> tuple[str, Any]:
        """The last event of a reconstruction: its kind and its data."""
        picture = {"path": self.uploaded, "meta": {"_type": "gradio.FileData"}}
        call = "/gradio_api/call/reconstruct"
        body = {"data": [picture, 0.75, seed, "random", "crop", "mine", None, "estimated", None]}
        event = self.client.post(call, json=body).raise_for_status().json()["event_id"]
        stream = self.client.get(f"{call}/{event}").raise_for_status().text
        kind, data = re.findall(r"event: (\w+)\ndata: (.*)", stream)[-1]
        return kind, json.loads(data)

    def panels(self, seed: int) -> list[Image.Image]:
        """The four pictures of an answer, downloaded."""
        kind, data = self.ask(seed)
        assert kind == "complete", data
        return [self._download(file["path"]) for file in data[:4]]

    def _download(self, path: str) -> Image.Image:
        response = self.client.get(f"/gradio_api/file={path}").raise_for_status()
        return Image.open(io.BytesIO(response.content))
