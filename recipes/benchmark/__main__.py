r"""What certification costs: certified against plain steps of the paper's table 1, and how both grow.

Same process, in turns, median of repeats; random data of the workloads' shapes; the third step, when bounds have width.
Writes tables (markdown and CSV) and figures, and what the parts of a step take. The box alone is kept, as in the paper.

    python -m recipes.benchmark
    python -m recipes.benchmark --scale 0.01 --repeats 1      seconds, to see that it runs
    python -m recipes.benchmark --device cuda
"""

import argparse
import csv
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch

from agt_lightning.aggregation import AGGREGATIONS, Aggregation
from recipes.benchmark.step_cost import Setting, Training, extra_memory
from recipes.benchmark.workloads import GROWTH, TABLE, Workload, along
from recipes.figures.step_costs import draw_growth, draw_step_costs, slope

Row = dict[str, str | float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.benchmark``."""
    chosen = _parser().parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    setting = Setting(chosen.device, getattr(torch, chosen.training), getattr(torch, chosen.bounds), chosen.repeats)
    print(machine(setting), flush=True)
    written = []
    if "table" in chosen.parts:
        written += table_one(setting, chosen.aggregation, chosen.scale, chosen.workloads, chosen.output_dir)
    if "profile" in chosen.parts:
        written += profile(setting, chosen.aggregation, chosen.scale, chosen.workloads, chosen.output_dir)
    if "growth" in chosen.parts:
        written += growth(setting, chosen.aggregation, chosen.scale, chosen.output_dir)
    print("\nWritten:", *written, sep="\n  ", flush=True)


def table_one(
    setting: Setting, sum_methods: Sequence[Aggregation], scale: float, workloads: Sequence[int], folder: Path
) -> list[Path]:
    """Measure the paper's workloads and write what was found.

    Args:
        setting: how to train.
        sum_methods: how to aggregate, one after another.
        scale: share of the samples.
        workloads: which ones, by position.
        folder: for the files.

    Returns:
        Paths of the files.
    """
    rows = [row(setting, way, index, scale) for index in workloads for way in sum_methods]
    ratios: dict[str, dict[str, float]] = {way: {} for way in sum_methods}
    for found in rows:
        ratios[str(found["aggregation"])][str(found["workload"])] = float(found["ratio"])
    paths = write(rows, folder / "benchmark", machine(setting))
    return [*paths, draw_step_costs(ratios, folder / "benchmark.png")]


def row(setting: Setting, way: Aggregation, index: int, scale: float) -> Row:
    """Measure one of the paper's workloads.

    Args:
        setting: how to train.
        way: how to aggregate.
        index: position in the table.
        scale: share of the samples.
    """
    workload, setting = paper_workload(index, scale), replace(setting, aggregation=way)
    cost = Training(workload, setting).costs()
    memory = extra_memory(partial(paper_workload, index, scale), setting, torch.get_num_threads())
    print(f"{workload.name}, {way}: {cost.ratio:.1f} plain steps, {memory / 1e6:.0f} MB more", flush=True)
    return {
        "workload": workload.name,
        "aggregation": way,
        "b": workload.samples,
        "n": workload.adversary.n,
        "plain ms": 1e3 * cost.plain.cpu,
        "certified ms": 1e3 * cost.certified.cpu,
        "ratio": cost.ratio,
        "ratio on the wall": cost.wall_ratio,
        "extra memory MB": memory / 1e6,
        "mean width": cost.width,
    }


def profile(
    setting: Setting, sum_methods: Sequence[Aggregation], scale: float, workloads: Sequence[int], folder: Path
) -> list[Path]:
    """Measure what the parts of one certified step take, and write it.

    Args:
        setting: how to train.
        sum_methods: how to aggregate, one after another.
        scale: share of the samples.
        workloads: which ones, by position.
        folder: for the files.

    Returns:
        Paths of the files.
    """
    rows: list[Row] = []
    for index, way in product(workloads, sum_methods):
        workload = paper_workload(index, scale)
        parts = Training(workload, replace(setting, aggregation=way)).parts()
        rows.append({"workload": workload.name, "aggregation": way, **{f"{name} ms": ms for name, ms in parts.items()}})
        print(f"{workload.name}, {way}: {', '.join(f'{name} {ms:.0f} ms' for name, ms in parts.items())}", flush=True)
    return write(rows, folder / "profile", machine(setting))


def growth(setting: Setting, sum_methods: Sequence[Aggregation], scale: float, folder: Path) -> list[Path]:
    """Measure steps in which one quantity grows, and write curves and slopes.

    Args:
        setting: how to train.
        sum_methods: how to aggregate, one after another.
        scale: share of the samples.
        folder: for the files.

    Returns:
        Paths of the files.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for axis, values in GROWTH.items():
        kinds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("plain", *sum_methods)}
        for value, workload in zip(values, along(axis), strict=True):
            costs = [
                Training(workload.smaller(scale), replace(setting, aggregation=way)).costs() for way in sum_methods
            ]
            kinds["plain"].append((value, median(cost.plain.cpu for cost in costs)))
            for way, cost in zip(sum_methods, costs, strict=True):
                kinds[way].append((value, cost.certified.cpu))
            print(f"{workload.name}: {', '.join(f'{cost.ratio:.1f}' for cost in costs)} plain steps", flush=True)
        curves[axis] = kinds
    paths = write(list(_growth_rows(curves)), folder / "growth", machine(setting))
    return [*paths, draw_growth(curves, folder / "growth.png")]


