"""Every command answers --help with its defaults, and a user's error with exit code 2 and one message."""

import re
from pathlib import Path

import pytest

from bench.__main__ import COMMANDS
from train.data.__main__ import COMMANDS as DATA_COMMANDS

ROOT = Path(__file__).parents[2]
OF_DATA = [f"train.data {name}" for name in DATA_COMMANDS]
WITHOUT_DEVICE = (
    *("bench static", "bench report", "bench gate", "bench host", "bench spin", "bench tune"),
    *("train.ablation.summary", "train.ablation.pictures", *OF_DATA),
)


def commands() -> list[str]:
    """All commands for `python -m`: modules under train/ and bench/, and the subcommands of two of them."""
    names = [f"bench {name}" for name in COMMANDS] + OF_DATA
    for folder in ("train", "bench"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if module in ("bench.__main__", "train.data.__main__"):
                continue
            if file.name == "__main__.py":
                names.append(module.removesuffix(".__main__"))
            elif re.search(r"(?m)^if __name__ == .__main__.:", file.read_text()):
                names.append(module)
    return names


def options(text: str) -> dict[str, str]:
    """argparse's help cut into one piece per option."""
    pieces = re.split(r"(?m)^  (?=-)", text)[1:]
    return {re.findall(r"--[\w-]+", piece.split("  ")[0])[0]: piece for piece in pieces}


@pytest.mark.parametrize("command", commands())
def test_help_shows_defaults(run_module, command: str) -> None:
    result = run_module(*command.split(), "--help")
    assert result.returncode == 0, result.stderr
    shown = options(result.stdout)
    fewer = {"train.predict": {"--device"}, "train.demo": {"--device"}, "train.ablate": {"--seeds"}}
    expected = fewer.get(command, {"--seed", "--device"})
    assert command in WITHOUT_DEVICE or expected <= shown.keys()
    silent = [name for name, piece in shown.items() if not re.search(r"\bdefault|\brequired", piece)]
    assert set(silent) <= {"--help", "--version"}, f"no default shown for {silent}"


@pytest.mark.parametrize("wrong", [["--no-such-option"], ["--device", "abacus"]], ids=" ".join)
@pytest.mark.parametrize("command", commands())
def test_a_users_error_is_one_message(run_module, command: str, wrong: list[str]) -> None:
    result = run_module(*command.split(), *wrong)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert wrong[0 if command in WITHOUT_DEVICE else -1] in result.stderr


def test_bench_lists_its_commands(run) -> None:
    shown = run("python", "-m", "bench", "--help")
    assert shown.returncode == 0
    assert all(re.search(rf"(?m)^  {name} ", shown.stdout) for name in COMMANDS)
    wrong = run("python", "-m", "bench", "lost")
    assert wrong.returncode == 2
    assert f"expected one of {', '.join(COMMANDS)}" in wrong.stderr
    assert "'lost'" in wrong.stderr
