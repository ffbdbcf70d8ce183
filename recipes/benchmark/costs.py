r"""Measure the cost of certification, in parts.

``table`` measures certified against plain steps of the paper's table 1, ``profile`` the parts of a step, and ``growth``
both kinds of step as batch, n and network grow: same process, in turns, median of repeats; CPU time, or on a GPU time
on the wall; random data of the same shapes; the third step, when bounds have width; the box alone, as in the paper.
``ball`` measures steps with the ball alone, ``methods`` the methods of propagation on household power (real data), and
``processes`` a batch divided among processes; ``floats`` compares widths with those of bounds in real arithmetic;
``strengths`` measures steps that are certified for five adversaries at once; ``plans`` compares what
`CertifiedTraining.plan` predicts with what steps take; ``normalizations`` the widths of bounds with normalization of
batches and of groups.
Writes tables (markdown and CSV) and figures.

    python -m recipes.benchmark                                    table, profile and growth
    python -m recipes.benchmark --scale 0.01 --repeats 1           seconds, to see that it runs
    python -m recipes.benchmark --device cuda
    python -m recipes.benchmark --parts ball processes
    python -m recipes.benchmark --parts methods --root path/to/data
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from recipes.benchmark import ball, floats, gate, methods, normalizations, plans, processes, strengths
from recipes.benchmark.report import Row, machine, write
from recipes.benchmark.step_cost import Clock, Setting, Training, extra_memory
from recipes.benchmark.workloads import GROWTH, TABLE, Workload, along
from recipes.figures.step_costs import draw_growth, draw_step_costs, slope
from recipes.runs.job import one_message

CLOCKS: Mapping[Clock, str] = {"cpu": "CPU time", "wall": "time on the wall"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.benchmark``."""
    chosen = _parser().parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    print(machine(chosen.device), flush=True)
    with one_message():
        written = [path for name in chosen.parts for path in PARTS[name](chosen)]
    print("\nWritten:", *written, sep="\n  ", flush=True)


def table_one(chosen: argparse.Namespace) -> list[Path]:
    """Measure the paper's workloads, and return the paths of tables and figure."""
    setting = _setting(chosen)
    rows = [row(setting, index, chosen.scale) for index in chosen.workloads]
    ratios = {str(found["workload"]): float(found["ratio"]) for found in rows}
    paths = write(rows, chosen.output_dir / "benchmark", _caption(setting))
    paths.append(draw_step_costs(ratios, chosen.output_dir / "benchmark.png", CLOCKS[setting.clock]))
    if chosen.gate and (slower := gate.above(rows, gate.stored_ratios())):
        raise SystemExit("\n".join(["Slower than what is stored; measure again on an idle machine:", *slower]))
    return paths


def row(setting: Setting, index: int, scale: float) -> Row:
    """Measure one of the paper's workloads.

    Args:
        setting: of the training.
        index: position in the table.
        scale: share of the samples.
    """
    workload = paper_workload(index, scale)
    cost = Training(workload, setting).costs()
    plain, certified = cost.seconds
    memory = extra_memory(partial(paper_workload, index, scale), setting, torch.get_num_threads())
    print(
        f"{workload.name}: {cost.ratio:.1f} plain steps ({1e3 * certified:.3g} / {1e3 * plain:.3g} ms), "
        f"{memory / 1e6:.0f} MB more",
        flush=True,
    )
    return {
        "workload": workload.name,
        "b": workload.samples,
        "n": workload.adversary.n,
        "plain ms": 1e3 * plain,
        "certified ms": 1e3 * certified,
        "ratio": cost.ratio,
        "ratio on the wall": cost.wall_ratio,
        "extra memory MB": memory / 1e6,
        "mean width": cost.width,
    }


def profile(chosen: argparse.Namespace) -> list[Path]:
    """Measure the parts of one certified step of each workload, and return the paths of the tables."""
    rows: list[Row] = []
    setting = _setting(chosen)
    for index in chosen.workloads:
        workload = paper_workload(index, chosen.scale)
        parts = Training(workload, setting).parts()
        rows.append({"workload": workload.name, **{f"{name} ms": ms for name, ms in parts.items()}})
        print(f"{workload.name}: {', '.join(f'{name} {ms:.0f} ms' for name, ms in parts.items())}", flush=True)
    return write(rows, chosen.output_dir / "profile", _caption(setting))


def growth(chosen: argparse.Namespace) -> list[Path]:
    """Measure steps in which one quantity grows, and return the paths of curves and slopes."""
    setting = _setting(chosen)
    curves = {axis: _curves(setting, axis, chosen.scale) for axis in GROWTH}
    paths = write(list(_growth_rows(curves)), chosen.output_dir / "growth", _caption(setting))
    return [*paths, draw_growth(curves, chosen.output_dir / "growth.png", CLOCKS[setting.clock])]


def _curves(setting: Setting, axis: str, scale: float) -> dict[str, list[tuple[float, float]]]:
    """Return values of what grows with seconds of a step, by kind of step."""
    kinds: dict[str, list[tuple[float, float]]] = {"plain": [], "certified": []}
    for value, workload in zip(GROWTH[axis], along(axis), strict=True):
        cost = Training(workload.smaller(scale), setting).costs()
        for kind, seconds in zip(kinds.values(), cost.seconds, strict=True):
            kind.append((value, seconds))
        print(f"{workload.name}: {cost.ratio:.1f} plain steps", flush=True)
    return kinds


