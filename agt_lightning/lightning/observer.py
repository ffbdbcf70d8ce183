"""An observer of the training step, for what Lightning has no hook: the moment right before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import lightning as L


class StepObserver:
    """An observer that calls a function right before each training step, after all hooks of its batch.

    Lightning runs each step in a context of the precision plugin, which this wraps.

    Args:
        trainer: whose steps are observed.
        before: called before each step; returns a context in which the step then runs.
    """

    def __init__(self, trainer: L.Trainer, before: Callable[[], AbstractContextManager[None]]) -> None:
        self._plugin = trainer.precision_plugin
        original = self._plugin.train_step_context

        @contextmanager
        def observed() -> Iterator[None]:
            with before(), original():
                yield

        self._plugin.train_step_context = observed  # type: ignore[method-assign]

    def remove(self) -> None:
        """Stop observing."""
        vars(self._plugin).pop("train_step_context", None)
