"""The checkout is consistent: versions, licenses, requirements, and no paths of a developer's machine."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = [f"requirements{name}.txt" for name in ("", "-oldest", "-docs", "-uv")]
# Written so that this file does not match itself.
REGISTRIES = (
    r"py[p]i\.org|pythonhosted[.]org|download\.py[t]orch\.org|anac[o]nda\.org|[-]-(extra-)?index-url|[-]-find-links"
)
MACHINE_PATHS = r"(?<![\w.$}])/(home|root|work|Users|mnt)/[\w.-]"


def version() -> str:
    text = (ROOT / "adcorre" / "_version.py").read_text()
    return re.fullmatch(r'(?s).*__version__ = "(\d+\.\d+\.\d+\w*)"\n', text)[1]


def tracked() -> list[Path]:
    result = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if result.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_version_is_the_same_everywhere() -> None:
    import adcorre

    assert adcorre.__version__ == version()
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"(?m)^version: (.+)$", citation) == [version()]
    released = re.findall(r"(?m)^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text())
    assert released[0] == version()


def test_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text()
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty" in text


def test_kernels_is_no_package() -> None:
    """A wheel with a top-level `kernels` would overwrite another project's."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_lower_layers_do_not_import_upper_ones() -> None:
    above = {"adcorre": ["train", "bench"], "kernels/adcorre_kernels": ["adcorre", "train", "bench"]}
    for folder, names in above.items():
        pattern = re.compile(rf"(?m)^\s*(?:import|from)\s+(?:{'|'.join(names)})\b")
        for file in (ROOT / folder).rglob("*.py"):
            assert not pattern.search(file.read_text()), file


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements_are_exact_and_hashed(name: str) -> None:
    entries = (ROOT / name).read_text().replace("\\\n", " ").splitlines()
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==[\w.!+]+( ; .+?)? +(--hash=sha256:[0-9a-f]{64} *)+$", entry), entry


def test_requirements_hold_what_pyproject_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    expected = {
        "requirements.txt": [project["dependencies"], extras["train"], extras["bench"], extras["dev"]],
        "requirements-oldest.txt": [project["dependencies"], extras["train"], extras["dev"]],
        "requirements-docs.txt": [extras["docs"]],  # without PyTorch: the site does not import adcorre
    }
    for name, groups in expected.items():
        pinned = set(re.findall(r"(?m)^([a-z0-9-]+)==", (ROOT / name).read_text()))
        needed = [need for group in groups for need in group]
        assert {re.match(r"[\w-]+", need)[0] for need in needed} <= pinned


def test_oldest_is_what_pyproject_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "requirements-oldest.txt").read_text()
    for need in [*project["dependencies"], *project["optional-dependencies"]["train"]]:
        name, lowest = re.match(r"([\w-]+)>=([\d.]+)", need).groups()
        pins = re.findall(rf"(?m)^{name}==([\d.]+)", text)
        assert any(pin == lowest or pin.startswith(lowest + ".") for pin in pins), (need, pins)


def test_no_registry_and_no_path_of_one_machine() -> None:
    pattern = re.compile(f"{REGISTRIES}|{MACHINE_PATHS}")
    matches = []
    for file in tracked():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        matches += [f"{file.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert matches == []


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("https://py" + "pi.org/simple", True),
        ("see /ho" + "me/someone/adcorre", True),
        ("--index" + "-url x", True),
        ("tests/work/file and $HOME/work/file and /usr/bin", False),
    ],
)
def test_the_patterns_of_registries_and_paths_match(text: str, matches: bool) -> None:
    assert bool(re.search(f"{REGISTRIES}|{MACHINE_PATHS}", text)) == matches


def test_scripts_are_executable() -> None:
    for name in ("run", "setup"):
        assert os.access(ROOT / ".ci" / name, os.X_OK)


def test_this_python_is_supported() -> None:
    assert sys.version_info >= (3, 11)
