"""`python -m train.data check`: what lies at a path, beside what should."""

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from train.data.base import FaceDataset, Finding, Found, Request
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


def inspect(found: Found, processes: int | None = None) -> tuple[list[Finding], dict[str, Any]]:
    """The findings on every image, and the figures on duplicates.

    Images are duplicates where they are equal as decoded, whatever their files' names and kinds.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    faults: list[str] = []
    for chunk, results in map_samples(found.whole, look, processes=processes):
        for index, (pixels, fault) in zip(chunk, results, strict=True):
            if pixels is None:
                faults.append(fault or "")
            else:
                groups[pixels].append(index)
    same = [np.array(members) for members in groups.values() if len(members) > 1]
    across = [members for members in same if len(set(found.part[members])) > 1]
    conflicting = [members for members in same if len(set(found.whole.labels[members])) > 1]
    figures = {
        "duplicate_groups": len(same),
        "images_in_them": int(sum(map(len, same))),
        "within_one_part": len(same) - len(across),
        "across_parts": len(across),
        "across": _across(found, across),
        "conflicting_labels": len(conflicting),
        "unreadable": len(faults),
    }
    counts = counts_by_part(found)
    findings = list(found.findings)
    if found.official and (words := verdict(counts, found.official, found.dataset, found.whole.class_names)):
        if words.startswith("does not"):
            findings.append(Finding("counts", words.splitlines()[0]))
        if hint := order_hint(counts, found.official, found.whole.class_names):
            findings.append(Finding("label order", hint))
    if faults:
        findings.append(Finding("unreadable", f"{len(faults):,} unreadable images", tuple(faults)))
    for kind, chosen, words in (
        (
            "duplicates across parts",
            across,
            "groups of equal images in more than one part, tested on what was seen before",
        ),
        ("conflicting labels", conflicting, "groups of equal images with different labels"),
        ("duplicates", [m for m in same if len(set(found.part[m])) == 1], "groups of equal images within one part"),
    ):
        if chosen:
            items = tuple(_group(found, members) for members in chosen)
            findings.append(Finding(kind, f"{len(chosen):,} {words}", items))
    return findings, figures


def _across(found: Found, groups: Sequence[np.ndarray]) -> dict[str, int]:
    """How many groups lie in each combination of parts."""
    together: dict[str, int] = defaultdict(int)
    for members in groups:
        parts = set(found.part[members].tolist())
        together[" + ".join(name for name in found.roles if name in parts)] += 1
    return dict(together)


def _group(found: Found, members: np.ndarray) -> str:
    """The images of a group, at least one of each part and label among those shown."""
    kinds = [(found.part[at], int(found.whole.labels[at])) for at in members]
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    order = [*first, *(place for place in range(len(members)) if place not in first)]
    shown = []
    for place in order[: max(3, len(first))]:
        name = found.whole.name(int(members[place])).removeprefix(f"{found.source}/")
        shown.append(f"{name} ({found.whole.class_names[kinds[place][1]]})")
    return " = ".join(shown) + (f" and {len(members) - len(shown)} more" if len(members) > len(shown) else "")


def check(data: str, request: Request, as_json: bool, every: bool) -> int:
    """Print what was found; 1 where there is a finding, else 0."""
    from train.data import SYNTHETIC, find_data

    if data == SYNTHETIC:
        raise UserError("drawn faces need no check; give a dataset's folder or file")
    found = find_data(data, request)
    if not len(found.whole):
        raise UserError(f"{data}: {found.layout} without an image")
    findings, figures = inspect(found)
    if as_json:
        names = found.whole.class_names
        content = {
            "layout": found.layout,
            "source": str(found.source),
            "fingerprint": found.whole.fingerprint,
            "class_names": list(names),
            "parts": {name: dict(zip(names, row, strict=True)) for name, row in counts_by_part(found).items()},
            "official": {name: dict(zip(names, row, strict=True)) for name, row in found.official.items()},
            "notes": list(found.notes),
            "figures": figures,
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(content, indent=2, ensure_ascii=True))
        return _status(found, findings)
    print(describe(found))
    print(f"fingerprint {found.whole.fingerprint}; {len(found.whole):,} images decoded")
    where = "".join(f"; {count:,} in {parts}" for parts, count in figures["across"].items())
    print(
        f"equal images: {figures['duplicate_groups']:,} groups with {figures['images_in_them']:,} images in them, "
        f"{figures['conflicting_labels']:,} with conflicting labels{where}"
    )
    if not findings:
        print("\nnothing found")
    for finding in findings:
        print(f"\n{finding.kind}: {finding.message}")
        shown = finding.items if every else finding.items[:SHOWN]
        for item in shown:
            print(f"  {item}")
        if len(shown) < len(finding.items):
            print(f"  and {len(finding.items) - len(shown):,} more (--all lists them)")
    return _status(found, findings)


def _status(found: Found, findings: Sequence[Finding]) -> int:
    """The exit status, its reason on stderr: the report itself may be piped elsewhere."""
    if findings:
        parts = ", ".join(f"{name} {sum(row):,}" for name, row in counts_by_part(found).items())
        kinds = ", ".join(dict.fromkeys(finding.kind for finding in findings))
        print(f"{found.layout}, images: {parts}; to look at: {kinds}", file=sys.stderr)
    return int(bool(findings))
