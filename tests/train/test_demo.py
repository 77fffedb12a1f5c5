"""`python -m train.demo`: what the page shows for a picture, and the page in a browser."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.train.chromium import PROGRAM, chromium
from tests.train.conftest import ROOT
from train.analysis.demo import NO_FACE, Page, directions, embed_faces, free_port
from train.data.labels import CLASS_NAMES
from train.data.synthetic.dataset import SyntheticFaces
from train.demo import main
from train.errors import UserError
from train.run_data import load_run_data
from train.run_folder import load_trained

CPU = torch.device("cpu")


def test_correlations_of_directions() -> None:
    x = torch.randn(5, 3, 8)
    expected = torch.stack([torch.corrcoef(x[:, vector]) for vector in range(3)]).mean(0)
    torch.testing.assert_close(directions(x) @ directions(x).T, expected, atol=1e-6, rtol=0)


def test_the_page_shows_face_probabilities_and_nearest_faces(finished_run: Path, tmp_path: Path) -> None:
    trained = load_trained(finished_run)
    training, _, _ = load_run_data(finished_run, trained, "train")
    some = embed_faces(trained, training, 10, CPU)
    assert len(some.faces) == 10
    page = Page(trained, lambda pixels: [(20.0, 10.0, 48.0, 48.0)] if pixels.shape[1] > 48 else [], some, CPU)
    some.faces.image(4).save(tmp_path / "face.png")
    photo = Image.new("RGB", (100, 90), "blue")
    photo.paste(some.faces.image(4), (20, 10))
    photo.save(tmp_path / "photo.png")

    _, row, nearest, note = page.look(str(tmp_path / "face.png"), whole=True)
    assert row is not None
    assert tuple(row) == CLASS_NAMES
    assert sum(row.values()) == pytest.approx(1)
    name = CLASS_NAMES[some.faces.labels[4]]
    assert (nearest[0][0].tobytes(), nearest[0][1]) == (some.faces.image(4).tobytes(), f"{name} 1.00")
    assert len(nearest) == 8
    assert note == "Predicted on the whole picture, 48 x 48 pixels."
    shown, _, _, note = page.look(str(tmp_path / "photo.png"), whole=False)
    assert note == "Predicted on 58 x 58 pixels.", "with its margin"
    assert shown.size == (1024, 922)
    assert page.look(str(tmp_path / "face.png"), whole=False)[3] == "Predicted on the whole picture, 48 x 48 pixels."
    Image.new("RGB", (100, 90), "blue").save(tmp_path / "sky.png")
    nobody = replace(page, detect=lambda pixels: [])
    assert nobody.look(str(tmp_path / "sky.png"), whole=False) == (None, None, None, NO_FACE)
    two = replace(page, detect=lambda pixels: [(0.0, 0.0, 20.0, 20.0), (20.0, 10.0, 48.0, 48.0)])
    assert two.look(str(tmp_path / "photo.png"), whole=False)[3] == f"2 faces seen; this is the largest. {note}"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "cannot read the image broken.png" in page.look(str(tmp_path / "broken.png"), whole=True)[3]
    assert page.look(None, whole=True) == (None, None, None, "")


def test_where_gradio_is_missing(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main([str(finished_run)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: gradio is not installed")
    assert line.endswith("pip install -e '.[demo]'")


def test_a_port_that_is_taken() -> None:
    port = free_port(0)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(UserError, match=f"--port {port}: Address already in use"),
    ):
        free_port(port)


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")
def test_the_page_in_a_browser(finished_run: Path, tmp_path: Path) -> None:
    """A drawn face is dropped; its classes and neighbors appear, with no request to another machine."""
    pytest.importorskip("gradio")
    SyntheticFaces("test", size=96, count=1).image(0).save(tmp_path / "face.png")
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    process = subprocess.Popen(
        [sys.executable, "-m", "train.demo", str(finished_run), "--faces", "20", "--device", "cpu"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        address = line.split(" at ")[1].split()[0]
        assert address.startswith("http://127.0.0.1:")
        with chromium(tmp_path / "profile") as page:
            page.size(1280, 900)
            page.open(address)
            for kind in ("checkbox", "file"):
                page.wait_for(f"document.querySelector('input[type={kind}]') != null")
            page.value("document.querySelector('input[type=checkbox]').click()")
            page.upload(tmp_path / "face.png")
            page.wait_for("document.body.innerText.includes('Predicted on the whole picture, 96 x 96 pixels')")
            assert all(name in page.text() for name in CLASS_NAMES)
            captions = "/(Neutral|Happy|Sad|Surprise|Fear|Disgust|Anger) [0-9.]{4}/g"
            page.wait_for(f"document.body.innerText.match({captions}).length == 8")
            elsewhere = [a for a in page.addresses if not a.startswith((address, "data:", "blob:"))]
        assert elsewhere == []
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert not list(tmp_path.glob("adcorre-demo-*")), "the uploads are gone"
