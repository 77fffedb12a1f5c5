""".ci/setup with a fake uv that records its arguments; its environments are a link to Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = Path(getattr(sys, "_base_executable", sys.executable))
UV = f"""#!/bin/sh
[ "$1" = --version ] && echo "uv 1.0" && exit
echo "$@" >>uv.log
if [ "$1" = venv ]; then
    for folder; do :; done
    mkdir -p "$folder/bin" && ln -s "{BASE}" "$folder/bin/python" && echo "home = {BASE.parent}" >"$folder/pyvenv.cfg"
elif [ -e break-uv ]; then
    exit 1
fi
"""


class Checkout:
    """A checkout with only the files that setup reads, and a PATH with only fakes and system tools."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a checkout"
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        (self.folder / ".ci").mkdir(parents=True)
        for name in (".ci/setup", "requirements.txt", "requirements-uv.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder / name)
        for tool in ("sh", "cat", "cksum", "rm", "mkdir", "ln", "dirname", "sed", "cut"):
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        self.program("uv", UV)
        self.program("python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def setup(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        words = words or ("venv", ".venv", "requirements.txt")
        return subprocess.run(
            [self.folder / ".ci" / "setup", *words],
            cwd=self.bin,
            env={"PATH": str(self.bin), "HOME": os.environ.get("HOME", "/"), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[str]:
        """The calls of uv since the last time."""
        log = self.folder / "uv.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


INSTALL = [
    "pip install --python .venv/bin/python --require-hashes -r requirements.txt",
    "pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .",
]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def environment_built(calls: list[str]) -> bool:
    return len(calls) == 3 and calls[0].startswith("venv ") and calls[1:] == INSTALL


def test_second_setup_does_nothing(checkout: Checkout) -> None:
    assert checkout.setup().returncode == 0
    assert environment_built(checkout.calls())
    again = checkout.setup()
    assert (again.returncode, again.stdout, again.stderr, checkout.calls()) == (0, "", "", [])


def test_changed_requirements_are_installed(checkout: Checkout) -> None:
    checkout.setup()
    checkout.calls()
    with (checkout.folder / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    assert checkout.setup().returncode == 0
    assert checkout.calls() == INSTALL


def test_touched_requirements_are_not(checkout: Checkout) -> None:
    checkout.setup()
    checkout.calls()
    (checkout.folder / "requirements.txt").touch()
    checkout.setup()
    assert checkout.calls() == []


def test_interrupted_install_is_restarted(checkout: Checkout) -> None:
    (checkout.folder / "break-uv").touch()
    assert checkout.setup().returncode != 0
    (checkout.folder / "break-uv").unlink()
    (checkout.folder / ".venv" / "rubbish").touch()
    checkout.calls()
    assert checkout.setup().returncode == 0
    assert environment_built(checkout.calls())
    assert not (checkout.folder / ".venv" / "rubbish").exists()


@pytest.mark.parametrize("break_it", ["empty", "no python", "no settings", "python gone"])
def test_incomplete_environment_is_rebuilt(checkout: Checkout, break_it: str) -> None:
    if break_it == "empty":
        (checkout.folder / ".venv").mkdir()
    elif break_it == "no python":
        (checkout.folder / ".venv" / "bin").mkdir(parents=True)
        (checkout.folder / ".venv" / "bin" / "python").symlink_to("/nowhere/python")
    else:
        checkout.setup()
        (checkout.folder / ".venv" / ("pyvenv.cfg" if break_it == "no settings" else "bin/python")).unlink()
        checkout.calls()
    assert checkout.setup().returncode == 0
    assert environment_built(checkout.calls())


def test_moved_checkout_is_installed_again(checkout: Checkout) -> None:
    checkout.setup()
    checkout.calls()
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    assert checkout.setup().returncode == 0
    assert checkout.calls() == INSTALL


def test_broken_python_shims_are_skipped(checkout: Checkout) -> None:
    """A version manager may leave commands on PATH for versions that are not active."""
    checkout.program("python3", "#!/bin/sh\necho 'no version chosen' >&2\nexit 127\n")
    checkout.program("python3.12", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    assert checkout.setup().returncode == 0
    assert environment_built(checkout.calls())


def test_no_python(checkout: Checkout) -> None:
    checkout.program("python3", "#!/bin/sh\nexit 1\n")
    result = checkout.setup()
    assert result.returncode != 0
    assert "Python 3.11 to 3.14 is needed" in result.stderr
    assert checkout.calls() == []


def test_python_can_be_named(checkout: Checkout) -> None:
    result = checkout.setup(PYTHON="/nowhere/python3.11")
    assert result.returncode != 0
    assert "/nowhere/python3.11" in result.stderr


@pytest.mark.parametrize("has_pip", [True, False])
def test_uv_is_fetched_where_ensurepip_is_missing(checkout: Checkout, has_pip: bool) -> None:
    checkout.program("uv", "#!/bin/sh\necho 'uv: command not found' >&2\nexit 127\n")
    pip = 'mkdir -p .venv-uv/bin && cp "$0.uv" .venv-uv/bin/uv' if has_pip else "exit 1"
    (checkout.bin / "cp").symlink_to(shutil.which("cp") or "cp")
    checkout.program("python3.uv", UV)
    checkout.program(
        "python3",
        f"""#!/bin/sh
case "$*" in
    "-m venv "*) exit 1 ;;
    "-m pip --version") {"exit 0" if has_pip else "exit 1"} ;;
    "-m pip "*) echo "$@" >>pip.log; {pip} ;;
    *"print("*) echo "$0" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
""",
    )
    result = checkout.setup()
    if not has_pip:
        assert result.returncode != 0
        assert "Install uv, or pip" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    assert environment_built(checkout.calls())
    pip_call = (checkout.folder / "pip.log").read_text()
    assert "--require-hashes --target .venv-uv -r requirements-uv.txt" in pip_call
