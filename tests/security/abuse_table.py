"""What hostile visitors send over HTTP, and what each of them is answered.

    python -m tests.security.abuse_table

prints the table `input | outcome`; `test_abuse.py` holds every line of it.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.app.serving import served, small_service
from tests.security.attacker import CONTROLS, GOOD, Attacker, Outcome, decoy
from tests.security.hostile_pictures import PICTURE, hostile_pictures

_API = "/gradio_api"
_INVALID = "4.."
_UPLOADED = r"400: .*must be an uploaded file"
_NO_FUNCTION = "400: .*no such function"


class Abuse(NamedTuple):
    """One input: a name, what it is, who sends it, and how the outcome must begin (a pattern)."""

    name: str
    what: str
    send: Callable[[Attacker, str], Outcome]
    outcome: str


def abuses() -> Iterator[Abuse]:
    """All lines of the table; `send` is given a visitor and an address that is never fetched."""
    for picture in hostile_pictures():
        outcome = picture.said if picture.said.startswith(PICTURE) else f"error: .*{picture.said}"
        yield Abuse(f"picture {picture.name}", picture.oddity, _upload_of(picture), outcome)
    for kind, rows in (
        ("value", _values()),
        ("body", _bodies()),
        ("queue", _events()),
        ("file", _files()),
        ("route", _routes()),
        ("header", _headers()),
        ("raw", _raw()),
        ("upload", _uploads()),
        ("model", _models()),
    ):
        for name, what, send, outcome in rows:
            yield Abuse(f"{kind} {name}", what, send, outcome)


_Row = tuple[str, str, Callable[[Attacker, str], Outcome], str]


def _upload_of(picture: Any) -> Callable[[Attacker, str], Outcome]:
    def send(visitor: Attacker, address: str) -> Outcome:
        return visitor.picture(picture.make().replace(b"DECOY", address.encode()), picture.name)

    return send


# ---------------------------------------------------------------- values of /reconstruct


def _values() -> Iterator[_Row]:
    for number, (value, said) in enumerate(
        (
            (float("nan"), "400: .*without NaN"),
            (float("inf"), "400: .*without NaN"),
            (-1e308, "error: .*from 0.05"),
            ({"a": [1]}, "error: .*from 0.05"),
            ([0.5], "error: .*from 0.05"),
            ("0.5; DROP TABLE", "error: .*from 0.05"),
        )
    ):
        yield f"mask_ratio-{number}", f"mask_ratio {value!r}", _with(1, value), said
    for number, value in enumerate((-1, 2**64, 10**400, 0.5, "2", True, [], {})):
        shown = repr(value)[:20]
        yield f"seed-{number}", f"seed {shown}", _with(2, value), "error: .*whole number"
    for at, name, value in (
        (3, "strategy", "../random"),
        (3, "strategy-object", {"__class__": "x"}),
        (4, "fit", "x" * 100_000),
        (6, "image_size", 10**9),
        (6, "image_size-float", 1e308),
        (6, "image_size-negative", -16),
        (7, "view", "<img src=x onerror=alert(1)>"),
        (7, "view-nested", [[[]]]),
    ):
        yield (
            name,
            f"{name.split('-')[0]} {str(value)[:30]}",
            _with(at, value),
            "error: .*choose|error: .*multiples|error: .*whole number|error: .*can be",
        )


def _with(at: int, value: Any) -> Callable[[Attacker, str], Outcome]:
    """A call with one of its values replaced."""

    def send(visitor: Attacker, address: str) -> Outcome:
        values = [visitor.reference(visitor.upload(GOOD)), 0.75, 2, *CONTROLS]
        values[at] = value
        return visitor.call(values)

    return send


# ---------------------------------------------------------------- bodies


def _bodies() -> Iterator[_Row]:
    yield from (
        (name, what, lambda visitor, _, body=body: visitor.body(body), outcome)
        for name, what, body, outcome in (
            ("empty", "no body", "", _INVALID),
            ("no-json", "words", "not json", _INVALID),
            ("null", "null", "null", _INVALID),
            ("number", "a number", "7", _INVALID),
            ("no-data", "an object without data", "{}", _INVALID),
            ("data-text", "data that is text", '{"data": "x"}', _INVALID),
            ("data-object", "data that is an object", '{"data": {"0": 1}}', _INVALID),
            (
                "deep",
                "100,000 brackets",
                '{"data": ' + "[" * 100_000 + "]" * 100_000 + "}",
                "400",
            ),
            ("open-brackets", "100,000 brackets, none closed", "[" * 100_000, "400"),
            (
                "twice",
                "data given twice",
                '{"data": [1], "data": []}',
                "error: .*values were given",
            ),
            ("none", "no value", '{"data": []}', "error: .*values were given"),
            (
                "many",
                "1,000 values",
                json.dumps({"data": [0] * 1000}),
                "error: .*values were given",
            ),
            (
                "long-number",
                "a number of 100,000 digits",
                '{"data": [' + "9" * 100_000 + "]}",
                "4..|error",
            ),
            (
                "surrogate",
                "half a character",
                '{"data": ["\\ud800", 1, 2]}',
                "400",
            ),
            ("bytes", "bytes that are no UTF-8", b'{"data": ["\xff\xfe"]}', "4.."),
            ("bomb", "1 MB of spaces", " " * 1_000_000, "413"),
            (
                "session-list",
                "a session that is a list",
                '{"data": [], "session_hash": [1]}',
                _INVALID,
            ),
            (
                "session-long",
                "a session of 200 KB",
                json.dumps({"data": [], "session_hash": "x" * 200_000}),
                "4..|error",
            ),
            ("token", "somebody's token", '{"data": [], "oauth_token": "hf_abc"}', "4..|error"),
        )
    )


# ---------------------------------------------------------------- events of the queue


def _events() -> Iterator[_Row]:
    def join(**changes: Any) -> Callable[[Attacker, str], Outcome]:
        body = {"data": [], "fn_index": 0, "session_hash": "attacker", **changes}
        return lambda visitor, _: visitor.join({k: v for k, v in body.items() if v is not ...})

    for name, what, changes, outcome in (
        ("function-negative", "function -1", {"fn_index": -1}, _NO_FUNCTION),
        ("function-unknown", "function 10^6", {"fn_index": 10**6}, _NO_FUNCTION),
        ("function-text", "a function that is text", {"fn_index": "reconstruct"}, _INVALID),
        ("function-huge", "function 10^30", {"fn_index": 10**30}, _NO_FUNCTION),
        ("function-none", "no function", {"fn_index": ...}, "4.."),
        ("session-none", "no session", {"session_hash": ...}, "400"),
        (
            "session-path",
            "a session that is a path",
            {"session_hash": "../../etc/passwd"},
            "4..|error",
        ),
        ("event-data", "made-up event data", {"event_data": {"target": "x" * 1000}}, "error"),
        ("trigger", "a trigger that does not exist", {"trigger_id": 10**9}, "error"),
        ("batched", "a batch where there is none", {"batched": True}, "4..|error"),
        ("event-id", "another event's name", {"event_id": "0" * 32}, "error"),
    ):
        yield name, what, join(**changes), outcome
    for route in ("run", "api", "call", "call/v2"):
        path = f"{_API}/{route}/nothing"
        yield (
            f"{route.replace('/', '-')}-unknown",
            f"{route} of an endpoint that is not there",
            _posted(path, {"data": []}),
            _NO_FUNCTION,
        )
    for name in ("choose_example", "update", "look", "show_views", "update_models"):
        yield (
            f"private-{name}",
            f"the page's own {name}, called directly",
            _posted(f"{_API}/run/{name}", {"data": ["../../etc/passwd"]}),
            "200|4..|500",
        )


def _posted(path: str, body: dict[str, Any]) -> Callable[[Attacker, str], Outcome]:
    return lambda visitor, _: visitor.request("POST", path, json=body)


# ---------------------------------------------------------------- references to files


def _files() -> Iterator[_Row]:
    for number, (path, what) in enumerate(
        (
            ("/etc/passwd", "a system file"),
            ("../../../etc/passwd", "a way up"),
            ("/proc/self/environ", "the environment"),
            ("/dev/zero", "a device without end"),
            ("app/settings.py", "the program"),
            ("", "no path"),
            ("/", "the root"),
            (".", "the folder"),
            ("\\\\host\\share\\a.png", "a network share"),
            ("a\0b.png", "a null byte"),
            ("~/.cache/huggingface/token", "a token"),
            ("x" * 5000, "a name of 5,000 letters"),
        )
    ):
        yield f"path-{number}", f"picture {what}", _referring({"path": path}), _UPLOADED
    for scheme in ("http", "https", "data", "HTTP"):
        yield (
            f"address-{scheme}",
            f"picture at an address ({scheme}:)",
            _referring_to(scheme),
            _UPLOADED,
        )
    yield (
        "url",
        "an address beside the path",
        _referring({"path": "x", "url": "DECOY"}),
        _UPLOADED,
    )
    yield (
        "stream",
        "a stream of somebody's",
        _referring({"path": "x", "is_stream": True}),
        _UPLOADED,
    )
    yield (
        "text",
        "a bare path",
        lambda visitor, _: visitor.call(["/etc/passwd", 0.75, 2, *CONTROLS]),
        "error: .*must be an uploaded file",
    )
    for number, (path, what) in enumerate(
        (
            ("/etc/passwd", "a system file"),
            ("/proc/self/environ", "the environment"),
            ("app/settings.py", "the program"),
            ("../../../../etc/passwd", "a way up"),
            ("%2e%2e%2f%2e%2e%2fetc%2fpasswd", "an encoded way up"),
            ("..%252f..%252fetc%252fpasswd", "a way up encoded twice"),
            ("%00", "a null byte"),
            ("/etc/passwd%00.png", "a null byte before .png"),
            ("C:%5Cwindows%5Cwin.ini", "a drive"),
            ("//host/share", "a network share"),
            ("%5C%5Chost%5Cshare", "another"),
            ("", "nothing"),
        )
    ):
        yield f"get-{number}", f"file= of {what}", _got(f"{_API}/file={path}"), "4.."
    for number, path in enumerate(
        (
            "file=DECOY",
            "file=%68ttp://127.0.0.1:1/",
            "file=ftp://127.0.0.1/",
            "file/DECOY",
            "file=gopher://127.0.0.1/",
            "file=file:///etc/passwd",
            "file=data:text/html,x",
            "proxy=DECOY",
            "proxy=http://169.254.169.254/",
        )
    ):
        yield f"fetch-{number}", path.replace("DECOY", "an address"), _got(f"{_API}/{path}"), "4.."


def _referring(reference: dict[str, Any]) -> Callable[[Attacker, str], Outcome]:
    def send(visitor: Attacker, address: str) -> Outcome:
        known = {
            k: v.replace("DECOY", address) if isinstance(v, str) else v
            for k, v in reference.items()
        }
        picture = {"meta": {"_type": "gradio.FileData"}, **known}
        return visitor.call([picture, 0.75, 2, *CONTROLS])

    return send


def _referring_to(scheme: str) -> Callable[[Attacker, str], Outcome]:
    rest = "image/png;base64,iVBORw0KGgo=" if scheme == "data" else "DECOY"
    return lambda visitor, address: _referring(
        {"path": f"{scheme}:{rest}".replace("DECOY", address.removeprefix("http:"))}
    )(visitor, address)


def _got(path: str, method: str = "GET", **options: Any) -> Callable[[Attacker, str], Outcome]:
    return lambda visitor, address: visitor.request(
        method, path.replace("DECOY", address), **options
    )


# ---------------------------------------------------------------- routes, methods, headers


def _routes() -> Iterator[_Row]:
    for path in (
        "nothing",
        "monitoring",
        "monitoring/summary",
        f"{_API[1:]}/vibe-code",
        "static/../../../routes.py",
        "static/%2e%2e/%2e%2e/routes.py",
        "assets/..%2f..%2froutes.py",
        ".git/config",
        ".env",
        "config.json",
        f"{_API[1:]}/stream/a/b/1/playlist.m3u8",
        f"{_API[1:]}/runs",
        f"{_API[1:]}/custom_component/a/client/b/c.js",
        "pwa_icon/999999",
    ):
        name = path.removeprefix(f"{_API[1:]}/")
        yield name, f"GET {name}", _got(f"/{path}"), "4.."
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"):
        yield method, f"{method} /", _got("/", method), "4.."
    yield ("get-call", "GET of what takes a POST", _got(f"{_API}/call/reconstruct"), "4..")
    yield (
        "recording",
        "a film to be converted",
        _got(f"{_API}/process_recording", "POST", files={"file": ("a.webm", b"x" * 100)}),
        "4..",
    )
    yield (
        "component",
        "a method of a component",
        _posted(
            f"{_API}/component_server",
            {"data": [], "component_id": 1, "session_hash": "a", "fn_name": "__init__"},
        ),
        "4..",
    )
    yield (
        "component-unknown",
        "a component that is not there",
        _posted(
            f"{_API}/component_server",
            {"data": [], "component_id": 10**9, "session_hash": "a", "fn_name": "x"},
        ),
        "4..",
    )
    yield (
        "deep-link",
        "somebody's state as a link",
        _got(f"{_API}/deep_link?session_hash=a"),
        "200|4..",
    )
    yield (
        "login",
        "a login where there is none",
        _got("/login", "POST", data={"username": "a", "password": "b"}),
        "302|4..",
    )


def _headers() -> Iterator[_Row]:
    for name, what, headers, outcome in (
        ("host", "a foreign Host", {"host": "evil.example"}, "200"),
        (
            "forwarded-host",
            "a foreign X-Forwarded-Host",
            {"x-forwarded-host": "evil.example"},
            "200",
        ),
        (
            "forwarded-proto",
            "javascript: as the protocol",
            {"x-forwarded-proto": "javascript"},
            "...",
        ),
        ("forwarded-for", "an address of 4,000 letters", {"x-forwarded-for": "9" * 4000}, "200"),
        (
            "direct-url",
            "a proxy's address in a header",
            {"x-direct-url": "http://evil.example"},
            "200",
        ),
        ("space-header", "a header that only the Hub sets", {"x-ip-token": "x" * 500}, "200"),
        ("cookie", "8 KB of cookies", {"cookie": "a=" + "b" * 8000}, "200"),
        ("long", "a header of 200 KB", {"x-long": "a" * 200_000}, "4..|closed"),
        ("language", "a language of 10,000 letters", {"accept-language": "x," * 5000}, "200"),
        ("range", "a million ranges", {"range": "bytes=" + "0-1," * 10_000}, "..."),
        ("origin", "a foreign Origin", {"origin": "http://evil.example"}, "200|403"),
    ):
        yield name, what, _got("/config", headers=headers), outcome
    yield (
        "language-error",
        "an error in a language of letters and tags",
        lambda visitor, _: visitor.body('{"data": []}', **{"accept-language": "<script>;q=x"}),
        "error: .*values were given",
    )


# ---------------------------------------------------------------- bytes that no client sends


def _raw() -> Iterator[_Row]:
    post = b"POST /gradio_api/call/reconstruct HTTP/1.1\r\nHost: a\r\n"
    for name, what, data, outcome in (
        (
            "both-lengths",
            "a length and chunks",
            post + b"Content-Length: 4\r\nTransfer-Encoding: "
            b"chunked\r\n\r\n0\r\n\r\nGET /config HTTP/1.1\r\nHost: a\r\n\r\n",
            "400",
        ),
        (
            "two-lengths",
            "two lengths",
            post + b"Content-Length: 4\r\nContent-Length: 9\r\n\r\nabcd",
            "400|closed",
        ),
        ("negative-length", "a length of -1", post + b"Content-Length: -1\r\n\r\n", "400|closed"),
        (
            "huge-length",
            "a length of 10^18",
            post + b"Content-Length: 1" + b"0" * 18 + b"\r\n\r\n",
            "413",
        ),
        (
            "chunk-size",
            "a chunk of 2^96 bytes",
            post + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFFFFFF\r\n",
            "4..|closed",
        ),
        (
            "other-encoding",
            "chunks by another name",
            post + b"Transfer-Encoding: xchunked\r\n\r\n",
            "[45]..|closed",
        ),
        (
            "bare-newlines",
            "lines that end too early",
            b"GET / HTTP/1.1\nHost: a\n\n",
            "200|400|closed",
        ),
        (
            "split-header",
            "a header with a line's end in it",
            b"GET /config HTTP/1.1\r\nHost: a\r\nX: a\rSet-Cookie: b\r\n\r\n",
            "400|closed",
        ),
        (
            "no-http",
            "no HTTP at all",
            b"\x16\x03\x01\x02\0\1\0\1\xfc\x03\x03\r\n\r\n",
            "400|closed",
        ),
        (
            "absolute",
            "an address instead of a path",
            b"GET http://evil.example/gradio_api/proxy="
            b"http://evil.example HTTP/1.1\r\nHost: a\r\n\r\n",
            "4..|closed",
        ),
        (
            "connect",
            "CONNECT, as to a proxy",
            b"CONNECT evil.example:443 HTTP/1.1\r\nHost: a\r\n\r\n",
            "4..|closed",
        ),
        (
            "long-line",
            "a path of 100 KB",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            "4..|closed",
        ),
        (
            "path-newline",
            "a line's end in a path",
            b"GET /gradio_api/custom_component/a%0Atime=/client/b/c HTTP/1.1\r\nHost: a\r\n\r\n",
            "4..",
        ),
    ):
        yield name, what, lambda visitor, _, data=data: visitor.raw(data), outcome


# ---------------------------------------------------------------- the upload route


def _uploads() -> Iterator[_Row]:
    for number, (name, what) in enumerate(
        (
            ("../../../evil.png", "a way up"),
            ("..\\..\\evil.png", "a way up, as Windows writes it"),
            ("/etc/cron.d/evil.png", "a system folder"),
            ("a\0.png", "a null byte"),
            ("<img src=x onerror=alert(1)>.png", "markup"),
            ("a\r\nX: y.png", "a line's end"),
            ("x" * 100_000 + ".png", "100,000 letters"),
            (".", "a dot"),
            ("..", "two dots"),
            ("CON.png", "a device of Windows"),
            ("\u202egnp.exe", "letters from right to left"),
            ("a.html", "a page"),
            (".htaccess", "a server's settings"),
        )
    ):
        yield (
            f"name-{number}",
            f"a file name: {what}",
            lambda visitor, _, name=name: visitor.picture(GOOD, name),
            f"{PICTURE}|4..|error",
        )
    upload = f"{_API}/upload"
    parts = (
        b"".join(
            b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx\r\n'
            for _ in range(10_000)
        )
        + b"--b--\r\n"
    )
    form = {"content-type": "multipart/form-data; boundary=b"}
    for name, what, headers, body in (
        ("parts", "10,000 files", form, parts),
        ("fields", "10,000 fields", form, parts.replace(b'; filename="a"', b"")),
        ("no-boundary", "no boundary", {"content-type": "multipart/form-data"}, b"--b\r\n\r\n"),
        ("other-boundary", "another boundary", form, b"--c\r\n\r\n--c--\r\n"),
        ("no-end", "no end", form, parts[:500]),
        ("no-form", "no form", {"content-type": "application/json"}, b"{}"),
        ("no-name", "a part without a name", form, b"--b\r\nX: y\r\n\r\nx\r\n--b--\r\n"),
        (
            "long-header",
            "a part's header of 1 MB",
            form,
            b"--b\r\nX: " + b"y" * 10**6 + b"\r\n\r\n--b--",
        ),
        ("nothing", "an empty form", form, b"--b--\r\n"),
        ("too-long", "21 MB", form, bytes(21 * 2**20)),
    ):
        yield name, what, _got(upload, "POST", headers=headers, content=body), "4..|200"
    yield (
        "endless",
        "21 MB in chunks without a length",
        lambda visitor, _: visitor.request(
            "POST", upload, headers=form, content=(bytes(2**20) for _ in range(21))
        ),
        "4..",
    )


# ---------------------------------------------------------------- names of models


def _models() -> Iterator[_Row]:
    for number, (name, what) in enumerate(
        (
            ("/etc/passwd", "a system file"),
            ("../../weights.safetensors", "a way up"),
            ("http://127.0.0.1/a.safetensors", "an address"),
            ("DECOY", "this machine's address"),
            ("user/repo", "a repository"),
            ("user/../repo", "a repository with a way up"),
            ("user/repo@main/../../x", "a revision with a way up"),
            ("hf://user/repo", "a hub's address"),
            ("file:///etc/passwd", "a file's address"),
            ("small-random\0", "a null byte"),
            ("<b>small</b>", "markup"),
            ("x" * 100_000, "100,000 letters"),
            (7, "a number"),
            (["small-random"], "a list"),
            ({"name": 1}, "an object"),
            ("", "no letter"),
        )
    ):
        yield (f"name-{number}", f"model {what}", _with(5, name), "error: .*choose")


def main() -> None:
    """Print the table."""
    with decoy() as target, served(small_service()) as url:
        for abuse in abuses():
            visitor = Attacker(url)
            print(f"| {abuse.name} | {abuse.what} | {abuse.send(visitor, target.url)} |")
            visitor.close()
        print(f"\n{target.connections} connections to the address that nobody may fetch")


if __name__ == "__main__":
    main()
