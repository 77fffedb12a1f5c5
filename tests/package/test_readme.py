"""README.md promises only what works: its Python runs as printed, its commands exist and know the options they show."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
# Installing and moving about: the wheel's tests build what `pip install` would.
UNTESTED = ("cd ", "git clone ", "pip install ", "python -m venv ", "source ")


def blocks(language: str) -> list[str]:
    text = README.read_text() if README.exists() else ""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)


def shell_lines() -> list[str]:
    joined = "\n".join(blocks("bash") + blocks("sh") + blocks("console") + blocks("shell")).replace("\\\n", " ")
    lines = (re.sub(r"^\$ |\s+#.*|^#.*", "", line.strip()).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def targets() -> set[str]:
    return set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))


@pytest.mark.skipif(not README.exists(), reason="not written yet")
def test_it_shows_use_and_the_two_commands() -> None:
    assert blocks("python"), "no example of use"
    assert {"make train", "make test"} <= set(shell_lines())


@pytest.mark.parametrize("line", shell_lines())
def test_command(run, line: str) -> None:
    words = shlex.split(line)
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        del words[0]
    if words[:1] == ["make"]:
        named = [word for word in words[1:] if "=" not in word]
        assert named
        assert set(named) <= targets()
        handed_on = next((word[5:] for word in words if word.startswith("ARGS=")), "")
        if "train" in named:
            check_options(run, ["train"], shlex.split(handed_on))
    elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("train", "bench"):
        module = words[2]
        rest = words[3:]
        subcommand = [rest.pop(0)] if module == "bench" and rest and not rest[0].startswith("-") else []
        check_options(run, [module, *subcommand], rest)
    else:
        assert line.startswith(UNTESTED), f"a command that no test knows: {line}"


def check_options(run, command: list[str], words: list[str]) -> None:
    result = run("python", "-m", *command, "--help")
    assert result.returncode == 0, result.stderr
    shown = set(re.findall(r"--[\w-]+", result.stdout))
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= shown


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[0])
def test_python_runs_as_printed(run, code: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(code)
    result = run("python", "example.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "README.md"])
def test_targets_named_in_documents_exist(name: str) -> None:
    if not (ROOT / name).exists():
        pytest.skip("not written yet")
    named = set(re.findall(r"`(?:[A-Z]+=\S+ )?make ([a-z-]+)", (ROOT / name).read_text()))
    assert named <= targets()
