"""Fonts for class names in pictures: matplotlib's own has no Chinese, Japanese, Arabic, … letters."""

import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from tqdm import tqdm

from train.bars import wrap

OWN = "DejaVu Sans"
BOXES = "Last Resort"  # the family that matplotlib draws boxes from


def use_fonts_for(names: Iterable[str]) -> None:
    """Have matplotlib draw every letter of the names, where a font on this machine has it."""
    families = [font_manager.get_font(file).family_name for file in files_for("".join(names))]
    matplotlib.rcParams["font.family"] = [OWN, *families]
    warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")  # said once, below


def file_for(text: str) -> str:
    """The font file that has most letters of the text: matplotlib's own where it has them all."""
    own = font_manager.findfont(OWN)
    return own if not _lacking(text, own) else max([own, *files_for(text)], key=lambda file: -len(_lacking(text, file)))


def files_for(text: str) -> list[str]:
    """Installed fonts that together have the letters of the text that matplotlib's own lacks."""
    return list(_files_for(frozenset(letter for letter in text if letter.isprintable() and not letter.isspace())))


@cache
def _files_for(letters: frozenset[str]) -> tuple[str, ...]:
    """Says once which letters no font has."""
    missing = _lacking("".join(letters), font_manager.findfont(OWN))
    chosen = []
    plain = [
        entry.fname
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal") and BOXES not in entry.name
    ]
    for file in dict.fromkeys(plain) if missing else ():
        if (left := _lacking("".join(missing), file)) < missing:
            chosen.append(file)
            missing = left
        if not missing:
            break
    if missing:
        shown = "".join(sorted(missing))
        note = f"note: no font on this machine has {shown[:20]}: pictures show boxes for them; install one, such as "
        tqdm.write(wrap(f"{note}fonts-noto-cjk for Chinese, Japanese and Korean"))
    return tuple(chosen)


@cache
def _letters(file: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(file).get_charmap())) if Path(file).is_file() else frozenset()
    except RuntimeError:  # a kind of file that FreeType does not read
        return frozenset()


def _lacking(text: str, file: str) -> frozenset[str]:
    return frozenset(text) - _letters(file)