def paper_workload(index: int, scale: float) -> Workload:
    """One of the paper's workloads, with a share of its samples."""
    return TABLE[index] if scale == 1 else TABLE[index].smaller(scale)


def machine(setting: Setting) -> str:
    """What the figures were measured on."""
    where = torch.cuda.get_device_name() if setting.device == "cuda" else f"{os.cpu_count()} cores of {_processor()}"
    types = ", ".join(str(t).removeprefix("torch.") for t in (setting.training, setting.bounds))
    return (
        f"{where}, {torch.get_num_threads()} thread(s), torch {torch.__version__}; training and bounds in {types}; "
        f"median of {setting.repeats} steps."
    )


def write(rows: Sequence[Row], path: Path, caption: str) -> list[Path]:
    """Write rows as ``.csv`` and ``.md``.

    Args:
        rows: with the same keys.
        path: without an ending.
        caption: a sentence under the markdown table.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".csv"), path.with_suffix(".md")]
    with files[0].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    files[1].write_text(f"{markdown(rows)}\n\n{caption}\n")
    return files


def markdown(rows: Sequence[Row]) -> str:
    """A table with three significant digits.

    Example:
        >>> print(markdown([{"step": "plain", "ms": 1.2345}]))
        | step | ms |
        |---|---|
        | plain | 1.23 |
    """
    lines = [[v if isinstance(v, str) else f"{v:.3g}" if v < 1e3 else f"{v:.0f}" for v in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(rows[0]), *lines]).replace(
        "\n", f"\n|{'---|' * len(rows[0])}\n", 1
    )


def _growth_rows(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> list[Row]:
    return [
        {"growing": axis, "step": kind, "value": value, "seconds": seconds, "slope": slope(points)}
        for axis, kinds in curves.items()
        for kind, points in kinds.items()
        for value, seconds in points
    ]


def _processor() -> str:
    return platform.machine() or "an unknown processor"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=["table", "profile", "growth"], default=["table", "profile", "growth"]
    )
    parser.add_argument("--workloads", nargs="+", type=int, default=range(len(TABLE)), help="positions in the table")
    parser.add_argument("--aggregation", nargs="+", choices=AGGREGATIONS, default=["exact", "moment"])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the samples")
    parser.add_argument("--repeats", type=int, default=5, help="certified steps to take the median over")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--training", default="float64", help="type of the parameters, hence of a plain step")
    parser.add_argument("--bounds", default="float64", help="type that bounds are computed in")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/benchmark"))
    return parser


if __name__ == "__main__":
    main()
