r"""Run the tests that need a GPU, compare kernels, and measure certified steps there, in less than six minutes.

    python -m recipes.benchmark.cuda                                all stages, on a GPU
    python -m recipes.benchmark.cuda --device cpu --scale 0.002     to see that it runs; of tests, that they are found
    python -m recipes.benchmark.cuda --stages tests sums            some of them

It needs what the package needs and pytest, hypothesis and Triton, but neither Hydra nor pandas; numba can be missing.
Each stage is a process of its own with a limit of time. Whatever it has found is kept if it fails or is stopped, in
``cuda.json`` and, as tables for ``docs/performance.md``, in ``cuda.md``; both are written after each stage.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from recipes.benchmark.cuda.processes import Outcome, run
from recipes.benchmark.cuda.request import Request
from recipes.benchmark.cuda.results import write_results
from recipes.benchmark.cuda.stages import STAGES, write_rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.benchmark.cuda``.

    Raises:
        SystemExit: if a stage or a test fails; results are written before.
    """
    chosen = _parser().parse_args(arguments)
    request = Request(chosen.device, chosen.scale, chosen.repeats, tuple(chosen.tests))
    if chosen.into is not None:
        write_rows(chosen.stages[0], request, chosen.into)
        return
    if request.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("Expected a CUDA device, but torch finds none. Use `--device cpu` to see that this runs.")
    outcomes: list[Outcome] = []
    chosen.output_dir.mkdir(parents=True, exist_ok=True)
    for name in chosen.stages:
        given = [sys.executable, "-m", "recipes.benchmark.cuda", *request.arguments, "--stages", name, "--into"]
        limit, rows = STAGES[name].seconds * request.patience, chosen.output_dir / f"{name}.jsonl"
        outcomes.append(run(name, given, limit, rows, request.environment))
        paths = write_results(outcomes, request, chosen.output_dir)
        print(f"{name}: {outcomes[-1].sentence}", flush=True)
    print("\nWritten:", *paths, sep="\n  ", flush=True)
    if any(outcome.failed for outcome in outcomes):
        raise SystemExit("A stage or a test failed; see the tables.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the samples")
    parser.add_argument("--repeats", type=int, default=5, help="steps, and sums, of a median")
    parser.add_argument("--tests", nargs="+", default=[], help="files of tests; all that need a GPU by default")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/cuda"))
    parser.add_argument("--into", type=Path, default=None, help="run one stage in this process, and append rows there")
    return parser


if __name__ == "__main__":
    main()
