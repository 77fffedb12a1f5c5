"""Class names in letters that matplotlib's default font lacks: another font is used, or one line warns."""

import matplotlib
import pytest
from matplotlib import font_manager

from train import fonts


def test_a_font_is_found_for_letters_that_ours_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    stix = font_manager.findfont("STIXGeneral")
    own, other = (fonts._letters(file) for file in (font_manager.findfont(fonts.OWN), stix))
    letter = min(other - own)
    with matplotlib.rc_context():
        fonts.use_fonts_for(["Freude", "Ärger"])
        assert matplotlib.rcParams["font.family"] == [fonts.OWN]
        fonts.use_fonts_for(["Freude", letter])
        assert len(matplotlib.rcParams["font.family"]) == 2
    assert letter in fonts._letters(fonts.file_for(letter))
    assert "note:" not in capsys.readouterr().out


def test_missing_letters_are_reported_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(fonts, "_letters", lambda file: frozenset("Sad"))
    with matplotlib.rc_context():
        for _ in range(2):
            fonts.use_fonts_for(["Sad", "\U00012000"])  # cuneiform
    assert capsys.readouterr().out.count("note: no font on this machine has \U00012000: pictures show boxes") == 1
