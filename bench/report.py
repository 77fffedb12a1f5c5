"""`python -m bench report`: the rows of bench/results as tables in README.md and docs/benchmarks.md, and as pictures.

Tables stand between a line `<!-- bench: NAME -->` and a line `<!-- /bench -->`; what is between them is replaced. All
figures of a table's row are of one run: the same machine, commit, versions and session. Of several runs a row shows the
one that has most of its figures, and of these the newest. A figure that this run lacks is left empty, and the report
prints the command that measures the whole row. With --check nothing is written: exit status 1 if a text would change.
"""

from __future__ import annotations

import importlib.util
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench import rows
from bench.metric import STEPS
from bench.pictures import draw
from bench.rivals import CONTENDERS, OURS, ours_on
from bench.rows import Rows
from train.retrieval import METRICS

TEXTS = (rows.ROOT / "README.md", rows.ROOT / "docs" / "benchmarks.md", rows.ROOT / "docs" / "metric-learning.md")
PICTURES = rows.ROOT / "docs"
Cells = dict[tuple[str, ...], dict[str, str]]
Table = tuple[list[str], list[list[str]]]
WHERE = ["device", "commit"]
# README's columns: what is shown of several is the first that was measured.
SHORT = {
    "ours": tuple(name for name, contender in OURS.items() if contender.linear), "reference": ("reference",),
    "SupCon": ("supcon",), "Multi-Similarity": ("multi-similarity",),
}  # fmt: skip
SIZES = ("60", "600", "4096", "65536")


def seconds(text: str) -> str:
    value = float(text or "nan")
    return "" if value != value else f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def times(text: str) -> str:
    value = float(text or "nan")
    return "" if value != value else f"{value:,.0f}x" if value >= 100 else f"{value:.3g}x"


def number(text: str, digits: int = 2) -> str:
    return f"{float(text):,.{digits}f}" if text else ""


def percent(text: str, digits: int = 1) -> str:
    return f"{100 * float(text):.{digits}f} %" if text else ""


def run_of(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row.get(name, "") for name in (*rows.RUN, "session"))


def one_run(selected: Rows, line: Sequence[str], cell: Sequence[str] = ()) -> Iterator[tuple[dict[str, str], Cells]]:
    """For each line of a table, in order of first appearance: its newest row, and its cells, all of one run.

    A second measurement of a cell begins another run: rows from before there were sessions have no session id.
    """
    lines: dict[tuple[str, ...], dict[tuple[str, ...], list[Cells]]] = {}
    for row in selected:
        runs = lines.setdefault(tuple(row[name] for name in line), {}).setdefault(run_of(row), [{}])
        key = tuple(row[name] for name in cell)
        if key in runs[-1]:
            runs.append({})
        runs[-1][key] = row
    for by_run in lines.values():
        candidates = [
            (len(cells), max(cells.values(), key=lambda row: row["date"]), cells)
            for runs in by_run.values()
            for cells in runs
        ]
        _, newest, cells = max(reversed(candidates), key=lambda candidate: (candidate[0], candidate[1]["date"]))
        yield newest, cells


def where(row: dict[str, str]) -> list[str]:
    return [rows.processor_and_threads(row), row["commit"]]


def by_contender(
    every: Rows,
    key: Sequence[str],
    columns: Mapping[str, tuple[str, ...]],
    figures: Callable[[dict[str, str]], str],
    sizes: Sequence[str] = (),
) -> list[list[str]]:
    """A line for each n, or each of `sizes`. columns: title -> contenders, the first that was measured is shown.

    "wall": beyond what memory or time allowed at this or less n.
    """
    walls = [(run_of(row), row["contender"], int(row["n"])) for row in every if row["note"]]
    named = {name for names in columns.values() for name in names}
    selected = [row for row in every if row["contender"] in named and (not sizes or row["n"] in sizes)]
    lines = []
    for newest, cells in sorted(one_run(selected, key, ("contender",)), key=lambda pair: int(pair[0]["n"])):
        line = [f"{int(newest[name]):,}" for name in key]
        for names in columns.values():
            name = next((name for name in names if (name,) in cells), names[0])
            walled = any(run == run_of(newest) and name == other and n <= int(newest["n"]) for run, other, n in walls)
            line.append("wall" if walled else figures(cells[name,]) if (name,) in cells else "")
        lines.append([*line, *where(newest)])
    return lines


