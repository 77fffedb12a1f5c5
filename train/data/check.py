"""`python -m train.data check`: which dataset is at a path, and what is wrong with it."""

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from train.data.base import FaceDataset, Finding, LoadedDataset, Request
from train.data.splitting import counts_by_part, describe, order_hint, verdict
from train.data.store import map_samples
from train.errors import UserError

SHOWN = 10  # of the groups or files of one finding


def look(faces: FaceDataset, index: int) -> tuple[bytes | None, str | None]:
    """(hash of the decoded pixels, None), or (None, why it cannot be read)."""
    try:
        image = faces.image(index)
    except UserError as error:
        return None, str(error)
    return hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest(), None


def inspect(dataset: LoadedDataset, processes: int | None = None) -> tuple[list[Finding], dict[str, Any]]:
    """The findings on every image, and the figures on duplicates.

    Images are duplicates if their decoded pixels are equal; file names and formats do not matter.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    faults: list[str] = []
    for chunk, results in map_samples(dataset.whole, look, processes=processes):
        for index, (pixels, fault) in zip(chunk, results, strict=True):
            if pixels is None:
                faults.append(fault or "")
            else:
                groups[pixels].append(index)
    same = [np.array(members) for members in groups.values() if len(members) > 1]
    across = [members for members in same if len(set(dataset.part[members])) > 1]
    conflicting = [members for members in same if len(set(dataset.whole.labels[members])) > 1]
    figures = {
        "duplicate_groups": len(same),
        "images_in_them": int(sum(map(len, same))),
        "within_one_part": len(same) - len(across),
        "across_parts": len(across),
        "across": _across(dataset, across),
        "conflicting_labels": len(conflicting),
        "unreadable": len(faults),
    }
    counts = counts_by_part(dataset)
    findings = list(dataset.findings)
    if dataset.official and (words := verdict(counts, dataset.official, dataset.dataset, dataset.whole.class_names)):
        if words.startswith("does not"):
            findings.append(Finding("counts", words.splitlines()[0]))
        if hint := order_hint(counts, dataset.official, dataset.whole.class_names):
            findings.append(Finding("label order", hint))
    if faults:
        findings.append(Finding("unreadable", f"{len(faults):,} unreadable images", tuple(faults)))
    within = [members for members in same if len(set(dataset.part[members])) == 1]
    tested = "groups of equal images in more than one part, tested on what was seen before"
    for kind, chosen, words in (
        ("duplicates across parts", across, tested),
        ("conflicting labels", conflicting, "groups of equal images with different labels"),
        ("duplicates", within, "groups of equal images within one part"),
    ):
        if chosen:
            items = tuple(_group(dataset, members) for members in chosen)
            findings.append(Finding(kind, f"{len(chosen):,} {words}", items))
    return findings, figures


def _across(dataset: LoadedDataset, groups: Sequence[np.ndarray]) -> dict[str, int]:
    """How many groups lie in each combination of parts."""
    together = (set(dataset.part[members].tolist()) for members in groups)
    return dict(Counter(" + ".join(name for name in dataset.roles if name in parts) for parts in together))


def _group(dataset: LoadedDataset, members: np.ndarray) -> str:
    """The images of a group, at least one of each part and label among those shown."""
    kinds = [(dataset.part[at], int(dataset.whole.labels[at])) for at in members]
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    order = [*first, *(place for place in range(len(members)) if place not in first)]
    shown = []
    for place in order[: max(3, len(first))]:
        name = dataset.whole.name(int(members[place])).removeprefix(f"{dataset.source}/")
        shown.append(f"{name} ({dataset.whole.class_names[kinds[place][1]]})")
    return " = ".join(shown) + (f" and {len(members) - len(shown)} more" if len(members) > len(shown) else "")


def check(data: str, *, as_json: bool, every: bool, **options: Any) -> int:
    """Print the findings; `options` are fields of the request. Returns 1 if there are any, else 0."""
    from train.data import SYNTHETIC, find_data

    if data == SYNTHETIC:
        raise UserError("drawn faces need no check; give a dataset's folder or file")
    dataset = find_data(data, Request.of(options))
    if not len(dataset.whole):
        raise UserError(f"{data}: {dataset.layout} without an image")
    findings, figures = inspect(dataset)
    if as_json:
        names = dataset.whole.class_names
        content = {
            "layout": dataset.layout,
            "source": str(dataset.source),
            "fingerprint": dataset.whole.fingerprint,
            "class_names": list(names),
            "parts": {name: dict(zip(names, row, strict=True)) for name, row in counts_by_part(dataset).items()},
            "official": {name: dict(zip(names, row, strict=True)) for name, row in dataset.official.items()},
            "notes": list(dataset.notes),
            "figures": figures,
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(content, indent=2, ensure_ascii=True))
        return _status(dataset, findings)
    print(describe(dataset))
    print(f"fingerprint {dataset.whole.fingerprint}; {len(dataset.whole):,} images decoded")
    where = "".join(f"; {count:,} in {parts}" for parts, count in figures["across"].items())
    print(
        f"equal images: {figures['duplicate_groups']:,} groups with {figures['images_in_them']:,} images in them, "
        f"{figures['conflicting_labels']:,} with conflicting labels{where}"
    )
    if not findings:
        print("\nno problem found")
    for finding in findings:
        print(f"\n{finding.kind}: {finding.message}")
        shown = finding.items if every else finding.items[:SHOWN]
        for item in shown:
            print(f"  {item}")
        if len(shown) < len(finding.items):
            print(f"  and {len(finding.items) - len(shown):,} more (--all lists them)")
    return _status(dataset, findings)


def _status(dataset: LoadedDataset, findings: Sequence[Finding]) -> int:
    """The exit status, its reason on stderr: the report itself may be piped elsewhere."""
    if findings:
        parts = ", ".join(f"{name} {sum(row):,}" for name, row in counts_by_part(dataset).items())
        kinds = ", ".join(dict.fromkeys(finding.kind for finding in findings))
        print(f"{dataset.layout}, images: {parts}; to look at: {kinds}", file=sys.stderr)
    return int(bool(findings))
