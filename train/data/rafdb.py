"""RAF-DB's basic set: as its authors give it (EmoLabel/, Image/), and as DATASET/train/<1-7>/ on the web."""

from collections.abc import Mapping
from pathlib import Path

from train.data.base import Finding, Layout, LoadedDataset, Request
from train.data.files import File, ImageCollection, has_images, ignored, list_images, subfolders, summarize_names
from train.data.labels import CLASS_NAMES, RAF_CODES
from train.data.splitting import default_roles
from train.data.tables import read_table, read_text
from train.errors import UserError

LABEL_FILE = Path("EmoLabel") / "list_patition_label.txt"  # the misspelling is theirs
OFFICIAL_COUNTS: Mapping[str, tuple[int, ...]] = {
    # in the order of CLASS_NAMES
    "train": (2524, 4772, 1982, 1290, 281, 717, 705),
    "test": (680, 1185, 478, 329, 74, 160, 162),
}
CODES = range(1, len(RAF_CODES) + 1)
COMPOUND = (
    "this is RAF-DB's compound set, of 11 mixed expressions such as happily surprised. What is trained on here is the "
    "basic set, labels 1 to 7, which comes in a folder of its own (basic/)"
)


def is_original(path: Path) -> bool:
    return (path / LABEL_FILE).is_file()


def load_original(path: Path, request: Request) -> LoadedDataset:
    """Aligned faces where there are any, else the original pictures, cropped by their boxes."""
    table = path / LABEL_FILE
    entries: list[tuple[str, int]] = []
    for number, line in enumerate(read_text(table).splitlines(), start=1):
        if not (words := line.split()):
            continue
        if len(words) != 2 or not words[1].isdecimal():
            raise UserError(f"{table}, line {number}: expected an image's name and a label, got {line[:60]!r}")
        entries.append((words[0], int(words[1])))
    if any(label > max(CODES) for _, label in entries):
        raise UserError(f"{table} has labels up to {max(label for _, label in entries)}: {COMPOUND}")
    for number, (name, label) in enumerate(entries, start=1):
        if label not in CODES or name.split("_")[0] not in OFFICIAL_COUNTS:
            raise UserError(
                f"{table}, entry {number}: expected train_… or test_… and a label of 1 to 7, got {name} {label}"
            )

    image = path / "Image"
    aligned = has_images(image / "aligned")
    if not aligned and not has_images(image / "original"):
        raise UserError(f"{path}: RAF-DB's labels without pictures (looked for Image/aligned/ and Image/original/)")
    folder = "aligned" if aligned else "original"
    by_name = {file.name.rsplit("/", 1)[-1]: file for file in list_images(path, "Image", folder).images}
    samples = ImageCollection()
    for name, label in entries:
        stem, dot, suffix = name.rpartition(".")
        expected = f"{stem}_aligned{dot}{suffix}" if aligned else name
        if file := by_name.get(expected):
            box = None if aligned else _box(path / "boundingbox", file)
            samples.add(file, RAF_CODES[label - 1], name.split("_")[0], box)
        else:
            samples.missing.append(f"Image/{folder}/{expected}")
    notes = (f"faces: {'aligned by the authors' if aligned else 'original pictures, cropped by boundingbox/'}",)
    findings = samples.missing_finding(f"in {LABEL_FILE.name}, but not there")
    return _build_dataset(path, "RAF-DB basic", samples, path, notes, findings)


def _box(folder: Path, image: File) -> list[int]:
    file = folder / f"{Path(image.name).stem}_boundingbox.txt"
    try:
        corners = [float(word) for word in read_text(file).split()]
        if len(corners) != 4:
            raise ValueError
    except OSError as error:
        raise UserError(f"{image.name} has no box of its face: {file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file}: expected four numbers, x0 y0 x1 y1") from error
    return [round(corner) for corner in corners]


def _numbered(path: Path) -> Path | None:
    """The folder whose train/ and test/ hold RAF-DB's numbered classes: `path`, or DATASET/ in it."""
    for root in (path, path / "DATASET"):
        if all(_codes(root / part) >= {"1", "2", "3", "4", "5", "6", "7"} for part in OFFICIAL_COUNTS):
            first = list_images(root, "train", "1").images
            if first and all(Path(file.name).name.startswith("train_") for file in first[:20]):
                return root
    return None


def _codes(part: Path) -> set[str]:
    return {folder.name for folder in subfolders(part)}


def load_numbered(path: Path, request: Request) -> LoadedDataset:
    root = _numbered(path)
    assert root is not None
    samples = ImageCollection()
    for part in OFFICIAL_COUNTS:
        if extra := sorted(_codes(root / part) - {str(code) for code in CODES}):
            if all(name.isdecimal() for name in extra):
                raise UserError(f"{root / part} has classes up to {max(map(int, extra))}: {COMPOUND}")
            raise UserError(f"{root / part / extra[0]}: RAF-DB's classes are 1 to 7")
        for code in CODES:
            samples.add_folder(list_images(root, part, str(code)), RAF_CODES[code - 1], part)
    findings = _against_tables(path, root, samples)
    return _build_dataset(path, "RAF-DB basic, numbered folders", samples, root, ignored(samples.others), findings)


def _against_tables(path: Path, root: Path, samples: ImageCollection) -> tuple[Finding, ...]:
    """Where train_labels.csv and test_labels.csv (image,label) lie beside the folders: the images they contradict."""
    codes: dict[str, str] = {}
    for part in OFFICIAL_COUNTS:
        for folder in dict.fromkeys((path, root, root.parent)):
            table = folder / f"{part}_labels.csv"
            if table.is_file():
                codes |= {row["image"]: row["label"] for _, row in read_table(table, ("image", "label"))}
                break
    wrong = tuple(
        file.name
        for file, label in zip(samples.files, samples.labels, strict=True)
        if (code := codes.get(Path(file.name).name)) is not None and code != str(RAF_CODES.index(label) + 1)
    )
    message = f"{summarize_names(wrong)} in another class's folder than the tables of labels say; the folders are used"
    return (Finding("conflicting tables", message, wrong),) if wrong else ()


def _build_dataset(
    path: Path,
    layout: str,
    samples: ImageCollection,
    root: Path,
    notes: tuple[str, ...],
    findings: tuple[Finding, ...],
) -> LoadedDataset:
    whole, roles = samples.dataset(root, CLASS_NAMES), default_roles(samples.parts)
    return LoadedDataset(layout, path, whole, samples.part(), roles, "RAF-DB basic", OFFICIAL_COUNTS, notes, findings)


LAYOUTS = (
    Layout("RAF-DB basic", "EmoLabel/list_patition_label.txt with Image/ (RAF-DB, basic)", is_original, load_original),
    Layout(
        "RAF-DB basic, numbered folders",
        "train/<1-7>/train_…_aligned.jpg and test/<1-7>/, or both in DATASET/ (RAF-DB, basic)",
        _numbered,
        load_numbered,
    ),
)