def time_and_ratio(row: dict[str, str]) -> str:
    """Time, and in brackets how many times ours."""
    return seconds(row["seconds"]) + (f" ({times(row['times_slower'])})" if row["times_slower"] else "")


def compare(columns: dict[str, tuple[str, ...]], sizes: Sequence[str], gpu: bool, every: Rows | None = None) -> Table:
    every = rows.select("loss.csv", ("n",), gpu) if every is None else every
    return ["n", *columns, *WHERE], by_contender(every, ("n",), columns, time_and_ratio, sizes)


def speed(_: bool) -> Table:
    """README's table: a CPU, then a GPU; for that the rows of `python -m bench gpu` serve too."""
    head, lines = compare(SHORT, SIZES, False)
    return head, [*lines, *(compare(SHORT, SIZES, True)[1] or compare(SHORT, SIZES, True, terms_of_gpu())[1])]


def terms_of_gpu() -> Rows:
    """The times in gpu.csv as rows of loss.csv."""
    contenders = {"terms, triton": "triton", BOTH: "triton", "terms, reference": "reference"}
    selected = [row for row in rows.select("gpu.csv", ("latency", "bandwidth"), True) if row["dtype"] == "float32"]
    ratios = [row for row in selected if (row["case"], row["metric"]) == ("terms", "times faster than reference")]
    slower = {(run_of(row), row["n"]): row["value"] for row in ratios}
    return [
        {
            **row,
            "contender": contenders[row["case"]],
            "seconds": row["value"],
            "times_slower": slower.get((run_of(row), row["n"]), "") if row["case"] == "terms, reference" else "",
            "note": "",
        }
        for row in selected
        if row["metric"] == "time" and row["case"] in contenders
    ]


def missing(gpu: bool) -> str:
    """The command that measures the rows of README's table that lack a figure; "" where none does."""
    lines = compare(SHORT, SIZES, gpu)[1]
    sizes = [line[0].replace(",", "") for line in lines if "" in line]
    if not sizes:
        return ""
    kind = "cuda" if gpu else "cpu"
    names = [ours_on(kind)[0], *(name for title, (name, *_) in SHORT.items() if title != "ours")]
    command = f"python -m bench loss --device {kind} --parts n --n {' '.join(sizes)} --contenders {' '.join(names)}"
    return f"README.md has no figure of one run for all of n = {', '.join(sizes)}; this measures them: {command}"


def lines_of(
    file: str,
    parts: Sequence[str],
    key: Sequence[str],
    head: list[str],
    line: Callable[[dict[str, str]], list[str]],
    gpu: bool,
) -> Table:
    """A line for each case and device, of its newest row."""
    selected = [row for row in rows.select(file, parts, gpu) if row["contender"] in OURS or file != "loss.csv"]
    newest = [row for row, _ in one_run(selected, ("part", "device", *key)) if row["seconds"] or row["note"]]
    return [*head, *WHERE], [[*line(row), *where(row)] for row in newest]


METRIC_LOSSES = {
    "metric": "AdCorreMetricLoss", "metric, simplex": "AdCorreMetricLoss, targets simplex", "supcon": "SupCon",
    "multi-similarity": "Multi-Similarity", "circle": "Circle", "triplet": "Triplet", "inf-cl": "inf-cl",
}  # fmt: skip


def metric_time(gpu: bool) -> Table:
    """Time and memory of metric losses by n."""
    every = rows.select("loss.csv", ("metric",), gpu)
    measured = {row["contender"] for row in every}
    columns = {title: (name,) for name, title in METRIC_LOSSES.items() if name in measured}
    lines = by_contender(every, ("n", "classes"), columns, time_and_memory)
    return ["n", "C", *columns, *WHERE], lines


def time_and_memory(row: dict[str, str]) -> str:
    return f"{seconds(row['seconds'])}, {number(row['peak_extra_mib'], 0)} MiB" if row["seconds"] else ""


