"""What a certified `fit` tells while it runs: remarks and warnings, each once, and the numbers of its bounds."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from agt_lightning.bounds import ParameterBounds
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.bounded_runs import BoundedRuns
from agt_lightning.lightning.cost import Stopwatch
from agt_lightning.lightning.vacuity import vacuity_warning


class Report:
    """The report of one `fit` under one callback.

    Args:
        position: of the callback among several in one Trainer.

    Attributes:
        watch: measures what steps cost.
    """

    def __init__(self, position: int = 0) -> None:
        self.watch = Stopwatch()
        self._position = position
        self._announced: set[str] = set()
        self._warned: set[str] = set()  # of cost, and of adversaries whose bounds say nothing

    def prefix(self, runs: BoundedRuns) -> str:
        """Return the beginning of the keys in logs: by position among several callbacks, and by adversary."""
        position = "" if self._position == 0 else str(self._position)
        return "/".join([*filter(None, ["agt", position, runs.name]), ""])

    def announce(self, remark: str) -> None:
        """Log a remark that is new; nothing if it is empty."""
        if remark and remark not in self._announced:
            rank_zero_info(remark)
            self._announced.add(remark)

    def end_step(self, module: L.LightningModule, engine: AbstractGradientEngine) -> None:
        """Log the numbers of every adversary's bounds, and warn of bounds that say nothing, and of slow steps.

        Args:
            module: in training.
            engine: after a step.
        """
        with self.watch.bounding():
            for runs in engine.runs:
                self._log_bounds(module, runs, engine.steps)
        self.watch.end_step()
        cost = self.watch.cost
        self._warn_once("cost", "" if cost is None else cost.warning())

    def _log_bounds(self, module: L.LightningModule, runs: BoundedRuns, steps: int) -> None:
        box, prefix = runs.domains.cheap_box(), self.prefix(runs)
        if box:
            module.log(f"{prefix}mean_width", ParameterBounds(box).mean_width(), prog_bar=True)
        for name, value in runs.domains.metrics().items():
            module.log(f"{prefix}{name}", value, prog_bar=True)
        if prefix not in self._warned:
            warning = vacuity_warning(runs.domains.relative_size(), steps)
            self._warn_once(prefix, f"{warning} (adversary {runs.name})" if warning and runs.name else warning)

    def _warn_once(self, of: str, warning: str) -> None:
        if warning and of not in self._warned:
            self._warned.add(of)
            rank_zero_warn(warning)
