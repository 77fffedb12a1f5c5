"""`python -m train.html_report`: one file, whole, with the run's own numbers in it."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from train.analysis.svg import Line, lines, scatter
from train.html_report import main

VOID = {"meta", "link", "img", "br", "polyline", "circle", "line"}


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


def test_it_is_one_file_without_a_script(page: Page) -> None:
    assert page.of("script") == []
    assert page.of("iframe") == []
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert (value or "").startswith("data:"), (tag, value)
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
        "Cross-entropy",
        "Accuracy",
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
        "Embeddings of 21 test images",
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
    assert len(page.of("circle")) >= 21
    assert (page.of("img")[0]["src"] or "").startswith("data:image/png;base64,")


def test_an_evaluation_of_another_checkpoint_is_made_again(run: Path, page: Page, tmp_path: Path) -> None:
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


def test_lines_leave_out_what_is_not_finite() -> None:
    nan = float("nan")
    drawing = lines("Title", [Line("a", [1, 2, 3], [0.5, nan, 0.7]), Line("none", [1], [nan])], "step")
    page = Page(drawing)
    [line] = page.of("polyline")
    assert len((line["points"] or "").split()) == 2
    assert "none" not in page.text
    assert "nan" not in drawing
    assert lines("Title", [Line("none", [1], [nan])], "step") == ""


def test_a_constant_is_drawn_flat_with_short_numbers() -> None:
    page = Page(lines("Rate", [Line("lr", [0, 100], [1e-3, 0.9985e-3])], "step"))
    first, last = ((point or "").split(",")[1] for point in (page.of("polyline")[0]["points"] or "").split())
    assert abs(float(first) - float(last)) < 5
    assert all(len(word) < 8 for word in page.words)
    Page(lines("Zero", [Line("lr", [0], [0.0])], "step"))


def test_nine_lines_look_different() -> None:
    page = Page(lines("Weights", [Line(f"class {i}", [0, 1], [i, i]) for i in range(20)], "step"))
    styles = [(line["class"], line["stroke-dasharray"]) for line in page.of("polyline")]
    assert len(set(styles)) == 20


def test_scatter_keeps_scales_equal() -> None:
    page = Page(scatter("Points", [("a", 0.0, 0.0), ("b", 10.0, 0.0), ("b", 0.0, 5.0)], ["a", "b"]))
    dots = [(float(dot["cx"] or 0), float(dot["cy"] or 0)) for dot in page.of("circle") if dot["r"] == "3"]
    (x0, y0), (x1, _), (_, y2) = dots
    assert (x1 - x0) == pytest.approx(2 * (y0 - y2), abs=0.2)
