"""Colours, sizes and panels of every drawing.

Pictures of sounds and of models are dark, as magma begins dark: the same on a light page, on a dark one and in a file
viewer. Drawings of studies are light, in one of two palettes: `PAPER`, for files and notebooks, and `PAGE`, of
stand-ins that a page replaces by its own colours, which differ between light and dark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUND, TEXT, FAINT, REFERENCE = "#18161e", "#d9d5e3", "#9c96ab", "#4b4659"
DARKEST = "#000004"  # where magma begins
FOUND, EXTRA, MISSED = "#6fd3ae", "#ffb454", "#ff6f91"
CLASSES = (FOUND, EXTRA, MISSED, "#7db4f5", "#c3a4f2", "#ede68a", "#f4f2f8", "#b98b6a")
MARKERS = "os^DvPX*"
"""A colour and a shape a class: whoever confuses two colours still sees the shapes."""

DARK: Any = {
    "text.parse_math": False, "figure.facecolor": GROUND, "figure.dpi": 250, "axes.facecolor": DARKEST,
    "text.color": TEXT, "axes.edgecolor": FAINT, "axes.labelcolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT,
    "font.size": 7.5, "axes.titlesize": 9, "axes.titlepad": 4, "axes.titlelocation": "left", "axes.linewidth": 0.5,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5, "xtick.major.width": 0.5, "ytick.major.width": 0.5,
    "xtick.major.pad": 2, "ytick.major.pad": 2, "legend.frameon": False,
}  # fmt: skip
"""Settings of matplotlib for dark pictures."""


class Palette(NamedTuple):
    """Colours of ink, of lines and of what is compared, as hex."""

    ink: str
    line: str
    colours: tuple[str, ...]


COLOURS = 6
"""Of a palette, and of style.css."""

PAGE = Palette("#010101", "#010102", tuple(f"#0102{index:02x}" for index in range(COLOURS)))
"""Stand-ins for a page's own colours: `--faint`, `--line`, `--c0` ..."""
PAPER = Palette("#4c4656", "#dcd7e0", ("#6b3fa0", "#d1495b", "#1b8a6b", "#c2701a", "#2f6fb7", "#8a8592"))


def light(palette: Palette) -> Any:
    """Settings of matplotlib for drawings in a palette."""
    ink, line = palette.ink, palette.line
    return {
        "text.parse_math": False,
        "svg.fonttype": "none", "path.simplify": False, "font.size": 9, "lines.linewidth": 1.6, "lines.markersize": 3,
        "xtick.color": ink, "ytick.color": ink, "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": line,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "legend.frameon": False,
        "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
        "grid.color": line, "ytick.major.size": 0, "ytick.minor.size": 0,
        "axes.titlesize": 9.5, "axes.titlelocation": "left", "figure.dpi": 110,
    }  # fmt: skip


def panels(height: float, rows: int = 1, columns: int = 1, *, width: float = 4.0, **options: Any) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes `(rows, columns)`; options as of `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)