def _growth_rows(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> list[Row]:
    return [
        {"growing": axis, "step": kind, "value": value, "seconds": seconds, "slope": slope(points)}
        for axis, kinds in curves.items()
        for kind, points in kinds.items()
        for value, seconds in points
    ]


def balls(chosen: argparse.Namespace) -> list[Path]:
    """Measure steps with the ball alone, and return the paths of the tables."""
    samples, repeats = round(10_000 * chosen.scale), chosen.repeats or 15
    rows = ball.rows(samples, repeats, chosen.rate)
    caption = f"{machine('cpu')}; CPU time of a step with {samples} samples, median of {repeats} steps."
    return write(rows, chosen.output_dir / "benchmark_ball", caption)


def propagation_methods(chosen: argparse.Namespace) -> list[Path]:
    """Measure the methods of propagation, and return the paths of the tables."""
    samples = round(200 * chosen.scale)
    rows = methods.rows(chosen.root, samples)
    caption = f"{machine('cpu')}; CPU time of a step with {samples} samples, median of {methods.TIMED} steps."
    return write(rows, chosen.output_dir / "benchmark_methods", caption)


def several_processes(chosen: argparse.Namespace) -> list[Path]:
    """Measure a batch divided among processes, and return the paths of the tables."""
    samples, repeats = round(512 * chosen.scale), chosen.repeats or 7
    rows = processes.rows(chosen.sizes, samples, repeats)
    caption = f"CPU time and bytes sent per step and process; batch of {samples}, median of {repeats} steps."
    return write(rows, chosen.output_dir / "benchmark_processes", caption)


def float_widths(chosen: argparse.Namespace) -> list[Path]:
    """Compare widths of bounds on runs of hardware and in real arithmetic, and return the paths of the tables."""
    workloads = [paper_workload(index, chosen.scale) for index in chosen.workloads]
    rows = list(floats.rows(workloads, _setting(chosen)))
    return write(rows, chosen.output_dir / "floats", f"{machine(chosen.device)}; after three steps.")


def several_strengths(chosen: argparse.Namespace) -> list[Path]:
    """Measure steps for several adversaries in one training, and return the paths of the tables."""
    workloads = [paper_workload(index, chosen.scale) for index in chosen.workloads]
    setting = _setting(chosen)
    return write(list(strengths.rows(workloads, setting)), chosen.output_dir / "strengths", _caption(setting))


def predictions(chosen: argparse.Namespace) -> list[Path]:
    """Compare predicted and measured steps, and return the paths of the tables."""
    workloads = [paper_workload(index, chosen.scale) for index in chosen.workloads]
    workloads.append(plans.PHOTOGRAPHS if chosen.scale == 1 else plans.PHOTOGRAPHS.smaller(chosen.scale))
    caption = (
        f"{machine('cpu')}; time on the wall; from batches of an eighth and a quarter, against {plans.STEPS} steps."
    )
    return write(list(plans.rows(workloads, _setting(chosen).training)), chosen.output_dir / "plans", caption)


def normalized_widths(chosen: argparse.Namespace) -> list[Path]:
    """Compare widths with several normalizations, and return the paths of the tables."""
    steps = max(1, round(normalizations.STEPS * chosen.scale))
    caption = f"Mean widths after {steps} steps; batches of {normalizations.SAMPLES}, one sample poisoned in each."
    return write(list(normalizations.rows(steps)), chosen.output_dir / "normalizations", caption)


PARTS: Mapping[str, Callable[[argparse.Namespace], list[Path]]] = {
    "table": table_one,
    "profile": profile,
    "growth": growth,
    "ball": balls,
    "methods": propagation_methods,
    "processes": several_processes,
    "floats": float_widths,
    "strengths": several_strengths,
    "plans": predictions,
    "normalizations": normalized_widths,
}


def paper_workload(index: int, scale: float) -> Workload:
    """Return one of the paper's workloads, with a share of its samples."""
    return TABLE[index] if scale == 1 else TABLE[index].smaller(scale)


def _setting(chosen: argparse.Namespace) -> Setting:
    types = (getattr(torch, name) for name in (chosen.training, chosen.bounds))
    return Setting(chosen.device, *types, repeats=chosen.repeats or 5)


def _caption(setting: Setting) -> str:
    types = ", ".join(str(t).removeprefix("torch.") for t in (setting.training, setting.bounds))
    clock = CLOCKS[setting.clock]
    return f"{machine(setting.device)}; {clock}; training and bounds in {types}; median of {setting.repeats} steps."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["table", "profile", "growth"])
    parser.add_argument("--workloads", nargs="+", type=int, default=range(len(TABLE)), help="positions in the table")
    parser.add_argument("--gate", action="store_true", help="fail if a ratio of `table` is above the stored one")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the samples")
    parser.add_argument("--repeats", type=int, default=None, help="steps of a median; each part has its own by default")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--training", default="float64", help="type of the parameters, hence of a plain step")
    parser.add_argument("--bounds", default="float64", help="type that bounds are computed in")
    parser.add_argument("--rate", type=float, default=None, help="learning rate of `ball`; each head has its own")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2], help="numbers of `processes`")
    parser.add_argument("--root", type=Path, default=None, help="data of `methods`; AGT_DATA_ROOT if left out")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/benchmark"))
    return parser
