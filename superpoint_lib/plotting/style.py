"""Colours and sizes, and the figure that shows itself.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color), which colour-blind readers can
tell apart.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

COLORS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
    "yellow": "#F0E442",
    "black": "#000000",
}
CORRECT, WRONG, UNKNOWN = COLORS["green"], COLORS["vermillion"], COLORS["sky"]
SCORE_COLORMAP = "plasma"

WIDTH = 10.0
"""Width of a full-width figure in inches: 800 pixels."""

SERIES = [COLORS[name] for name in ("blue", "orange", "green", "vermillion", "sky", "purple")]
_STYLE: Any = {
    "figure.dpi": 80,
    "savefig.dpi": 80,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.prop_cycle": cycler(color=SERIES),
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.7,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.cmap": "gray",
}
styled = matplotlib.rc_context(_STYLE)

_SMALL_PNG = 20_000
_CHART_COLORS = 4096  # smooth lines and letters have hundreds; photographs many more


class Picture(Figure):
    """A matplotlib figure that shows itself in a notebook, once, and belongs to no global state.

    Charts are embedded as PNG, photographs (whose PNG would be large) as JPEG, so that an executed
    notebook stays small. ``savefig`` works as for any matplotlib figure.
    """

    def encode(self) -> tuple[str, bytes]:
        """Encode the figure for a web page.

        Returns:
            MIME type ("image/png" or "image/jpeg") and the encoded bytes, margins trimmed.
        """
        png = _with_palette(self._encode("png"))
        if len(png) < _SMALL_PNG:
            return "image/png", png
        # 4:4:4 keeps thin coloured lines sharp; the default chroma subsampling smears them.
        jpeg = self._encode("jpeg", quality=76, subsampling=0)
        # Of photographs the JPEG is a fraction of the PNG; of charts it is as large, and blurred.
        return ("image/jpeg", jpeg) if len(jpeg) < 0.6 * len(png) else ("image/png", png)

    def _encode(self, kind: str, **options: int) -> bytes:
        buffer = io.BytesIO()
        self.savefig(
            buffer, format=kind, bbox_inches="tight", pad_inches=0.05, pil_kwargs=options or None
        )
        return buffer.getvalue()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        mime, data = self.encode()
        display({mime: data, "text/plain": repr(self)}, raw=True)  # type: ignore[no-untyped-call]


def _with_palette(png: bytes) -> bytes:
    """A chart's PNG with a palette: a third as large, no level off by more than a few of 255."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.getcolors(_CHART_COLORS) is None:
        return png
    buffer = io.BytesIO()
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(buffer, "png", optimize=True)
    return buffer.getvalue()


@styled
def new_figure(width: float = WIDTH, height: float = 3.0) -> Picture:
    """Make an empty figure in this project's style.

    Args:
        width: inches (80 pixels each).
        height: inches.

    Returns:
        An empty :class:`Picture` with constrained layout.
    """
    figure = Picture(figsize=(width, height), dpi=_STYLE["figure.dpi"], layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def render_figure(figure: Figure) -> NDArray[np.uint8]:
    """Draw a figure into an array.

    Args:
        figure: any matplotlib figure.

    Returns:
        uint8 (height, width, 3) RGB, the whole canvas at the figure's own resolution.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
