"""A hub of our own: what a Hugging Face hub answers to uploads and downloads, kept in memory."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

from tests.file_server import Files, send_file

TOKEN = "hf_" + "secretofthetests"
USER = "me"

# The hub decides which files are large; it goes by their names.
LARGE = (".safetensors", ".png")


@dataclass
class Space:
    """A Space: its files, its settings, and the stages that it goes through, one for each look."""

    sdk: str
    private: bool
    hardware: str | None
    files: dict[str, bytes]
    commits: int = 1
    # That of the commit which runs.
    running: int = 0
    sleep_seconds: int | None = None
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    stages: list[str] = field(default_factory=lambda: ["NO_APP_FILE"])

    def look(self) -> str:
        """The stage it is in, "old:" if of a commit before; the next look finds the next."""
        stage = self.stages.pop(0) if len(self.stages) > 1 else self.stages[0]
        if stage in ("RUNNING", "SLEEPING"):
            self.running = self.commits
        return stage.removeprefix("old:")


# What a commit has of a file that it deletes.
DELETED = b"deleted by this commit"

# What the hub puts into a new Space.
NEW_FILES = {".gitattributes": b"*.safetensors filter=lfs\n", "README.md": b"---\nsdk: x\n---\n"}

# The same of a static one: a page to begin with.
NEW_STATIC_FILES = {
    "index.html": b"<h1>Welcome to your static Space!</h1>\n",
    "style.css": b"body {}\n",
}

# The kinds of Space that a free account may have, with their hardware.
FREE = (("gradio", "zero-a10g"), ("static", None))


class Hub(ThreadingHTTPServer, Files):
    """Repositories by name, each with whether it is private and the commits it has got.

    Files are served in the way of `habits`.
    """

    def __init__(self) -> None:
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", 0), _Handler)
        Files.__init__(self)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.private: dict[str, bool] = {}
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        # What was asked to change, as method and path.
        self.changes: list[str] = []
        self.spaces: dict[str, Space] = {}
        # What Spaces go through after a commit, and the end of their logs.
        self.course = ["BUILDING", "APP_STARTING", "RUNNING"]
        self.log = ""
        self.pays = True
        # Repositories whose files only those with the token get.
        self.gated: set[str] = set()
        # Repository -> changes of the values that its listing has.
        self.listed: dict[str, dict[str, Any]] = {}
        # Part of a path -> the status that the first request to it is refused with.
        self.refuse_once: dict[str, int] = {}

    def files(self, repo_id: str) -> dict[str, bytes]:
        """What somebody who downloads the repository gets."""
        files = {name: data for commit in self.commits[repo_id] for name, data in commit.items()}
        return {name: data for name, data in files.items() if data != DELETED}

    def publish(self, repo_id: str, files: dict[str, bytes]) -> None:
        """Have a commit bring files to a repository that everybody sees."""
        self.private.setdefault(repo_id, False)
        self.commits.setdefault(repo_id, []).append(files)

    def newest(self, repo_id: str) -> str:
        """The name of a repository's last commit."""
        return f"{len(self.commits[repo_id]):040d}"

    def listing(self, repo_id: str) -> dict[str, Any]:
        """What the hub tells of a repository."""
        files = [_listed_file(name, data) for name, data in self.files(repo_id).items()]
        facts = {"id": repo_id, "sha": self.newest(repo_id), "siblings": files}
        return facts | self.listed.get(repo_id, {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self._route(json.loads if not self.path.endswith("/commit/main") else _lines)

    def do_DELETE(self) -> None:
        self._route(json.loads)

    def do_GET(self) -> None:
        hub, path = self.server, unquote(self.path.split("?")[0])
        hub.requests.append(path)
        refused = next((part for part in hub.refuse_once if part in path), None)
        if refused:
            return self._answer(hub.refuse_once.pop(refused), {"error": "not today"})
        if path.startswith("/api/spaces/"):
            return self._space(None)
        tree = path.endswith("/tree/main")
        path = path.removesuffix("/tree/main").removesuffix("/revision/main")
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)(?:/resolve/([^/]+)/(.+))?", path)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not found or found[1] not in hub.commits or (hub.private[found[1]] and not known):
            return self._answer(404, {"error": "no"}, {"X-Error-Code": "RepoNotFound"})
        if tree:
            files = hub.files(found[1]).items()
            return self._answer(200, [_tree_file(name, data) for name, data in files])
        if found[2] is None:
            return self._answer(200, hub.listing(found[1]))
        return self._send(found[1], found[3], known)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, repo_id: str, name: str, known: bool) -> None:
        data = self.server.files(repo_id).get(name)
        if data is None:
            return self._answer(404, {"error": "no"}, {"X-Error-Code": "EntryNotFound"})
        if repo_id in self.server.gated and not known:
            return self._answer(401, {"error": "no"}, {"X-Error-Code": "GatedRepo"})
        tag = _blob_name(name, data)
        known_by = {
            "X-Repo-Commit": self.server.newest(repo_id), "X-Linked-Etag": f'"{tag}"',
            "X-Linked-Size": str(len(data)),
        }  # fmt: skip
        return send_file(self, self.server, data, tag, known_by)

    def do_PUT(self) -> None:
        if self.path.startswith("/api/spaces/"):
            return self._route(json.loads)
        return self._keep_large()

    def _keep_large(self) -> None:
        oid, data = self.path.rsplit("/", 1)[-1], self._body()
        ours = hashlib.sha256(data).hexdigest() == oid
        if ours:
            self.server.changes.append(f"PUT {self.path}")
            self.server.large[oid] = data
        self._answer(200 if ours else 400, {})

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _route(self, parse: Any) -> None:
        hub, path = self.server, self.path.split("?")[0]
        hub.requests.append(path)
        content = parse(self._body())
        refused = next((part for part in hub.refuse_once if part in path), None)
        if refused:
            return self._answer(hub.refuse_once.pop(refused), {"error": "not today"})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        # These only ask.
        if not path.endswith(("/validate-yaml", "/preupload/main", "/objects/batch")):
            hub.changes.append(f"{self.command} {path}")
        if path == "/api/repos/create":
            return self._create_space(content) if "sdk" in content else self._create(content)
        if path == "/api/validate-yaml":
            errors = _mistakes(content["content"]) if content["repoType"] == "space" else []
            return self._answer(400 if errors else 200, {"errors": errors, "warnings": []})
        if path.startswith("/api/spaces/"):
            return self._space(content)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if found and found[1] in hub.commits:
            return getattr(self, f"_{found[2]}")(found[1], content)  # type: ignore[no-any-return]
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                o if o["oid"] in hub.large
                else {**o, "actions": {"upload": {"href": f"{hub.url}/large/{o['oid']}"}}}
                for o in content["objects"]
            ]  # fmt: skip
            return self._answer(200, {"transfer": "basic", "objects": objects})
        return self._answer(404, {"error": "Repository not found"})

    def _create(self, content: dict[str, Any]) -> None:
        repo_id = f"{content['organization']}/{content['name']}"
        if content["organization"] != USER:
            return self._answer(403, {"error": f"You are not {content['organization']}"})
        if repo_id in self.server.commits:
            address = f"{self.server.url}/{repo_id}"
            return self._answer(409, {"error": "You already created this", "url": address})
        self.server.private[repo_id] = content.get("visibility") == "private"
        self.server.commits[repo_id] = []
        return self._answer(200, {"url": f"{self.server.url}/{repo_id}"})

    def _create_space(self, content: dict[str, Any]) -> None:
        hub, repo_id = self.server, f"{content['organization']}/{content['name']}"
        hardware = content.get("hardware")
        if content["organization"] != USER:
            return self._answer(403, {"error": f"You are not {content['organization']}"})
        if not hub.pays and (content["sdk"], hardware) not in FREE:
            return self._answer(402, {"error": "Subscribe to PRO"})
        private = content.get("visibility") == "private"
        static = content["sdk"] == "static"
        files = NEW_FILES | (NEW_STATIC_FILES if static else {})
        hub.spaces[repo_id] = Space(content["sdk"], private, hardware, files)
        if static:
            hub.spaces[repo_id].stages = ["RUNNING"]
        return self._answer(200, {"url": f"{hub.url}/spaces/{repo_id}"})

    def _space(self, content: Any) -> None:
        """Everything about a Space: its name, and then what of it."""
        hub = self.server
        parts = unquote(self.path.split("?")[0]).removeprefix("/api/spaces/").split("/", 2)
        repo_id, what = "/".join(parts[:2]), "".join(parts[2:]).removesuffix("/main")
        # The one branch there is.
        what = what.removesuffix("revision")
        space = hub.spaces.get(repo_id)
        known = self.headers.get("Authorization")
        if known not in (None, f"Bearer {TOKEN}"):
            wrong = "Invalid credentials in Authorization header"
            return self._answer(401, {"error": wrong}, {"X-Error-Message": wrong})
        if space is None or (space.private and known is None):
            return self._answer(404, {"error": "no"}, {"X-Error-Code": "RepoNotFound"})
        if content is not None and not repo_id.startswith(f"{USER}/"):
            return self._answer(403, {"error": "You cannot write there"})
        if what.startswith("logs/"):
            return self._send_log()
        if what == "commits":
            return self._answer(200, _commits(space))
        if what in ("preupload", "commit"):
            answer = self._preupload if what == "preupload" else self._commit_space
            return answer(repo_id, content)
        return self._answer(*_asked(hub, repo_id, space, self.command, what, content))

    def _send_log(self) -> None:
        lines = [{"data": line, "timestamp": ""} for line in self.server.log.splitlines(True)]
        data = "".join(f"data: {json.dumps(line)}\n\n" for line in lines).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _commit_space(self, repo_id: str, lines: list[dict[str, Any]]) -> None:
        space = self.server.spaces[repo_id]
        space.files.update(self._files_of(lines))
        space.files = {name: data for name, data in space.files.items() if data != DELETED}
        front = yaml.safe_load(space.files["README.md"].decode().split("---")[1])
        space.sdk = front["sdk"]
        space.stages = ["RUNNING"] if space.sdk == "static" else list(self.server.course)
        space.commits += 1
        address = f"{self.server.url}/spaces/{repo_id}/commit/{space.commits:040d}"
        answer = {"success": True, "commitOid": f"{space.commits:040d}", "commitUrl": address}
        self._answer(200, answer)

    def _preupload(self, repo_id: str, content: dict[str, Any]) -> None:
        hub, of_space = self.server, self.path.startswith("/api/spaces/")
        there = hub.spaces[repo_id].files if of_space else hub.files(repo_id)
        files = [
            {
                "path": (name := file["path"]),
                "uploadMode": "lfs" if name.endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            | ({"oid": _blob_name(name, there[name])} if name in there else {})
            for file in content["files"]
        ]
        self._answer(200, {"files": files})

    def _commit(self, repo_id: str, lines: list[dict[str, Any]]) -> None:
        self.server.commits[repo_id].append(self._files_of(lines))
        oid = f"{len(self.server.commits[repo_id]):040d}"
        address = f"{self.server.url}/{repo_id}/commit/{oid}"
        self._answer(200, {"success": True, "commitOid": oid, "commitUrl": address})

    def _files_of(self, lines: list[dict[str, Any]]) -> dict[str, bytes]:
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                files[value["path"]] = DELETED
        return files


def _asked(
    hub: Hub, repo_id: str, space: Space, method: str, what: str, content: Any
) -> tuple[int, Any]:
    """The status and the body for what is asked or changed of a Space."""
    if what in ("variables", "secrets"):
        kept: dict[str, str] = getattr(space, what)
        if method == "POST":
            kept[content["key"]] = content["value"]
        elif method == "DELETE":
            del kept[content["key"]]
        shown = {k: {"key": k} | ({"value": v} if what == "variables" else {}) for k, v in
                 kept.items()}  # fmt: skip
        return 200, shown
    if what == "hardware":
        if not hub.pays and content["flavor"] != FREE[0][1]:
            return 402, {"error": "Add a payment method"}
        space.hardware = content["flavor"]
    elif what == "sleeptime":
        space.sleep_seconds = content["seconds"]
    elif what == "settings":
        space.private = content["visibility"] == "private"
    elif what == "tree":
        return 200, [_tree_file(name, data) for name, data in space.files.items()]
    stage = space.look() if what == "runtime" else space.stages[0].removeprefix("old:")
    runtime = _runtime(space, stage)
    if what:
        return 200, runtime
    facts = {"id": repo_id, "private": space.private, "sdk": space.sdk, "runtime": runtime}
    return 200, facts | {"sha": f"{space.commits:040d}"}


def _commits(space: Space) -> list[dict[str, Any]]:
    """Those of a Space, the newest first."""
    told = {"authors": [], "date": "2026-01-01T00:00:00.000Z", "title": "", "message": ""}
    return [{"id": f"{number:040d}"} | told for number in range(space.commits, 0, -1)]


def _runtime(space: Space, stage: str) -> dict[str, Any]:
    """What runs a Space; nothing runs a static one."""
    static = space.sdk == "static"
    hardware = None if static else space.hardware
    return {
        "stage": stage,
        "hardware": {"current": hardware, "requested": hardware},
        "gcTimeout": space.sleep_seconds,
    } | ({} if static else {"sha": f"{space.running:040d}"})


def _tree_file(name: str, data: bytes) -> dict[str, Any]:
    blob = _blob_name(name, data)
    large = {"oid": blob, "size": len(data), "pointerSize": 134} if len(blob) == 64 else None
    listed = {"type": "file", "path": name, "size": len(data), "oid": blob[:40]}
    return listed | ({"lfs": large} if large else {})


def _mistakes(readme: str) -> list[dict[str, str]]:
    """What the hub has against the top of a Space's README.md."""
    front = yaml.safe_load(readme.split("---")[1])
    colours = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
    checks = {
        "short_description": len(front.get("short_description", "")) <= 60,
        "colorFrom": front.get("colorFrom") in colours,
        "colorTo": front.get("colorTo") in colours,
        "sdk": front.get("sdk") in ("gradio", "docker", "static"),
    }
    return [{"message": f"{name} is wrong"} for name, right in checks.items() if not right]


def _blob_name(name: str, data: bytes) -> str:
    """What a hub calls a content: its own hash for large files, git's for the others."""
    if name.endswith((*LARGE, ".bin")):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _listed_file(name: str, data: bytes) -> dict[str, Any]:
    blob = _blob_name(name, data)
    lfs = {"sha256": blob, "size": len(data), "pointerSize": 134} if len(blob) == 64 else None
    return {"rfilename": name, "size": len(data), "blobId": blob[:40], "lfs": lfs}


def _lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers while the context lasts."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
