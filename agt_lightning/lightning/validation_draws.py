"""Random numbers that a validation uses up between training steps: as many in every run, or masks differ later."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agt_lightning.capture.draws import draws, generator_states, rejects
from agt_lightning.errors import UncertifiableError

_WAY_OUT = (
    "Poisoned runs predict otherwise, draw more numbers or fewer, and find others in later training steps. Put that "
    "code under `with torch.random.fork_rng():`, which leaves no trace in the generator, or validate after training."
)


class ValidationDraws:
    """The random numbers that validation steps draw while a training goes on.

    Their number must not depend on predictions. So calls that reject numbers are refused, and steps whose batches have
    the same shapes must draw alike: code that samples until predictions say that it is enough seldom does.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._mode: _Drawn | None = None
        self._before: Hashable = None
        self._known: dict[Hashable, Hashable] = {}

    def begin(self) -> None:
        """Watch the step of a batch."""
        self.stop()
        self._before = generator_states()
        self._mode = self._stack.enter_context(_Drawn())

    def end(self, batch: object, loader: int) -> None:
        """Check what the step of a batch has drawn.

        Args:
            batch: that of the step.
            loader: its index.

        Raises:
            UncertifiableError: if the number depends on predictions.
        """
        mode = self._mode
        self.stop()
        if mode is None:
            return
        traceless = generator_states() == self._before  # it draws nothing, or puts the generator back
        if mode.rejecting and not traceless:
            raise _refusal(
                f"`validation_step` calls `{mode.rejecting[0]}`, which draws as many random numbers as the values "
                "decide that it is given."
            )
        shapes = (loader, *(tuple(leaf.shape) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)))
        drawn = () if traceless else tuple(mode.drawn)
        if self._known.setdefault(shapes, drawn) != drawn:
            raise _refusal("`validation_step` draws other random numbers for one batch than for another of its shape.")

    def stop(self) -> None:
        """Watch no longer."""
        self._mode = None
        self._stack.close()


class _Drawn(TorchDispatchMode):
    """Notes the calls of torch that draw, with the shapes of their results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn: list[Hashable] = []
        self.rejecting: list[str] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(func, OpOverload) and draws(func, args, kwargs):
            shapes = tuple(tuple(each.shape) for each in tree_leaves(result) if isinstance(each, Tensor))
            self.drawn.append((str(func), shapes))
            if rejects(func, args, kwargs):
                self.rejecting.append(str(func.overloadpacket))
        return result


def _refusal(reason: str) -> UncertifiableError:
    return UncertifiableError([f"{reason} {_WAY_OUT}"], "The training after this validation")