def retrieval(gpu: bool) -> Table:
    """Retrieval on the test split after equal training: mean and standard deviation over seeds."""
    test_rows = [row for row in rows.select("metric.csv", tuple(STEPS), gpu) if row["split"] == "test"]
    lines = []
    for newest, cells in one_run(test_rows, ("part", "contender"), ("seed",)):
        line = [newest["part"], METRIC_LOSSES[newest["contender"]], newest["learning_rate"], str(len(cells))]
        for metric in METRICS:
            values = [100 * float(cell[metric]) for cell in cells.values()]
            line.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}")
        lines.append([*line, *where(newest)])
    return ["data", "loss", "learning rate", "runs", *(f"{words}, %" for words in METRICS.values()), *WHERE], lines


CASE = ("contender", "n", "k", "d", "classes", "dtype")
RATE = ["GB/s of the minimum traffic", "share of a copy's bandwidth"]
TRAFFIC = ["", "n", "forward", "backward", *RATE, "launches", "extra MiB"]


def traffic(row: dict[str, str]) -> list[str]:
    passes = [seconds(row["forward"]), seconds(row["backward"])]
    rates = [number(row["gb_per_s"]), percent(row["copy_share"])]
    return [f"`{row['contender']}`", f"{int(row['n']):,}", *passes, *rates, row["launches"], row["peak_extra_mib"]]


AXES = ["", "k", "d", "C", "dtype", "time", "GB/s of the minimum traffic", "extra MiB"]


def axes(row: dict[str, str]) -> list[str]:
    figures = [seconds(row["seconds"]) or "wall", number(row["gb_per_s"]), row["peak_extra_mib"]]
    return [f"`{row['contender']}`", row["k"], row["d"], row["classes"], row["dtype"], *figures]


STEP = ["part", "px", "batch", "step", "images/s", "speed", "share of the terms", "MiB"]


def step(row: dict[str, str]) -> list[str]:
    speed = f"{float(row['ratio']):.2f} x {row['against']}"
    case = [row["part"], row["image_size"], row["batch"], row["contender"]]
    return [*case, row["images_per_second"], speed, percent(row["loss_share"], 2), row["peak_extra_mib"]]


SCALE = ["grows", "n", "C", "b", "ranks", "time", "µs per sample", "slope", "extra MiB", "bytes all-reduced"]


def scale(row: dict[str, str]) -> list[str]:
    case = [row["part"], f"{int(row['n']):,}", row["classes"], row["virtual"], row["ranks"]]
    figures = [row["microseconds_per_sample"], row["slope"], row["peak_extra_mib"], row["bytes_on_the_wire"]]
    return [*case, seconds(row["seconds"]), *figures]


def steps(gpu: bool) -> Table:
    """README's table of training steps."""
    selected = rows.select("step.csv", ("loss", "levers"), gpu)
    lines = []
    for newest, cells in one_run(selected, ("image_size", "batch"), ("contender",)):
        share = next((cells[name,]["loss_share"] for name in OURS if (name,) in cells), "")
        ratios = [cells[name,]["ratio"] for name in ("all", "all but compile") if (name,) in cells]
        line = [newest["image_size"], newest["batch"], percent(share, 2), times(next(iter(ratios), ""))]
        lines.append([newest["backbone"], *line, *where(newest)])
    return ["backbone", "px", "batch", "share of the terms", "all speed options, against timm's step", *WHERE], lines


def figures_of_gpu(parts: Sequence[str], columns: dict[str, tuple[str, str, Callable[[str], str]]], gpu: bool) -> Table:
    """From `python -m bench gpu`, a line for each n and dtype. columns: title -> case, metric, how it is written."""
    named = [(case, metric) for case, metric, _ in columns.values()]
    selected = [row for row in rows.select("gpu.csv", parts, gpu) if (row["case"], row["metric"]) in named]
    lines = []
    for newest, cells in one_run(selected, ("n", "dtype"), ("case", "metric")):
        shown = [show(cells.get((case, metric), {}).get("value", "")) for case, metric, show in columns.values()]
        lines.append([f"{int(newest['n']):,}", newest["dtype"], *shown, *where(newest)])
    return ["n", "dtype", *columns, *WHERE], sorted(lines, key=lambda line: (line[1], int(line[0].replace(",", ""))))


