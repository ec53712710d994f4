"""Many visitors at once: what the page answers, how fast, and what that costs the server.

    python -m app --proxies 1
    python -m benchmarks.bench_load --visitors 64 --requests 20 --pid PID --out load.md
    python -m benchmarks.bench_load --minutes 30 --pause 2 --pid PID --out steady.md

Each visitor does over plain HTTP what a browser does: uploads a picture, joins the queue with the
page's own event or the API's, reads the event stream to its end and fetches the panels.
What the events are called and in which order they take their values, the page's /config says.
Visitors come from addresses of their own, which a server believes that is told of one proxy.

They drag the slider for one seed, there and back, draw new seeds, try strategies and fits, now
and then upload another picture, and ask for what is not allowed. Half of them use examples as they
are, whose answers they share; the others have pictures that nobody else has. Every panel is
compared, pixel by pixel, with the visitor's own picture under the mask of the visitor's own seed.

Requests end as a `picture`; `wrong`, a picture that is not the one asked for; `refused`, what is
not allowed and is said not to be; `busy`, a sentence that says so; an `error`, any other end; or
`lost`, none at all. With `--pid`, the server's memory and open files are written down as well.
Writes a Markdown page, the numbers as JSON, and a plot of the memory beside it.
"""

import argparse
import asyncio
import contextlib
import io
import json
import math
import os
import random
import re
import secrets
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import httpx
import numpy as np
from PIL import Image

from benchmarks import reports
from mae_core.images import FITS, fit_image
from mae_core.model.masking import STRATEGIES, draw_mask
from mae_core.photographs import decode_image
from mae_core.reconstruct import REMOVED_COLOUR

EXAMPLES = Path(__file__).parent.parent / "app" / "assets" / "examples"
PACKAGES = ("gradio", "httpx", "torch")

# What a sentence has that says that the server is busy; the report lists the sentences.
BUSY = re.compile(r"\b(busy|waiting|too often|too many|restart)", re.IGNORECASE)
BUSY_STATUS = (429, 503)

# The panel is made of 8 bits, and so is the picture that it is compared with.
TOLERANCE = 3
SAMPLE_SECONDS = 10

