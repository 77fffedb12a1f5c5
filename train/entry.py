"""How every command begins and ends: what is set before PyTorch is imported; errors as one line and an exit code.

Exit codes: 0 done, 2 the user can put it right, 128 + n ended by signal n. Needs nothing but the standard library.
"""

import argparse
import difflib
import multiprocessing
import os
import re
import select
import sys
import textwrap
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from train.disk import FULL
from train.errors import Aborted, UserError, message_of

# libgomp, the OpenMP of PyTorch's wheels for Linux, has its threads spin 300,000 turns before they sleep: on a shared
# machine they take each other's time. Of `python -m bench spin` on two cores, images/s alone and one of two: 204 and 37
# as it is, 197 and 84 with 10,000 turns, 177 and 107 with none.
SPIN = {"GOMP_SPINCOUNT": "10000"}
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")  # with one of them the user has chosen


PACKAGES = {"cv2": "opencv-python-headless", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}


class ShowDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Each option's help ends with its default, unless the help itself says what it is. Line breaks stay."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        listed = indent + 14 * " "  # of a list's line, "  name        words"
        return "\n".join(
            textwrap.fill(line, width, subsequent_indent=listed * (line[:1] == " ")) for line in text.split("\n")
        )

    def _get_help_string(self, action: argparse.Action) -> str | None:
        words = action.help or ""
        if action.default is None or "default:" in words or action.required:
            return words
        if isinstance(action.default, list):
            return f"{words} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


class SuggestingParser(argparse.ArgumentParser):
    """An option that does not exist is the first thing wrong with a command line; the nearest one is named."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        options = [name for action in self._actions for name in action.option_strings]
        for word in words:
            if word == "--":
                break
            name = word.split("=")[0]
            if not re.match(r"--[a-zA-Z]|-[a-zA-Z][\w-]", name) or name in options:
                continue
            if self.allow_abbrev and any(option.startswith(name) for option in options):
                continue
            self.error(f"unrecognized argument {word}{nearest('--' + name.lstrip('-').replace('_', '-'), options)}")
        return super().parse_args(words, namespace)


class Parser(SuggestingParser):
    """Raises UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def prepare_process() -> None:
    """Before PyTorch, NumPy's and matplotlib's imports."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show λ is shown \u03bb
            stream.reconfigure(errors="backslashreplace")
    os.environ["MPLBACKEND"] = "agg"  # commands write files; a notebook's backend, inherited, cannot be imported
    if not any(name in os.environ for name in WAITING):
        os.environ.update(SPIN)


def _open_closed_streams() -> None:
    """Lead streams that were closed (`>&-`, cron) to nowhere: else the next file opened takes the place of stdout."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8")
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8")


def exit_code(call: Callable[[], int | None]) -> int:
    """What `call` returns (None: 0), or the exit code of what ended it, after one message on stderr."""
    prepare_process()
    rank = os.environ.get("RANK", "0")
    try:
        try:
            return call() or 0
        finally:
            sys.stdout.flush()
    except UserError as error:
        return _report(f"error{f' (process {rank})' if rank != '0' else ''}: {message_of(error)}", 2)
    except Aborted as aborted:
        return _report("\ninterrupted before training began", 128 + aborted.number)
    except KeyboardInterrupt:
        return _report("\ninterrupted", 130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return 141
        if message := explain(error):
            return _report(f"error: {message}", 2)
        raise


def leave(code: int) -> NoReturn:
    """End the process; after a signal at once: Python's own end takes a second and more once PyTorch is imported."""
    if code > 128:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(code)
    sys.exit(code)


def _report(message: str, code: int) -> int:
    with suppress(OSError):  # its reader is gone
        print(message, file=sys.stderr)
    return code


def _stdout_is_closed() -> bool:
    """Whether stdout is a pipe that nobody reads any more, as after `| head`; if so, it is led to nowhere."""
    gone = False
    try:
        sys.stdout.flush()
        if hasattr(select, "poll"):  # unbuffered, there is nothing left to flush
            poll = select.poll()
            poll.register(sys.stdout.fileno(), 0)
            gone = bool(poll.poll(0))
    except BrokenPipeError:
        gone = True
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def extra_for(module: str) -> str:
    """The extra of pyproject.toml that installs the module; "" for none."""
    package = PACKAGES.get(root := module.split(".")[0], root)
    file = Path(__file__).parents[1] / "pyproject.toml"
    extras = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    names = {extra: {re.split(r"[<>=!; ]", package)[0] for package in packages} for extra, packages in extras.items()}
    return next((extra for extra in ("train", *names) if package.replace("_", "-") in names[extra]), "")


def explain(error: Exception) -> str:
    """What to do about an error that is the machine's; "" for any other."""
    text = " ".join(str(error).split())
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return f"{error.object!r} is no text in this locale: rename it, or run under a UTF-8 locale (LC_ALL=C.UTF-8)"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{FULL[error.errno]} ({error})"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if re.search(r"out of shared memory|Bus error|shared memory object|unable to \w+ (to )?file </torch_\d+", text):
        return (
            "/dev/shm is too small for the processes that load images: --workers 0, or enlarge it (docker run "
            "--shm-size 2g)"
        )
    if killed := re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)(?:.*by signal: (\w+))?", text):
        how = f"was killed ({killed[2]}); did the memory run out? Fewer --workers need less" if killed[2] else "ended"
        return f"a process that loads images (PID {killed[1]}) {how}"
    if isinstance(error, ModuleNotFoundError) and (extra := extra_for(error.name or "")):
        return (
            f"{error.name} is not installed: . .venv/bin/activate, the environment that make builds, has it; elsewhere "
            f"pip install -e '.[{extra}]'"
        )
    if re.search(r"No working C\+\+ compiler|InvalidCxxCompiler|Failed to find C compiler", text):
        return "--compile needs a C++ compiler: install g++ or clang++ (or name one by $CXX), or leave out --compile"
    if re.search(r"out of memory|can't allocate memory", text, re.IGNORECASE):
        return f"the memory ran out ({text[:200]}): a smaller --batch-size needs less, also with --virtual-batch"
    return ""
