"""Colours, line styles and markers of all pictures; DARK has the colours of COLORS for a dark page.

Any two of the eight differ for people with normal and with red-, green- or blue-blind sight (see the test).
"""

from typing import Any

COLORS = ("#1b1b1b", "#d8a800", "#0048a8", "#009000", "#a800f0", "#901800", "#f04878", "#00a8d8")
DARK = ("#f0f0ee", "#f07830", "#0060f0", "#a8d800", "#d890f0", "#786000", "#c00078", "#00a8a8")
DASHES = ("-", (0, (6, 2)), (0, (2, 2)), (0, (7, 2, 2, 2)))
MARKERS = "o^sDvPX"
TEXT, GRID = "#404040", "#d9d9d9"
SHADES = ("#ffffff", COLORS[2])  # of shares, from 0 to 1
RIGHT, WRONG = "#00694b", "#b3261e"

STYLE: Any = {
    "text.parse_math": False,  # a "$" in a class name is a "$"
    "text.color": TEXT,
    "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT,
    "axes.titlesize": 11,
    "axes.formatter.useoffset": False,
    "axes.axisbelow": True,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": GRID,
    "legend.frameon": False,
    "figure.dpi": 120,
    "savefig.dpi": 120,
    "svg.fonttype": "none",
    "svg.hashsalt": "adcorre",
}


def color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def dash(index: int) -> str | tuple[int, tuple[int, ...]]:
    """No two of 32 lines share both colour and dash."""
    return DASHES[(index + index // len(COLORS)) % len(DASHES)]


def marker(index: int) -> str:
    """No two of 56 share both colour and marker."""
    return MARKERS[(index + index // len(COLORS)) % len(MARKERS)]
