"""The sentences of the README about speed, from the rows of the benchmarks: good or bad, with their conditions."""

from __future__ import annotations

import textwrap

from bench import measure

LIBRARY = ("supcon", "multi-similarity", "circle", "triplet", "triplet-hard")
Cases = dict[tuple[str, int], dict[str, str]]


def claims(gpu: bool) -> str:
    """One list entry for each thing that there are rows of, from the newest device of that kind."""
    found = []
    for file, parts, key, words in (
        ("loss.csv", ("n",), ("contender", "n"), _loss),
        ("step.csv", ("loss", "levers"), ("contender", "image_size", "batch"), _step),
        ("gpu.csv", ("bandwidth", "latency"), ("case", "n", "dtype", "metric"), _kernels),
        ("gpu.csv", ("pairs-rate", "pairs-rivals", "pairs-memory"), ("case", "n", "dtype", "metric"), _pairs),
    ):
        devices = measure.newest(file, parts, gpu, key)
        if devices:
            found += words(max(devices.values(), key=lambda rows: max(row["date"] for row in rows)))
    found = [
        textwrap.fill(entry, 118, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for entry in found
    ]
    return "\n".join(found) or ("- On a GPU: not measured yet." if gpu else "- Not measured yet.")


def _loss(rows: measure.Rows) -> list[str]:
    cases: Cases = {(row["contender"], int(row["n"])): row for row in rows if row["seconds"]}
    own = "triton" if any(name == "triton" for name, _ in cases) else "torch"
    words = []
    for n in (600, 4096):
        here = cases.get((own, n))
        if here is None or ("reference", n) not in cases:
            continue
        rivals = [cases[name, n] for name in LIBRARY if (name, n) in cases]
        slower = sorted(float(row["times_slower"]) for row in rivals)
        said = f"n = {n:,} takes {1e3 * float(here['seconds']):.3g} ms, and "
        said += f"{float(cases['reference', n]['times_slower']):.3g} times as long with the n x n reference"
        if slower:
            said += f", {slower[0]:.3g} to {slower[-1]:.3g} times with pytorch-metric-learning's {_names(rivals)}"
        if compiled := cases.get(("factored-compiled", n)):
            said += f", {float(compiled['times_slower']):.2g} times with the linear form as whole tensors, compiled"
        words.append(said)
    sizes = sorted(n for name, n in cases if name == own)
    if len(sizes) > 1:
        last = cases[own, sizes[-1]]
        per_sample = {n: float(cases[own, n]["seconds"]) / n for n in sizes}
        said = f"n = {sizes[-1]:,} takes {1e6 * per_sample[sizes[-1]]:.3g} µs a sample"
        if 16384 in per_sample:
            said += f" ({per_sample[sizes[-1]] / per_sample[16384]:.2f} times that at 16,384)"
        said += f", {100 * float(last['copy_share']):.3g} % of a copy's bandwidth on the least possible traffic"
        words.append(f"{said}, with {float(last['peak_extra_mib']):.3g} MiB beyond x and dL/dx")
    if not words:
        return []
    return [f"- **The loss** (`{own}`, {_where(rows)}, float32, k = 7, d = 256, C = 7, forward + backward, medians): "
            + "; ".join(words) + "."]  # fmt: skip


def _step(rows: measure.Rows) -> list[str]:
    found = []
    for size in sorted({int(row["image_size"]) for row in rows}):
        own = [row for row in rows if int(row["image_size"]) == size and row["seconds"]]
        own = [row for row in own if row["batch"] == own[0]["batch"]]
        words = []
        costs = {row["contender"]: float(row["loss_share"]) for row in own if row["loss_share"]}
        name = "triton" if "triton" in costs else "torch"
        if name in costs:
            words.append(f"beyond cross-entropy the loss (`{name}`) is {100 * costs[name]:.2g} % of it")
        levers = {row["contender"]: float(row["ratio"]) for row in own if row["part"] == "levers"}
        if best := [word for word in ("all", "all but compile") if word in levers]:
            together = "all levers" if best[0] == "all" else "all levers but torch.compile"
            words.append(f"with {together} it is {levers[best[0]]:.2f} times as fast as one of timm's own pieces")
        if words:
            where = f"{own[-1]['backbone']}, {size} px, batches of {own[-1]['batch']}, {_where(own)}"
            found.append(f"- **A training step** ({where}): {'; '.join(words)}.")
    return found


def _kernels(rows: measure.Rows) -> list[str]:
    """Of `python -m bench gpu`, whose rows are of the kernels alone."""
    figures = {(row["case"], int(row["n"]), row["dtype"], row["metric"]): float(row["value"]) for row in rows}
    words = []
    for n in (65536, 1048576):
        shares = [
            f"{100 * share:.0f} % ({dtype})"
            for dtype in ("float32", "bfloat16")
            if (share := figures.get(("forward + backward", n, dtype, "share of a copy's bandwidth")))
        ]
        if shares:
            words.append(f"n = {n:,} at {' and '.join(shares)} of a copy's bandwidth on the least possible traffic")
    for n in (60, 600):
        case = ("terms", n, "float32")
        slower = figures.get((*case, "times faster than reference"))
        compiled = figures.get((*case, "times faster than torch compiled"))
        time = figures.get(("terms, triton", n, "float32", "time"))
        graph = figures.get(("terms, triton, graph replay", n, "float32", "time"))
        if time and graph and slower and compiled:
            said = f"n = {n} in {1e3 * time:.2g} ms, {slower:.2g} times as fast as the eager n x n reference and "
            said += f"{compiled:.2g} times as fast as the linear form under torch.compile"
            words.append(f"{said}; replayed as a CUDA graph in {1e6 * graph:.2g} µs")
    if not words:
        return []
    return [f"- **The kernels** (`python -m bench gpu`, {_where(rows)}, commit {rows[-1]['commit']}, k = 7, d = 256, "
            + "C = 7, forward + backward): " + "; ".join(words) + "."]  # fmt: skip


def _pairs(rows: measure.Rows) -> list[str]:
    """The same for FD over all pairs of samples, in bfloat16."""
    figures = {
        (row["case"], int(row["n"]), row["metric"]): float(row["value"])
        for row in rows
        if row["dtype"] == "bfloat16" and row["value"] not in ("True", "False")
    }
    words = []
    for n in (16384, 65536):
        if share := figures.get(("pairs, medium", n, "share of a product's rate")):
            words.append(f"n = {n:,} forward at {100 * share:.0f} % of a matrix product's rate, by the count 2 k n² d")
    for n in (4096, 16384):
        if ratio := figures.get(("pairs, forward + backward", n, "times faster than reference")):
            words.append(f"n = {n:,} forward + backward {ratio:.2g} times as fast as the eager n x n reference")
    case = ("pairs, medium", 131072, "peak beyond inputs and dL/dx")
    time = figures.get(("pairs, medium, forward + backward", 131072, "time"))
    if time and case in figures:
        words.append(f"n = 131,072 in {time:.2g} s with {figures[case] / 1024:.2g} GiB beyond x and dL/dx")
    if not words:
        return []
    return [f"- **All pairs of samples** (`pairs=\"sample\"`, {_where(rows)}, commit {rows[-1]['commit']}, bfloat16, "
            + '`precision="medium"`): ' + "; ".join(words) + "."]  # fmt: skip


def _names(rows: measure.Rows) -> str:
    names = [row["contender"] for row in rows]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _where(rows: measure.Rows) -> str:
    last = max(rows, key=lambda row: row["date"])
    return last["device"] if last["driver"] else f"{last['device']}, {last['threads']} threads"
