"""The contents of wheel and sdist. Both are built without network from a clean copy."""

import shutil
import zipfile
from pathlib import Path

import pytest

PACKAGES = {"adcorre", "adcorre_kernels"}


def build(run, kind: str, source: Path, out: Path) -> Path:
    """`kind` is "wheel" or "sdist"; the one file that came out."""
    result = run("python", "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, source, cwd=out.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = out.iterdir()
    return file


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, the folders that must not be shipped included."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    copy.mkdir()
    for folder in ("adcorre", "kernels", "train", "bench", "tests"):
        if (root / folder).is_dir():
            shutil.copytree(root / folder, copy / folder, ignore=leave)
    for file in root.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(run, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(run, "wheel", source, tmp_path_factory.mktemp("wheel") / "dist")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, which for a pure Python package is what installing does."""
    assert wheel.name.endswith("-py3-none-any.whl")
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_top_level_names(wheel: Path) -> None:
    top = {name.split("/")[0] for name in content(wheel)}
    info = {name for name in top if name.endswith(".dist-info")}
    assert len(info) == 1
    assert top - info == PACKAGES


def test_every_module_is_in_the_wheel(wheel: Path, source: Path) -> None:
    expected = {
        path.relative_to(parent).as_posix()
        for parent, package in ((source, "adcorre"), (source / "kernels", "adcorre_kernels"))
        for path in (parent / package).rglob("*")
        if path.is_file()
    }
    shipped = {name for name in content(wheel) if ".dist-info/" not in name}
    assert shipped == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= shipped


def test_licence_is_in_the_wheel(wheel: Path, root: Path) -> None:
    files = content(wheel)
    (name,) = (name for name in files if name.endswith(".dist-info/licenses/LICENSE"))
    assert files[name] == (root / "LICENSE").read_bytes()
    assert b"License-Expression: Apache-2.0" in files[name.replace("licenses/LICENSE", "METADATA")]


def test_installed_wheel_imports(run, installed: Path) -> None:
    code = (
        "import adcorre, adcorre_kernels, importlib.metadata as m\n"
        "print(adcorre.__file__, adcorre_kernels.__file__, adcorre.__version__ == m.version('adcorre'), sep='\\n')"
    )
    result = run("python", "-c", code, cwd=installed, PYTHONPATH=str(installed))
    assert result.returncode == 0, result.stderr
    loss, kernels, same_version = result.stdout.splitlines()
    assert Path(loss).is_relative_to(installed)
    assert Path(kernels).is_relative_to(installed)
    assert same_version == "True"


def test_wheel_of_the_sdist_is_the_same(run, source: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build(run, "sdist", source, tmp_path / "sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = content(build(run, "wheel", unpacked, tmp_path / "again"))
    first = content(wheel)
    assert again.keys() == first.keys()
    assert [name for name in first if again[name] != first[name]] == []
