"""Every command answers --help with its defaults, and a user's error with exit code 2 and one message."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands() -> list[str]:
    """The modules under train/ and bench/ that are meant for `python -m`."""
    found = []
    for folder in ("train", "bench"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if file.name == "__main__.py":
                found.append(module.removesuffix(".__main__"))
            elif re.search(r"(?m)^if __name__ == .__main__.:", file.read_text()):
                found.append(module)
    return found


def options(text: str) -> dict[str, str]:
    """argparse's help cut into one piece per option."""
    pieces = re.split(r"(?m)^  (?=-)", text)[1:]
    return {re.findall(r"--[\w-]+", piece.split("  ")[0])[0]: piece for piece in pieces}


def check_help(run, *command: str) -> None:
    result = run("python", "-m", *command, "--help")
    assert result.returncode == 0, result.stderr
    subcommands = re.search(r"(?m)^  \{([\w,-]+)\}", result.stdout)
    if subcommands:
        for name in subcommands[1].split(","):
            check_help(run, *command, name)
        return
    found = options(result.stdout)
    assert {"--seed", "--device"} <= found.keys()
    silent = [name for name, piece in found.items() if not re.search(r"\bdefault|\brequired", piece)]
    assert set(silent) <= {"--help", "--version"}, f"no default shown for {silent}"


@pytest.mark.parametrize("command", commands())
def test_help_shows_defaults(run, command: str) -> None:
    check_help(run, command)


@pytest.mark.parametrize("wrong", [["--no-such-option"], ["--device", "abacus"]], ids=" ".join)
@pytest.mark.parametrize("command", commands())
def test_a_users_error_is_one_message(run, command: str, wrong: list[str]) -> None:
    result = run("python", "-m", command, *wrong)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert wrong[-1] in result.stderr
