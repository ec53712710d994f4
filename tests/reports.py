"""A report as a browser would read it, and the curves in its charts."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Tags, their attributes, and the text between them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.lasttag != "style":
            self.text += data

    def embedded(self, kind: str) -> list[bytes]:
        """The embedded files of that kind, `jpeg` or `svg+xml`."""
        start = f"data:image/{kind};base64,"
        sources = [value for name, value in self.attributes if name == "src"]
        return [base64.b64decode(s.removeprefix(start)) for s in sources if s.startswith(start)]

    def pictures(self) -> list[Image.Image]:
        return [Image.open(io.BytesIO(data)) for data in self.embedded("jpeg")]

    def check_alone(self) -> None:
        """It runs nothing, and asks nobody for anything."""
        assert not {"script", "iframe", "link", "object", "a"} & set(self.tags)
        assert self.tags.count("title") == 1
        for attribute, value in self.attributes:
            assert not attribute.startswith("on")
            if attribute in ("src", "href", "xlink:href"):
                assert re.match("data:image/(jpeg|svg[+]xml);base64,", value)
        assert not re.search(r"url\((?!#)|@import|https?:", self.source)


def groups_of(svg: str | bytes, gid: str) -> list[ET.Element]:
    """The groups of a chart that carry this id."""
    return [g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.attrib.get("id") == gid]


def lines_of(svg: str | bytes, gid: str) -> list[ET.Element]:
    """The first path of each group that carries this id."""
    return [next(group.iter(f"{SVG}path")) for group in groups_of(svg, gid)]


def places(path: ET.Element) -> list[tuple[float, float]]:
    """The points of a path; y counts from the top."""
    numbers = re.findall(r"[-\d.]+", path.attrib["d"])
    return [(float(x), float(y)) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