Kind = Literal["picture", "wrong", "refused", "busy", "error", "lost"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Changes = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One of the page's events.

    Attributes:
        fn_index: What the queue calls it.
        trigger: Id of a component that sets it off, if any does.
        names: Of its inputs, in order.
        values: Of its inputs, as the page has them at first.
        outputs: Of its outputs, in order: panels and `facts`.
    """

    fn_index: int
    trigger: int | None
    names: tuple[str, ...]
    values: tuple[Any, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, dependency: dict[str, Any], components: dict[int, dict[str, Any]]) -> "Event":
        """Read an event of /config."""
        inputs = [components[number]["props"] for number in dependency["inputs"]]
        outputs = [components[number]["props"] for number in dependency["outputs"]]
        return cls(
            dependency["id"],
            dependency["targets"][0][0] if dependency["targets"] else None,
            tuple(_name(props).replace("picture", "image") for props in inputs),
            tuple(props.get("value") for props in inputs),
            tuple(_name(props).rpartition("_")[2] for props in outputs),
        )

    def data(self, changes: Changes) -> list[Any]:
        """Its inputs, some of them changed."""
        return [changes.get(n, v) for n, v in zip(self.names, self.values, strict=True)]


def _name(props: dict[str, Any]) -> str:
    return str(props.get("elem_id") or props.get("label")).replace("-", "_").lower()


def events_of(config: dict[str, Any]) -> dict[str, Event]:
    """The page's own event, `update`, and the API's, `reconstruct`, from /config."""
    components = {component["id"]: component for component in config["components"]}
    events = {}
    for dependency in config["dependencies"]:
        event = Event.of(dependency, components)
        for name, first in (("reconstruct", "original"), ("update", "panels")):
            if {first, "facts"} <= set(event.outputs):
                events[name] = event
    return events


@dataclass(frozen=True)
class Wish:
    """What a visitor asks for.

    Attributes:
        event: `update` or `reconstruct`.
        upload: Whether another picture is uploaded first.
        allowed: Whether it should end in a picture.
    """

    mask_ratio: float = 0.75
    seed: int = 2
    strategy: str = "random"
    fit: str = "crop"
    event: str = "update"
    upload: bool = False
    allowed: bool = True

    @property
    def changes(self) -> Changes:
        """What it changes of an event's inputs."""
        names = ("mask_ratio", "seed", "strategy", "fit")
        return {name: getattr(self, name) for name in names}


NOT_ALLOWED: tuple[Changes, ...] = (
    {"mask_ratio": 7}, {"mask_ratio": None}, {"seed": -1}, {"seed": "two"}, {"strategy": "spiral"},
    {"fit": ["crop"]},
)  # fmt: skip


def wishes(chance: random.Random) -> Iterator[Wish]:
    """What one visitor does, without end."""
    while True:
        kind = chance.choices(("drag", "seed", "choose", "upload", "bad"), (4, 4, 2, 1, 1))[0]
        wish = Wish(seed=chance.randrange(10_000), event=chance.choice(("update", "reconstruct")))
        if kind == "drag":
            ratios = sorted(chance.sample(range(5, 96), 3))
            # There and back: what was just shown is asked for again.
            for ratio in [*ratios, *reversed(ratios[:-1])]:
                yield replace(wish, mask_ratio=ratio / 100, event="update")
        elif kind == "choose":
            yield replace(wish, strategy=chance.choice(STRATEGIES), fit=chance.choice(FITS))
        elif kind == "bad":
            yield replace(wish, allowed=False, **chance.choice(NOT_ALLOWED))
        else:
            # Every second one is what others ask for as well.
            wish = wish if chance.random() < 0.5 else replace(wish, seed=2)
            yield replace(wish, upload=kind == "upload")


@dataclass(frozen=True)
class Outcome:
    """How a request ended.

    Attributes:
        kind: One of `KINDS`.
        seconds: From joining the queue until the panels were there, or the sentence.
        said: The sentence, or what is wrong.
    """

    kind: Kind
    seconds: float
    said: str = ""


class RefusedError(Exception):
    """The server answered with a sentence.

    Attributes:
        busy: Whether it says that too much is asked for, now or by this visitor.
    """

    def __init__(self, said: str, busy: bool) -> None:
        super().__init__(said)
        self.busy = busy

    @classmethod
    def saying(cls, said: object) -> "RefusedError":
        """By what the sentence says."""
        return cls(str(said), bool(BUSY.search(str(said))))


class LostError(Exception):
    """A stream ended, and the request in it had not."""


def check_panel(panel: Image.Image, picture: Image.Image, wish: Wish, facts: Changes) -> str:
    """What is wrong with a masked panel; nothing where it is the one asked for.

    Args:
        panel: As the server sent it.
        picture: The visitor's own.
        wish: What was asked for.
        facts: What the server says of it.
    """
    told = {name: facts.get(name) for name in wish.changes}
    if told != wish.changes:
        return f"facts of another request: {told}"
    height, width = facts["height"], facts["width"]
    patch = math.isqrt(height * width // facts["patches"])
    grid = height // patch, width // patch
    fitted = fit_image(picture, wish.fit, image_size=min(height, width), patch_size=patch)
    if panel.size != fitted.size:
        return f"a panel of {panel.size} pixels for {fitted.size}"
    mask = draw_mask(wish.strategy, 1, grid, wish.mask_ratio, seed=wish.seed).mask
    removed = mask.reshape(grid).bool().numpy().repeat(patch, axis=0).repeat(patch, axis=1)
    expected = np.where(removed[..., None], 255 * REMOVED_COLOUR, np.asarray(fitted, float))
    bad = (np.abs(np.asarray(panel.convert("RGB"), float) - expected) > TOLERANCE).any(axis=2)
    if bad[removed].any():
        return "another mask"
    return "another picture, or mask" if bad.any() else ""


def masked_panel(original: Image.Image, rows: Sequence[str]) -> Image.Image:
    """The masked panel as the browser composes it, of rows of 0 and 1."""
    patch = original.width // len(rows[0])
    removed = np.array([[cell == "1" for cell in row] for row in rows])
    removed = removed.repeat(patch, axis=0).repeat(patch, axis=1)
    grey = round(255 * REMOVED_COLOUR)
    return Image.fromarray(np.where(removed[..., None], np.uint8(grey), np.asarray(original)))


def picture_of(number: int, chance: random.Random) -> bytes:
    """A picture file; of every second visitor one that nobody else has."""
    path = chance.choice(sorted(EXAMPLES.glob("*.jpg")))
    if number % 2 == 0:
        return path.read_bytes()
    buffer = io.BytesIO()
    with Image.open(path) as image:
        left, top = chance.randrange(image.width // 4), chance.randrange(image.height // 4)
        image.crop((left, top, image.width, image.height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class Visitor:
    """A browser without a screen."""

    def __init__(self, number: int, url: str, patience: float, trust: ssl.SSLContext) -> None:
        """Come from an address of one's own.

        Args:
            number: Of the visitor.
            url: The page's address.
            patience: Seconds until a request counts as lost.
            trust: Whose certificates are believed.
        """
        self._number, self._patience = number, patience
        # Kept for benchmarks: nobody has these addresses.
        address = f"198.18.{number // 256}.{number % 256}"
        headers = {"x-forwarded-for": address, "accept-language": "en"}
        self.client = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=patience, trust_env=False, verify=trust
        )
        self.chance = random.Random(number)
        # Another one in every run: the server may still have events of the last.
        self._session = secrets.token_hex(8)
        self._file: Changes | None = None
        self._picture = Image.new("RGB", (1, 1))

    async def ask(self, event: Event, wish: Wish) -> Outcome:
        """Ask, and judge the answer."""
        begun = time.perf_counter()
        try:
            said = await asyncio.wait_for(self._answer(event, wish), self._patience)
            kind: Kind = "picture" if wish.allowed and not said else "wrong"
        except RefusedError as error:
            said = str(error)
            kind = "busy" if error.busy else "error" if wish.allowed else "refused"
        except (TimeoutError, httpx.HTTPError, LostError) as error:
            said, kind = f"{type(error).__name__} {error}", "lost"
        except (KeyError, TypeError, ValueError, OSError) as error:
            said, kind = f"an answer that nobody understands: {error!r}", "error"
        return Outcome(kind, time.perf_counter() - begun, said)

    async def _answer(self, event: Event, wish: Wish) -> str:
        """What is wrong with the picture that comes."""
        if self._file is None or wish.upload:
            await self._upload()
        output = await self._event(event, event.data({"image": self._file, **wish.changes}))
        facts = output["facts"] or {}
        if "error" in facts:
            raise RefusedError.saying(facts["error"])
        panels = output.get("panels", output)
        if panels is None or panels["original"] is None:
            raise RefusedError(f"neither a picture nor an error, but {sorted(facts)}", busy=False)
        if "mask" not in panels:
            masked = await self._panel(panels["masked"]["url"])
        else:
            original, rebuilt = [
                await self._panel(f"/{panels[name]}") for name in ("original", "reconstruction")
            ]
            if original.size != rebuilt.size:
                return "panels of two sizes"
            masked = masked_panel(original, panels["mask"])
        return check_panel(masked, self._picture, wish, facts)

    async def _panel(self, url: str) -> Image.Image:
        # Where the page says its files are may be a name that only the proxy knows.
        answer = _checked(await self.client.get(httpx.URL(url).raw_path.decode()))
        with Image.open(io.BytesIO(answer.content)) as image:
            return image.convert("RGB")

    async def _upload(self) -> None:
        data = picture_of(self._number, self.chance)
        files = {"files": ("picture.jpg", data, "image/jpeg")}
        (path,) = _checked(await self.client.post("/gradio_api/upload", files=files)).json()
        self._file = {
            "path": path, "orig_name": "picture.jpg", "meta": {"_type": "gradio.FileData"},
        }  # fmt: skip
        self._picture = decode_image(data)

    async def _event(self, event: Event, data: list[Any]) -> Changes:
        """Join the queue and read the stream: the outputs by name."""
        body = {
            "data": data, "fn_index": event.fn_index, "session_hash": self._session,
            "trigger_id": event.trigger, "event_data": None,
        }  # fmt: skip
        joined = _checked(await self.client.post("/gradio_api/queue/join", json=body)).json()
        params = {"session_hash": self._session}
        ended = None
        async with self.client.stream("GET", "/gradio_api/queue/data", params=params) as stream:
            if stream.status_code != httpx.codes.OK:
                await stream.aread()
                _checked(stream)
            # To its end, as browsers do; the next request opens another.
            async for line in stream.aiter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {}
                if message.get("msg") == "unexpected_error":
                    raise RefusedError.saying(message["message"])
                if message.get("event_id") == joined["event_id"]:
                    ended = message if message["msg"] == "process_completed" else ended
        if ended is None:
            raise LostError("the stream ended before the request")
        if not ended["success"]:
            raise RefusedError.saying(ended["output"].get("error"))
        return dict(zip(event.outputs, map(_value, ended["output"]["data"]), strict=True))


def _value(output: Any) -> Any:
    """An output that is an update stands for its value."""
    is_update = isinstance(output, dict) and output.get("__type__") == "update"
    return output.get("value") if is_update else output


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code != httpx.codes.OK:
        said = f"HTTP {response.status_code}: {response.text[:200]}"
        raise RefusedError(said, busy=response.status_code in BUSY_STATUS)
    return response


@dataclass
class Watch:
    """What a server process takes, sampled; nothing where no process is given.

    Attributes:
        pid: Of the server, on this machine.
        cache: Folder that it writes uploads and panels to.
        samples: Seconds since the beginning, MiB in memory, open files and MiB in the folder.
    """

    pid: int | None
    cache: Path
    samples: list[tuple[float, float, int, float]] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Take a sample, if the process is there."""
        process = Path(f"/proc/{self.pid}")
        # It may end at any time, which what the visitors get says loudly enough.
        with contextlib.suppress(OSError):
            status = (process / "status").read_text(encoding="utf-8")
            files = len(os.listdir(process / "fd"))
            if resident := re.search(r"VmRSS:\s+(\d+)", status):
                memory = int(resident.group(1)) / 1024
                seconds = time.monotonic() - self.begun
                self.samples.append((seconds, memory, files, _size(self.cache)))

    async def keep_looking(self) -> None:
        """Take samples until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            self.look()


def _size(folder: Path) -> float:
    """MiB of a folder's files, of which any may be deleted meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(path, name)).st_size
    return total / 2**20


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """By how much a value grows in an hour, by least squares over the second half of its time."""
    late = [(x, y) for x, y in samples if x >= samples[-1][0] / 2]
    if len(late) < 3:
        return math.nan
    return 3600 * statistics.linear_regression(*zip(*late, strict=True)).slope


async def visit(
    visitor: Visitor, events: dict[str, Event], requests: int, until: float, pause: float
) -> list[Outcome]:
    """One visitor's time at the page.

    Args:
        visitor: Who.
        events: The page's.
        requests: How many; without a bound if 0.
        until: When it is over, on the monotonic clock.
        pause: Mean seconds between two requests.
    """
    outcomes: list[Outcome] = []
    async with visitor.client:
        for wish in wishes(visitor.chance):
            if time.monotonic() >= until or 0 < requests <= len(outcomes):
                return outcomes
            outcomes.append(await visitor.ask(events[wish.event], wish))
            await asyncio.sleep(visitor.chance.expovariate(1 / pause) if pause else 0)
    return outcomes


async def load(args: argparse.Namespace, watch: Watch) -> list[Outcome]:
    """Send all visitors at once."""
    trust = ssl.create_default_context()
    visitors = [Visitor(number, args.url, args.patience, trust) for number in range(args.visitors)]
    async with httpx.AsyncClient(timeout=args.patience, trust_env=False, verify=trust) as client:
        events = events_of(_checked(await client.get(f"{args.url}/config")).json())
    watch.look()
    looking = asyncio.ensure_future(watch.keep_looking())
    until = time.monotonic() + 60 * args.minutes if args.minutes else math.inf
    requests = 0 if args.minutes else args.requests
    visits = [visit(visitor, events, requests, until, args.pause) for visitor in visitors]
    try:
        outcomes = await asyncio.gather(*visits)
    finally:
        looking.cancel()
    watch.look()
    return [outcome for ours in outcomes for outcome in ours]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of them does not exceed."""
    if not values:
        return math.nan
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def summary(outcomes: Sequence[Outcome], watch: Watch, seconds: float) -> dict[str, Any]:
    """The numbers of a report."""
    counts = Counter(outcome.kind for outcome in outcomes)
    times = [outcome.seconds for outcome in outcomes if outcome.kind == "picture"]
    # Numbers in them would make each a sentence of its own.
    said = Counter(
        (outcome.kind, re.sub(r"\d+(\.\d+)?", "N", outcome.said)[:200])
        for outcome in outcomes
        if outcome.said
    )
    return {
        "requests": len(outcomes),
        "seconds": seconds,
        "kinds": {kind: counts[kind] for kind in KINDS},
        "latency": {
            "p50": percentile(times, 0.5), "p95": percentile(times, 0.95),
            "max": max(times, default=math.nan),
        },
        "said": [[kind, sentence, count] for (kind, sentence), count in said.most_common()],
        "samples": watch.samples,
        "mib_per_hour": slope([sample[:2] for sample in watch.samples]) if watch.samples else None,
    }  # fmt: skip


def markdown(report: dict[str, Any], plot: str | None) -> str:
    """The report as a page."""
    latency = report["latency"]
    rate = report["kinds"]["picture"] / report["seconds"]
    lines = [
        f"# {report['visitors']} visitors at once, {report['date']}",
        "",
        f"`{report['command']}`",
        "",
        f"{report['device']}, {report['cores']} cores for the server and the visitors, load before "
        f"{report['load_before']:.1f}; {report['versions']}.",
        "",
        f"{report['requests']} requests in {report['seconds']:.0f} s, {rate:.1f} pictures a "
        "second.",
        "",
        "| " + " | ".join(KINDS) + " |",
        "|---" * len(KINDS) + "|",
        "| " + " | ".join(str(report["kinds"][kind]) for kind in KINDS) + " |",
        "",
        f"Seconds until the picture: p50 {latency['p50']:.2f}, p95 {latency['p95']:.2f}, max "
        f"{latency['max']:.2f}.",
    ]
    if report["said"]:
        lines += ["", "| end | what was said, numbers as N | times |", "|---|---|---|"]
        lines += [f"| {kind} | {_cell(said)} | {count} |" for kind, said, count in report["said"]]
    if report["samples"]:
        lines += ["", *_process_lines(report, plot)]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _process_lines(report: dict[str, Any], plot: str | None) -> list[str]:
    """What the server took, as a table of the first, last and largest samples."""
    columns = list(zip(*report["samples"], strict=True))[1:]
    lines = ["| the server's | before | after | most |", "|---|---|---|---|"]
    for name, values in zip(
        ("memory, MiB", "open files", "uploads and panels, MiB"), columns, strict=True
    ):
        first, last, most = values[0], values[-1], max(values)
        lines.append(f"| {name} | {first:.0f} | {last:.0f} | {most:.0f} |")
    growth = report["mib_per_hour"]
    if math.isfinite(growth):
        lines += ["", f"Memory over the second half: {growth:+.1f} MiB an hour (least squares)."]
    return [*lines, "", f"![The server's memory over time]({plot})"] if plot else lines


def svg(samples: Sequence[tuple[float, float]]) -> str:
    """MiB over seconds as a line, from 0 MiB on."""
    width, height, left, bottom = 640, 240, 60, 30
    span, top = max(samples[-1][0], 1e-9), 1.1 * max(y for _, y in samples)
    points = " ".join(
        f"{left + (width - left) * x / span:.1f},{(height - bottom) * (1 - y / top):.1f}"
        for x, y in samples
    )
    floor = height - bottom
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<path d="M{left} 0V{floor}H{width}" fill="none" stroke="black"/>',
        f'<polyline points="{points}" fill="none" stroke="teal" stroke-width="2"/>',
        f'<text x="{left - 6}" y="12" text-anchor="end">{top:.0f} MiB</text>',
        f'<text x="{left - 6}" y="{floor}" text-anchor="end">0</text>',
        f'<text x="{width - 4}" y="{height - 8}" text-anchor="end">{span / 60:.1f} min</text>',
        "</svg>",
        "",
    ])  # fmt: skip


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Send many visitors to a page that is served.")
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="of the page")
    parser.add_argument("--visitors", type=int, default=64)
    parser.add_argument("--requests", type=int, default=20, help="of each visitor")
    parser.add_argument("--minutes", type=float, default=0, help="instead of a number of requests")
    parser.add_argument("--pause", type=float, default=0, help="mean seconds between requests")
    parser.add_argument("--patience", type=float, default=180, help="seconds until one is lost")
    parser.add_argument("--pid", type=int, help="of the server, if it runs on this machine")
    parser.add_argument(
        "--cache", type=Path, help="folder of its uploads and panels",
        default=Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio"),
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="the report, a .md file")
    args = parser.parse_args(argv)
    args.url = args.url.rstrip("/")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    arguments = sys.argv[1:] if argv is None else argv
    args = parse_args(arguments)
    report = reports.conditions("bench_load", arguments, "cpu", PACKAGES)
    watch = Watch(args.pid, args.cache)
    begun = time.perf_counter()
    outcomes = asyncio.run(load(args, watch))
    report |= {"visitors": args.visitors}
    report |= summary(outcomes, watch, time.perf_counter() - begun)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    plot = None
    if len(watch.samples) > 1:
        plot = args.out.with_suffix(".svg")
        plot.write_text(svg([sample[:2] for sample in watch.samples]), encoding="utf-8")
    page = markdown(report, plot.name if plot else None)
    print(page)
    args.out.write_text(page, encoding="utf-8")
    numbers = json.dumps(report, indent=1) + "\n"
    args.out.with_suffix(".json").write_text(numbers, encoding="utf-8")


if __name__ == "__main__":
    main()
