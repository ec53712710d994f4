"""Build the image and run it, where there is no Docker engine. By hand, as root, on Debian.

    apt-get install buildah debootstrap runc
    python tests/container/rehearse.py --python PREFIX

PREFIX is where a Python 3.11 to 3.12 is installed (`sys.base_prefix`) that was built on Debian 12.
Copied onto a Debian 12 of debootstrap's it stands in for the base image that the Dockerfile names,
which is Debian 12 with a Python in /usr/local as well. buildah builds; runc, which is under Docker
too, runs the image with a read-only root, no capabilities, a network that is its loopback alone,
and the page as process 1. What was seen is printed, one `name: value` a line; what must hold is
asserted.

`--pip-config FILE` is mounted, with the local folders that it names, while the image is built, and
is no part of it. `--torch-index` is the build argument TORCH_INDEX; by default it is left empty, so
torch is what pip finds without: PyPI's, with CUDA, or what that file leads to. Without `--python`
the image of the last time is run once more.
"""

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "mae-demo"
CONTAINER = "mae-demo-rehearsal"
# What a Python that was built on Debian 12 loads.
LIBRARIES = (
    "ca-certificates libbz2-1.0 libcrypt1 libexpat1 libffi8 liblzma5 libncursesw6 libnsl2 "
    "libreadline8 libsqlite3-0 libssl3 libuuid1 netbase tzdata zlib1g"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", type=Path, metavar="PREFIX")
    parser.add_argument("--torch-index", default="", metavar="ADDRESS")
    parser.add_argument("--pip-config", type=Path, metavar="FILE")
    parser.add_argument("--work", type=Path, default=Path("build/container"), metavar="FOLDER")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    buildah = Buildah(work / "storage")
    if arguments.python is not None:
        make_base(buildah, arguments.python, work / "base", base_image_name())
        build(buildah, arguments.torch_index, arguments.pip_config)
    rootfs, config = unpack(buildah)
    try:
        rehearse(work / "bundle", rootfs, config)
    finally:
        buildah("umount", CONTAINER)
        buildah("rm", CONTAINER)


class Buildah:
    """buildah, with images of its own in a folder."""

    def __init__(self, storage: Path) -> None:
        self._command = [
            "buildah", "--storage-driver", "vfs",
            "--root", str(storage / "images"), "--runroot", str(storage / "run"),
        ]  # fmt: skip

    def __call__(self, *arguments: str) -> str:
        command = [*self._command, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def report(name: str, value: object) -> None:
    print(f"{name}: {value}", flush=True)


def base_image_name() -> str:
    named = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert named is not None
    return named[1]


def make_base(buildah: Buildah, prefix: Path, folder: Path, name: str) -> None:
    """A Debian 12 with a Python in /usr/local, tagged as the base image."""
    if not folder.exists():
        include = "--include=" + ",".join(LIBRARIES.split())
        command = ["debootstrap", "--variant=minbase", include, "bookworm", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    copy_python(prefix, folder / "usr/local")
    for command in ("ldconfig", "python -m ensurepip", "ln -sf pip3 /usr/local/bin/pip"):
        subprocess.run(["chroot", str(folder), *command.split()], check=True, stdout=sys.stderr)
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, str(folder), "/")
    buildah("config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            "--cmd", "python3", container)  # fmt: skip
    buildah("commit", "--quiet", "--rm", container, name)
    version = subprocess.run(
        ["chroot", str(folder), "python", "--version"], check=True, capture_output=True, text=True
    )
    report("stand-in for", name)
    report("its Python", version.stdout.split()[-1])


def copy_python(prefix: Path, target: Path) -> None:
    """The interpreter and its library, without packages and tests."""
    (home,) = (prefix / "lib").glob("python3.*/os.py")
    version = home.parent.name
    for old in (target / "bin", target / "lib"):
        shutil.rmtree(old, ignore_errors=True)
    unwanted = shutil.ignore_patterns("site-packages", "test", "tests", "__pycache__", "config-*")
    shutil.copytree(home.parent, target / "lib" / version, ignore=unwanted, symlinks=True)
    for library in (prefix / "lib").glob("libpython3*"):
        shutil.copy2(library, target / "lib", follow_symlinks=False)
    (target / "bin").mkdir()
    shutil.copy2(prefix / "bin" / version, target / "bin" / version)
    for link in ("python3", "python"):
        (target / "bin" / link).symlink_to(version)


def build(buildah: Buildah, torch_index: str, pip_config: Path | None) -> None:
    started = time.monotonic()
    buildah(
        "bud", "--isolation", "chroot", "--format", "docker", "--pull-never", "--quiet",
        *pip_mounts(pip_config), "--build-arg", f"TORCH_INDEX={torch_index}",
        "--tag", IMAGE, str(ROOT),
    )  # fmt: skip
    report("built in", f"{time.monotonic() - started:.0f} s")


def pip_mounts(pip_config: Path | None) -> list[str]:
    """pip's configuration and every local folder that it names, for reading."""
    if pip_config is None:
        return []
    config = configparser.ConfigParser()
    config.read(pip_config)
    values = " ".join(value for section in config.sections() for value in config[section].values())
    named = [Path(word.removeprefix("file://")) for word in values.split()]
    local = {path for path in named if path.is_absolute() and path.exists()}
    # An index names its files by paths beside it.
    folders = {path.parent if path.name == "simple" else path for path in local}
    mounts = {str(path): str(path) for path in folders} | {str(pip_config): "/etc/pip.conf"}
    return [part for where, at in mounts.items() for part in ("--volume", f"{where}:{at}:ro")]


def unpack(buildah: Buildah) -> tuple[Path, dict[str, Any]]:
    """The image's files in a folder, and its configuration."""
    buildah("from", "--pull-never", "--name", CONTAINER, IMAGE)
    rootfs = Path(buildah("mount", CONTAINER))
    config = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
    packages = "venv/lib/python3*/site-packages"
    parts = {"torch": f"{packages}/torch", "CUDA": f"{packages}/nvidia", "demo": "demo"}
    report("size of the image", f"{megabytes(rootfs)} MB")
    for name, pattern in parts.items():
        report(f"of that, {name}", f"{sum(map(megabytes, rootfs.glob(pattern)))} MB")
    return rootfs, config


def megabytes(folder: Path) -> int:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return round(sum(file.stat().st_size for file in files) / 1e6)


def rehearse(bundle: Path, rootfs: Path, config: dict[str, Any]) -> None:
    write_bundle(bundle, rootfs, config)
    started = time.monotonic()
    with (bundle / "log").open("w") as log:
        page = subprocess.Popen(
            ["runc", "run", "--bundle", str(bundle), CONTAINER], stdout=log, stderr=log
        )
    try:
        wait_until_healthy(config, page)
        report("first 200 of the health check after", f"{time.monotonic() - started:.1f} s")
        look_around()
        report("a reconstruction", inside(RECONSTRUCT).splitlines()[-1])
        stop(page)
    finally:
        subprocess.run(["runc", "delete", "--force", CONTAINER], check=False)
        page.wait()
    report("lines of the log", (bundle / "log").read_text())


def write_bundle(bundle: Path, rootfs: Path, config: dict[str, Any]) -> None:
    """What `docker run --read-only --tmpfs /tmp --network none --cap-drop ALL` asks for."""
    shutil.rmtree(bundle, ignore_errors=True)
    (bundle / "cache").mkdir(parents=True)
    uid = int(config["User"])
    os.chown(bundle / "cache", uid, uid)
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    spec = json.loads((bundle / "config.json").read_text())
    spec["root"] = {"path": str(rootfs), "readonly": True}
    spec["process"] |= {
        "terminal": False, "user": {"uid": uid, "gid": uid}, "args": config["Cmd"],
        "env": config["Env"], "cwd": config["WorkingDir"], "noNewPrivileges": True,
        "capabilities": {},
    }  # fmt: skip
    spec["mounts"] += [
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
        {"destination": "/cache", "type": "bind", "source": str(bundle / "cache"),
         "options": ["rbind", "rw"]},
    ]  # fmt: skip
    (bundle / "config.json").write_text(json.dumps(spec))


def wait_until_healthy(config: dict[str, Any], page: "subprocess.Popen[bytes]") -> None:
    """Ask as the image's HEALTHCHECK does, until it says 200."""
    kind, *command = config["Healthcheck"]["Test"]
    assert kind == "CMD"
    while run_inside(command).returncode != 0:
        assert page.poll() is None, "the page has ended; the bundle's log says why"
        time.sleep(0.5)


def run_inside(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["runc", "exec", CONTAINER, *command], capture_output=True, text=True)


def inside(script: str) -> str:
    """What a Python script in the container prints."""
    done = run_inside(["python", "-c", script])
    assert done.returncode == 0, done.stderr
    return done.stdout


LOOK_AROUND = """
import os, socket
print("uid:", os.getuid())
print("process 1:", open("/proc/1/cmdline").read().replace("\\0", " ").strip())
print("network:", ", ".join(name for _, name in socket.if_nameindex()))
for folder in ("/", "/demo", "/venv", "/cache", "/tmp"):
    print(f"{folder} is", "writable" if os.access(folder, os.W_OK) else "read-only")
try:
    socket.create_connection(("192.0.2.1", 443), 5)
except OSError as error:
    print("a connection to outside:", error.strerror)
"""

RECONSTRUCT = """
import time
from gradio_client import Client, handle_file
client = Client("http://127.0.0.1:7860", verbose=False, download_files="/tmp/answers")
started = time.monotonic()
answer = client.submit(
    image=handle_file("/demo/app/assets/examples/cat.jpg"), mask_ratio=0.6, seed=7,
    api_name="/reconstruct",
)
print("asked", flush=True)
*panels, facts = answer.result()
assert len(panels) == 4 and all(open(panel, "rb").read(4) == b"\\x89PNG" for panel in panels)
print(f"{time.monotonic() - started:.2f} s, four PNG files,", facts)
"""


def look_around() -> None:
    seen = inside(LOOK_AROUND)
    print(seen, end="", flush=True)
    assert "uid: 1000" in seen
    assert "network: lo\n" in seen
    for folder in ("/", "/demo", "/venv"):
        assert f"{folder} is read-only" in seen


def stop(page: "subprocess.Popen[bytes]") -> None:
    """SIGTERM while an answer is being computed; it has to arrive all the same."""
    slow = RECONSTRUCT.replace("seed=7", "seed=7, image_size=1024")
    visitor = subprocess.Popen(
        ["runc", "exec", CONTAINER, "python", "-c", slow], stdout=subprocess.PIPE, text=True
    )
    assert visitor.stdout is not None
    assert visitor.stdout.readline() == "asked\n"
    time.sleep(1)
    still = "waiting" if visitor.poll() is None else "answered"
    report("a picture of 1024 pixels, one second after it was asked for", still)
    started = time.monotonic()
    subprocess.run(["runc", "kill", CONTAINER, "TERM"], check=True)
    answer = visitor.communicate(timeout=120)[0].strip()
    report("its answer, after SIGTERM", answer or "none")
    status = page.wait(timeout=120)
    report("exit status", status)
    report("stopped in", f"{time.monotonic() - started:.1f} s")
    assert answer
    assert status == 0


if __name__ == "__main__":
    main()
