"""`python -m train.html_report`: one file, whole, with the run's own numbers in it."""

import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train import palette
from train.analysis.html_report import _number
from train.analysis.pictures import Line, lines_svg
from train.html_report import main

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page that is well formed: every tag closed, in order; what it refers to; its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def report(run: Path, out: Path, *options: str) -> Page:
    assert main([str(run), "--out", str(out), "--device", "cpu", *options]) == 0
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, in a folder whose name would be markup; its evaluation is made by the first report."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("runs") / "a <b> & c")


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(run, tmp_path_factory.mktemp("page") / "report.html", "--samples")


def test_a_file_of_the_users_is_not_replaced(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "report.html"
    theirs.write_text("<html>mine</html>")
    for out in (theirs, tmp_path):
        assert main([str(finished_run), "--no-evaluate", "--out", str(out)]) == 2
        assert f"--out {out} is there already and no report of this program" in capsys.readouterr().err
    assert theirs.read_text() == "<html>mine</html>"
    ours = tmp_path / "ours.html"
    for _ in range(2):
        assert main([str(finished_run), "--no-evaluate", "--out", str(ours)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "ours.html"}


def test_a_row_that_was_cut_short(finished_run: Path, tmp_path: Path) -> None:
    """By a full disk, or a kill."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    for name in ("steps.csv", "epochs.csv"):
        text = (run / name).read_text()
        (run / name).write_text(text + text.splitlines()[-1][:20])
    assert main([str(run), "--no-evaluate"]) == 0


def test_it_is_one_file_without_a_script(page: Page) -> None:
    assert page.of("script") == []
    assert page.of("iframe") == []
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith(("data:", "#")), (tag, value)
            assert name.startswith("xmlns") or "://" not in (value or ""), (tag, name, value)
    [policy] = [meta for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in (policy["content"] or "")
    assert page.of("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.of("img"))
    assert all(drawing.get("aria-label") or drawing.get("aria-hidden") for drawing in page.of("svg"))


def test_it_shows_the_run(page: Page, run: Path) -> None:
    text = page.text
    assert text.startswith("Run a <b> & c")  # escaped, or the parser would have seen a tag
    results = json.loads((run / "results.json").read_text())
    for split in ("validation", "test"):
        assert f"{split} accuracy {100 * results[split]['accuracy']:.2f} %" in text
    for heading in (
        "Total loss",
        "Cross-entropy",
        "Accuracy, %",
        "Feature Discriminator",
        "NFD (w = 1/2)",
        "Mean Discriminator",
        "Embedding Discriminator",
        "Mean attention weight",
        "Attention weight of each class",
        "Confusion matrix: % of the true class (rows), and images",
        "Class means",
        "Pairs of images",
        "An image's embedding vectors, mean over images",
        "Embeddings of the test images",
        "Samples",
        "Settings",
    ):
        assert heading in text, heading
    settings = json.loads((run / "settings.json").read_text())["settings"]
    for group in settings.values():
        assert all(key in text for key in group)
    metrics = json.loads((run / "evaluation-test/metrics.json").read_text())
    low, high = metrics["intervals"]["accuracy"]
    assert f"{100 * low:.2f} to {100 * high:.2f}" in text
    labels = [drawing["aria-label"] or "" for drawing in page.of("svg") if drawing.get("aria-label")]
    assert any(label.startswith("Cross-entropy. training from ") for label in labels)
    assert any("Points: 3 of Neutral" in label for label in labels)
    assert (page.of("img")[0]["src"] or "").startswith("data:image/png;base64,")


def test_an_evaluation_of_another_checkpoint_is_repeated(run: Path, page: Page, tmp_path: Path) -> None:
    file = run / "evaluation-test/metrics.json"
    metrics = json.loads(file.read_text())
    file.write_text(json.dumps(metrics | {"epoch": 77}))
    text = report(run, tmp_path / "without.html", "--no-evaluate").text
    assert "epoch 77" not in text
    assert "Class means" not in text
    assert "Confusion matrix" in text  # the run's own
    text = report(run, tmp_path / "with.html").text
    assert "epoch 77" not in text
    assert "Samples" not in text  # only if asked for
    assert json.loads(file.read_text()) == metrics


def test_without_an_evaluation_no_data_is_read(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("data was read")

    alone = shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.setattr("train.data.load_data", refuse)
    (alone / "results.json").unlink()  # as of a run that has not ended
    page = report(alone, tmp_path / "new" / "report.html", "--no-evaluate")
    assert "Cross-entropy" in page.text
    assert "Test images" not in page.text


def test_mistakes(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for arguments, message in (
        ((tmp_path,), "no run with a finished epoch there"),
        ((finished_run, "--no-evaluate", "--out", tmp_path / "file/report.html"), "cannot write it"),
        ((finished_run, "--data", "nowhere"), "--data nowhere: no such file or folder"),
    ):
        assert main([*map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1


def test_runs_side_by_side(run: Path, page: Page, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    stored = json.loads((other / "settings.json").read_text())
    stored["settings"]["optimizer"]["lr"] = 0.125
    stored["started"] = {"date": "2026-01-02 03:04", "command": "python -m train <i>", "commit": "abc1234"}
    (other / "settings.json").write_text(json.dumps(stored))
    file = other / "evaluation-test/metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tta": "tencrop", "accuracy": 0.1234}))
    results = json.loads((other / "results.json").read_text())
    results["validation"]["accuracy"] = 0.99
    (other / "results.json").write_text(json.dumps(results))
    assert main([str(run), str(other), "--no-evaluate", "--out", str(tmp_path / "two.html")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"(?m)^other +99.00 % ", said)
    assert "best by validation accuracy: other\n" in said
    text = Page((tmp_path / "two.html").read_text(encoding="utf-8")).text
    assert text.startswith("2 runs side by side")
    assert "2026-01-02 03:04" in text
    assert "python -m train <i>" in text
    assert "abc1234" in text
    assert "Best by validation accuracy, on the same validation images: other" in text
    assert "test accuracy with tencrop – 12.34 %" in text
    assert text.count("12.34") == 3  # comparison, tile, table: one number for one figure
    assert re.search(r"optimizer.lr \S+ 0.125", text)
    assert "optimizer.epochs" not in text  # equal in both


def test_a_run_says_when_and_how_it_was_started(run: Path) -> None:
    started = json.loads((run / "settings.json").read_text())["started"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", started["date"])
    assert started["command"].startswith("python ")


def test_lines_leave_out_what_is_not_finite_and_escape_names() -> None:
    nan = float("nan")
    name = "--><script>$x^</script>"
    drawing = lines_svg("Title", [Line(name, [1, 2, 3], [0.5, nan, 0.7]), Line("none", [1], [nan])], "step")
    page = Page(drawing)
    assert not page.of("script")
    assert name in page.text
    assert "none" not in page.text
    assert "nan" not in drawing
    assert "from 0.5 to 0.7, minimum 0.5" in (page.of("svg")[0]["aria-label"] or "")
    assert set(re.findall("#[0-9a-f]{6}", drawing)) <= {"#000000"}, "colours are the page's"
    assert lines_svg("Title", [Line("none", [1], [nan])], "step") == ""
    assert (_number(-0.001), _number(-0.006), _number(None)) == ("0.00", "-0.01", "–")


def test_twenty_lines_look_different() -> None:
    assert len({(palette.color(i), palette.dash(i)) for i in range(20)}) == 20
    assert len({(palette.color(i), palette.marker(i)) for i in range(20)}) == 20


@pytest.mark.parametrize("colors", [palette.COLORS, palette.DARK])
def test_colours_can_be_told_apart(colors: tuple[str, ...]) -> None:
    """Distances in OKLab, in normal sight and as Machado et al. (2009) simulate the three dichromacies."""
    sights = {
        "normal": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    }
    to_lms = [[0.41222, 0.53633, 0.05145], [0.2119, 0.6807, 0.1074], [0.0883, 0.28172, 0.62998]]
    to_lab = [[0.21045, 0.79362, -0.00407], [1.978, -2.42859, 0.45059], [0.0259, 0.78277, -0.80868]]
    rgb = np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for sight, matrix in sights.items():
        seen = np.cbrt(np.clip(linear @ np.transpose(matrix), 0, 1) @ np.transpose(to_lms)) @ np.transpose(to_lab)
        for (a, x), (b, y) in itertools.combinations(zip(colors, seen, strict=True), 2):
            assert np.linalg.norm(x - y) > (0.2 if sight == "normal" else 0.1), (sight, a, b)