BOTH = "forward + backward"
KERNELS: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "share of a copy's bandwidth": (BOTH, "share of a copy's bandwidth", partial(percent, digits=0)),
    "eager": ("terms, triton", "time", seconds),
    "CUDA graph": ("terms, triton, graph replay", "time", seconds),
    "faster than the reference": ("terms", "times faster than reference", times),
    "faster than torch.compile": ("terms", "times faster than torch compiled", times),
}
PAIRS: dict[str, tuple[str, str, Callable[[str], str]]] = {
    "forward, share of a product's rate": ("pairs, medium", "share of a product's rate", partial(percent, digits=0)),
    BOTH: (f"pairs, medium, {BOTH}", "time", seconds),
    "faster than the reference": (f"pairs, {BOTH}", "times faster than reference", times),
    "extra MiB": ("pairs, medium", "peak beyond inputs and dL/dx", number),
}
TABLES: dict[str, Callable[[bool], Table]] = {
    "speed": speed,
    "steps": steps,
    "kernels": partial(figures_of_gpu, ("bandwidth", "latency"), KERNELS),
    "pairs": partial(figures_of_gpu, ("pairs-rate", "pairs-rivals", "pairs-memory"), PAIRS),
    "loss": partial(compare, {f"`{name}`": (name,) for name in CONTENDERS}, ()),
    "traffic": partial(lines_of, "loss.csv", ("n",), CASE, TRAFFIC, traffic),
    "metric-time": metric_time,
    "retrieval": retrieval,
    "axes": partial(lines_of, "loss.csv", ("k", "d", "classes", "dtype"), CASE, AXES, axes),
    "step": partial(lines_of, "step.csv", ("loss", "levers"), ("contender", "image_size", "batch"), STEP, step),
    "scale": partial(lines_of, "scale.csv", ("n", "classes", "virtual", "ranks"),
                     ("n", "classes", "virtual", "ranks"), SCALE, scale),
}  # fmt: skip


def write(name: str) -> str:
    """The table of a name in TABLES; `NAME-gpu` is the same of GPUs. All but `speed` go without empty columns."""
    head, lines = TABLES[name.removesuffix("-gpu")](name.endswith("-gpu"))
    if not lines:
        return f"`{name}`: not measured yet."
    columns = [(title, *cells) for title, *cells in zip(head, *lines, strict=True) if any(cells) or "speed" in name]
    texts = ["| " + " | ".join(line) + " |" for line in zip(*columns, strict=True)]
    return "\n".join([texts[0], "| " + " | ".join(["---"] * len(columns)) + " |", *texts[1:]])


def fill(text: str) -> str:
    """Return the text with its tables regenerated. Raises ValueError for an unknown table."""

    def table(match: re.Match[str]) -> str:
        if (name := match[1]).removesuffix("-gpu") not in TABLES:
            raise ValueError(f"<!-- bench: {name} -->: expected one of {', '.join(TABLES)}, or with -gpu behind it")
        return f"<!-- bench: {name} -->\n{write(name)}\n<!-- /bench -->"

    return re.sub(r"(?s)<!-- bench: ([\w-]+) -->.*?<!-- /bench -->", table, text)


def main(argv: list[str] | None = None) -> int:
    parser = rows.parser("report", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; tell whether a text is out of date")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder of the pictures")
    options = parser.parse_args(argv)
    if not options.check and importlib.util.find_spec("matplotlib") is None:
        parser.error("matplotlib is not installed: it draws the pictures; --check does without")
    stale = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if fill(text) != text:
            stale.append(path)
            if not options.check:
                path.write_text(fill(text), encoding="utf-8")
    for message in filter(None, map(missing, (False, True))):
        print(message)
    if options.check:
        print("\n".join(f"{path}: its tables are not those of the rows" for path in stale) or "up to date")
        return 1 if stale else 0
    options.pictures.mkdir(parents=True, exist_ok=True)
    for path in [*stale, *draw(options.pictures)]:
        print(f"written: {path}")
    return 0
