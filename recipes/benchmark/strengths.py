"""Cost of a step that is certified for several adversaries, beside steps for one of them."""

from collections.abc import Iterator
from dataclasses import replace

from agt_lightning import BoundedAdversary
from recipes.benchmark.report import Row
from recipes.benchmark.step_cost import Setting, Training
from recipes.benchmark.workloads import Workload

COUNT = 5
"""Adversaries of one training."""


def rows(workloads: list[Workload], setting: Setting) -> Iterator[Row]:
    """Measure the third step: for the strongest adversary alone, for all in one training, and for each in its own.

    Args:
        workloads: what is trained.
        setting: of training and bounds.

    Yields:
        One row for each workload.
    """
    for workload in workloads:
        adversaries = strengths(workload)
        together = _seconds(workload, setting, adversaries)
        each = [_seconds(workload, setting, [adversary]) for adversary in adversaries]
        print(f"{workload.name}: {together / each[-1]:.2f} times one, {together / sum(each):.2f} of all", flush=True)
        yield {
            "workload": workload.name,
            "b": workload.samples,
            "n": ", ".join(str(adversary.n) for adversary in adversaries),
            "the strongest alone ms": 1e3 * each[-1],
            "together ms": 1e3 * together,
            "each on its own ms": 1e3 * sum(each),
            "together over one": together / each[-1],
            "together over all": together / sum(each),
        }


def strengths(workload: Workload) -> list[BoundedAdversary]:
    """Return adversaries that poison up to as many samples as that of the workload, in equal steps."""
    largest = max(COUNT, workload.adversary.n)
    return [replace(workload.adversary, n=largest * part // COUNT) for part in range(1, COUNT + 1)]


def _seconds(workload: Workload, setting: Setting, adversaries: list[BoundedAdversary]) -> float:
    return Training(workload, setting, adversaries).costs().seconds[1]
