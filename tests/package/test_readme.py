"""README.md and docs/ are correct: their Python runs as printed, their commands and options exist."""

import random
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from train.options import parser
from train.recipe import resolve

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
# Installing and changing folders: the wheel's tests build what `pip install` would.
UNTESTED = ("cd ", "git clone ", "pip install ", "python -m venv ", "source ")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"))


def shell_lines(page: Path) -> list[str]:
    joined = "\n".join(blocks(page, "(?:bash|sh|console|shell)")).replace("\\\n", " ")
    lines = (re.sub(r"^\$ |\s+#.*|^#.*", "", line.strip()).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def targets() -> set[str]:
    return set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))


def each(find: Callable[[Path], list[str]]) -> list[Any]:
    """(page, item found on it), with readable names."""
    named = [(page, text) for page in PAGES for text in find(page)]
    return [pytest.param(page, text, id=f"{page.name}: {text.strip().splitlines()[0]}") for page, text in named]


def test_readme_shows_use_and_the_commands() -> None:
    assert blocks(README, "python"), "no example of use"
    assert {"make venv", "source .venv/bin/activate"} <= set(shell_lines(README))


@pytest.mark.parametrize("page, line", each(shell_lines))
def test_command(run, run_module, page: Path, line: str, tmp_path: Path) -> None:
    words = shlex.split(line)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    if words[:1] == ["make"]:
        named = [word for word in words[1:] if "=" not in word]
        handed_on = "".join(word[5:] for word in words if word.startswith("ARGS="))
        assert named
        assert set(named) <= targets()
        if named == ["train"]:
            arguments = tiny(shlex.split(handed_on), tmp_path)
            if "--data" in handed_on:
                result = run_module("train", *arguments)
            else:
                make = ("make", "--assume-old=venv", "train", f"RUN={sys.executable}")
                result = run(*make, f"ARGS={shlex.join(arguments)}", timeout=300)
            assert result.returncode == 0, result.stdout + result.stderr
    elif words[:3] == ["python", "-m", "train"] and (page != README or "--resume" in words):  # as tests/train does
        resolve(vars(parser().parse_args(words[3:])))
    elif words[:3] == ["python", "-m", "train"]:
        result = run_module("train", *tiny(words[3:], tmp_path))
        assert result.returncode == 0, result.stdout + result.stderr
    elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("train", "bench"):
        subcommand = [word for word in words[3:4] if not word.startswith("-")]
        result = run_module(words[2], *subcommand, "--help")
        assert result.returncode == 0, result.stderr
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= set(
            re.findall(r"--[\w-]+", result.stdout)
        )
    else:
        assert line.startswith(UNTESTED), f"a command that no test knows: {line}"


def tiny(words: list[str], folder: Path) -> list[str]:
    """A training command's arguments, followed by what makes it a matter of seconds; the last of an option wins."""
    words = [word for word in words if word != "--pretrained"]
    if "--data" in words:
        for split in ("train", "test"):
            for name in ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"):
                (folder / "faces" / split / name).mkdir(parents=True)
                for number in range(4):
                    face = Image.frombytes("L", (48, 48), random.randbytes(48 * 48))
                    face.save(folder / "faces" / split / name / f"{number}.png")
        words += ["--data", str(folder / "faces")]
    size = ["--limit", "28", "--epochs", "1", "--batch-size", "8", "--image-size", "32", "--backbone", "test_resnet"]
    return [*words, *size, "--device", "cpu", "--out", str(folder / "run")]


# Rarely, a Gloo thread that frees its last tensor while Python shuts down kills the process:
# github.com/pytorch/pytorch/pull/179291.
ABORTED = "terminate called without an active exception"


# tests/metric and tests/integrations run the Python of these.
TESTED_ELSEWHERE = ("metric-learning.md", "integrations.md")


@pytest.mark.parametrize(
    "page, code", each(lambda page: [] if page.name in TESTED_ELSEWHERE else blocks(page, "python"))
)
def test_python_runs_as_printed(run, page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("example.py").write_text(code)
    if "init_process_group" not in code:
        runpy.run_path("example.py", run_name="__main__")
        return
    for _ in range(3):
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        result = run("python", *launcher, "example.py", cwd=tmp_path)
        if ABORTED not in result.stderr:
            break
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_targets_named_in_documents_exist(page: Path) -> None:
    named = set(re.findall(r"`(?:[A-Z]+=\S+ )?make ([a-z-]+)", page.read_text(encoding="utf-8")))
    assert named <= targets()
