"""What reports share: one HTML page without script or network, and charts that fit its colours."""

import base64
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ACCENT", "GREY", "draw", "printable", "render"]

# Of curves and bars, and of axes; both are seen on a light and on a dark page.
ACCENT, GREY = "#3b6fe0", "#7d8794"

# Text in an SVG has no colour of its own unless it is drawn in another one than black.
_TEXT = b"text { fill: #333 } @media (prefers-color-scheme: dark) { text { fill: #ccc } }"


def printable(text: str) -> str:
    """Text that anybody may have written, on one line; what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def draw(
    paint: Callable[["Axes"], None], size: tuple[float, float], kind: Literal["svg", "png"] = "svg"
) -> bytes:
    """Draw a chart, the same bytes each time.

    Args:
        paint: Draws into the axes.
        size: Width and height in inches.
        kind: `svg` for a report, transparent; `png` for a file of its own, on white.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
        "xtick.labelcolor": "black", "ytick.labelcolor": "black",
        "svg.fonttype": "none", "svg.hashsalt": "mae_core", "path.simplify": False,
    }  # fmt: skip
    is_svg, buffer = kind == "svg", io.BytesIO()
    with mpl.rc_context(style), warnings.catch_warnings():
        # A letter that the font lacks is a box in a PNG; in an SVG it is of the browser's fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.add_subplot())
        figure.savefig(
            buffer, format=kind, dpi=120, transparent=is_svg,
            metadata={"Date": None} if is_svg else None,
        )  # fmt: skip
    return buffer.getvalue().replace(b"</style>", _TEXT + b"</style>", 1 if is_svg else 0)


def render(template: Path, **values: Any) -> bytes:
    """Fill a template, which extends `report_base.html.j2`; every value is escaped.

    Returns:
        The page as UTF-8. Bytes of a file's name that are not text are question marks.

    Raises:
        ImportError: If Jinja2 is not installed.
    """
    import jinja2

    folders = [template.parent, Path(__file__).parent]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, trim_blocks=True
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    text = environment.get_template(template.name).render(values, accent=ACCENT)
    return text.encode("utf-8", errors="replace")
