"""From a loaded dataset to three splits, with a report of the counts beside the official ones."""

from collections.abc import Mapping, Sequence

import numpy as np

from train.data.base import SPLITS, LoadedDataset, Request, Splits, Subset, count_table, printable, stratified_sample
from train.errors import UserError

Counts = Mapping[str, tuple[int, ...]]


def counts_by_part(dataset: LoadedDataset) -> dict[str, tuple[int, ...]]:
    classes = len(dataset.whole.class_names)
    return {
        name: tuple(np.bincount(dataset.whole.labels[dataset.part == name], minlength=classes).tolist())
        for name in dataset.roles
    }


def describe(dataset: LoadedDataset) -> str:
    """The layout, counts per class and part beside the official ones, and whether they agree."""
    counts = counts_by_part(dataset)
    rows: list[tuple[str, tuple[int, ...]]] = []
    for name in dict.fromkeys((*dataset.official, *counts)):
        rows += [(name, counts[name])] if name in counts else []
        rows += [("official", dataset.official[name])] if name in dataset.official else []
    lines = [f"{dataset.layout} at {printable(str(dataset.source))}", count_table(dataset.whole.class_names, rows)]
    if dataset.official:
        lines.append(verdict(counts, dataset.official, dataset.dataset, dataset.whole.class_names))
    return "\n".join([*lines, *dataset.notes, *(finding.message for finding in dataset.findings)])


def verdict(counts: Counts, official: Counts, dataset: str, class_names: Sequence[str]) -> str:
    """Whether counts per class and part are the official ones, and if not, where they differ."""
    if dict(counts) == dict(official):
        return f"matches {dataset}, official split"
    differences = []
    for name in dict.fromkeys((*official, *counts)):
        counted, published = counts.get(name, ()), official.get(name, ())
        if sum(counted) != sum(published):
            differences.append(f"{name} has {sum(counted):,} images (official {sum(published):,})")
        elif counted != published:
            differences.append(f"{name} has other counts per class")
    hint = order_hint(counts, official, class_names)
    return f"does not match {dataset}, official split: " + ", ".join(differences) + (f"\n{hint}" if hint else "")


def order_hint(counts: Counts, official: Counts, class_names: Sequence[str]) -> str:
    """What to say where the official counts are all there, but under other classes' names; else nothing."""
    for name, published in official.items():
        counted = counts.get(name, ())
        if counted != published and sorted(counted) == sorted(published) and len(set(published)) == len(published):
            moved = [
                f"{class_names[at]} has the count of {class_names[published.index(count)]}"
                for at, count in enumerate(counted)
                if published.index(count) != at
            ]
            return f"the labels look like another order of the classes: in {name}, {', '.join(moved)}"
    return ""


def make_splits(dataset: LoadedDataset, request: Request) -> Splits:
    """The three splits, each part in its role; what has no part of its own is held out of the training images.

    The checkpoint is chosen on the validation split, so it never overlaps the test split.
    """
    whole, layout = dataset.whole, dataset.layout
    if request.protocol != "official" and dataset.dataset != "FER-2013":
        raise UserError(f"--protocol {request.protocol} is for FER-2013; {layout} has splits of its own")
    if request.classes and request.classes != len(whole.class_names):
        names = ", ".join(whole.class_names)
        raise UserError(f"--classes {request.classes}: {layout} has {len(whole.class_names)} ({names})")
    parts = {role: [name for name, has in dataset.roles.items() if has == role] for role in SPLITS}
    indices = {role: np.flatnonzero(np.isin(dataset.part, names)) for role, names in parts.items()}
    use = {role: " + ".join(names) for role, names in parts.items()}
    held_out = []
    for role in ("test", "validation"):
        if parts[role]:
            continue
        chosen = stratified_sample(whole.labels[indices["train"]], request.validation_fraction, request.seed)
        indices[role], indices["train"] = indices["train"][chosen], np.delete(indices["train"], chosen)
        held_out.append(role)
        of = use["train"] if role == "test" or len(held_out) == 1 else "the rest"
        use[role] = f"{request.validation_fraction:.0%} of {of} (stratified, seed {request.seed})"
    use["train"] += f" without {' and '.join(reversed(held_out))}" if held_out else ""
    for role, members in indices.items():
        if not len(members):
            raise UserError(f"{dataset.source}: {layout} without a {'training' if role == 'train' else role} image")
    train, validation, test = (Subset(whole, indices[role].astype(np.int64), role) for role in SPLITS)
    roles = ", ".join(f"{role} = {use[role]}" for role in SPLITS)
    return Splits(train, validation, test, layout, f"{describe(dataset)}\n{roles}")


def default_roles(parts: Sequence[str]) -> dict[str, str]:
    """The roles of parts called "train", "validation" and "test": of the last two, one alone serves for testing."""
    roles = {name: name for name in SPLITS if name in parts}
    if set(roles) == {"train", "validation"}:
        roles["validation"] = "test"
    return roles
