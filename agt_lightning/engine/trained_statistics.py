"""Running statistics of batch normalization in training itself: they must move as the recorded steps say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from agt_lightning.digest import tensors_digest
from agt_lightning.errors import NOT_WHAT_IS_TRAINED, BoundsMismatchError, UnsoundBoundError
from agt_lightning.interval import Interval, require_inside
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.propagation.passes import propagate_statistics
from agt_lightning.propagation.running_statistics import followed
from agt_lightning.propagation.samples import MicroBatch


class TrainedStatistics:
    """The buffers of a module that steps move by statistics of their batches, as the last step left them.

    Args:
        module: before its first step.

    Attributes:
        moved: names of the buffers that steps have moved.
        before: those that steps of this object have moved, as they were before the first one, by name.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.moved: set[str] = set()
        self.before: dict[str, Tensor] = {}
        self._foreign: set[str] = set()
        self._values = {
            name: buffer.detach().clone() for name, buffer in module.named_buffers() if buffer.is_floating_point()
        }

    @property
    def values(self) -> dict[str, Tensor]:
        """Copies of the buffers that steps have moved, by name."""
        return {name: self._values[name] for name in sorted(self.moved)}

    def follow(
        self, steps: Sequence[tuple[BoundedObjective, MicroBatch]], start: nn.Module, dtype: torch.dtype
    ) -> None:
        """Check that training has moved its buffers as the micro-batches of a step do, and by nothing else.

        Args:
            steps: captured loss and data of each micro-batch, in order.
            start: the module before data could change it, which can be earlier than this object: a training that ended
                before its first step has moved buffers already.
            dtype: floating point type to compute in.

        Raises:
            UnsoundBoundError: naming a buffer that is somewhere else, by more than rounding, or that was so before its
                first move.
        """
        updates = [
            update
            for bounded, batch in steps
            for update in propagate_statistics(bounded.rounded(dtype, "run"), self.module, batch, dtype)
        ]
        if not updates:
            return
        buffers = dict(self.module.named_buffers())
        before = {name: Interval.point(value).to(dtype=dtype) for name, value in self._values.items()}
        types = {name: value.dtype for name, value in self._values.items()}
        first = dict(start.named_buffers())
        for name, bounds in followed(before, updates, types, "run").items():
            if name not in self.moved:
                self._require_same_as_before(name, first.get(name))
            require_inside(f"buffer {name}", buffers[name].to(dtype), bounds, 0.0, NOT_WHAT_IS_TRAINED)
            if name not in self.moved:
                self.before[name] = self._values[name]
                self.moved.add(name)
            self._values[name] = buffers[name].detach().clone()

    def _require_same_as_before(self, name: str, first: Tensor | None) -> None:
        """Raise if data have changed a buffer before its first move: steps would begin elsewhere in a poisoned run."""
        expected = f"Expected the buffer `{name}` as it was before the first step, but "
        if name in self._foreign:
            raise UnsoundBoundError(
                f"{expected}it had changed by something that has no bounds when this training was interrupted. Keep "
                "that layer in `eval()`."
            )
        if not _equal(first, self._values[name]):
            raise UnsoundBoundError(
                f"{expected}it has changed since, such as by a training that ended in the middle of its first step, "
                "whose data could be poisoned. Call `reset_running_stats()` of that layer if it was new, or train a "
                "new module."
            )

    def require_untouched(self) -> None:
        """Raise if something besides the steps has moved a buffer since the last one.

        Raises:
            UnsoundBoundError: naming the buffer.
        """
        buffers = dict(self.module.named_buffers())
        for name, value in self.values.items():
            if not _equal(buffers.get(name), value):
                raise UnsoundBoundError(
                    f"Expected the buffer `{name}` as the last step left it, but something else changed it (a forward "
                    "pass in training mode outside of `training_step`, a hook). The bounds do not cover that. Remove "
                    "it, or switch the module to `eval()` for it."
                )

    def digest(self) -> str:
        """Return a digest of the buffers that steps have moved; empty if there are none."""
        return tensors_digest(self.values.items()) if self.moved else ""

    def state(self) -> dict[str, object]:
        """Return the digest, and the names of buffers that something else has changed, for a checkpoint."""
        buffers = dict(self.module.named_buffers())
        changed = [name for name, value in self._values.items() if not _equal(buffers.get(name), value)]
        foreign = sorted({*changed, *self._foreign} - self.moved)
        return {"digest": self.digest(), "moved": sorted(self.moved), "foreign": foreign}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state` of an interrupted run; the module must have its buffers already.

        Args:
            state: of that run.

        Raises:
            BoundsMismatchError: if the module has others.
        """
        self.moved = {str(name) for name in state["moved"]}
        buffers = {name: buffer for name, buffer in self.module.named_buffers() if buffer.is_floating_point()}
        self._values = {name: buffer.detach().clone() for name, buffer in buffers.items()}
        self._foreign = {str(name) for name in state["foreign"]}
        if not self.moved <= buffers.keys() or self.digest() != state["digest"]:
            raise BoundsMismatchError(
                "Expected the running statistics that the checkpoint's bounds were computed for, but those of the "
                "module differ. Resume with the checkpoint's own buffers."
            )


def _equal(buffer: Tensor | None, value: Tensor) -> bool:
    return buffer is not None and torch.equal(buffer, value.to(buffer.device))
