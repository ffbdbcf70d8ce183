"""Tensors that are written anew in each step of a training, in the memory of those of the step before."""

from __future__ import annotations

import torch
from torch import Tensor

_Kind = tuple[tuple[int, ...], torch.dtype, torch.device]


class Buffers:
    """Memory for tensors that live until the next step.

    Fresh memory costs more than what is written to it: the system hands it out page by page, and takes it back.

    Example:
        >>> buffers = Buffers()
        >>> first = buffers.take(torch.ones(1), (2, 3))
        >>> buffers.reclaim()
        >>> buffers.take(torch.ones(1), (2, 3)) is first
        True
    """

    def __init__(self) -> None:
        self._free: dict[_Kind, list[Tensor]] = {}
        self._taken: dict[_Kind, list[Tensor]] = {}

    def take(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor with any entries.

        Args:
            like: a tensor of its type, on its device.
            shape: of the tensor.
        """
        kind = (shape, like.dtype, like.device)
        free = self._free.get(kind)
        tensor = free.pop() if free else like.new_empty(shape)
        self._taken.setdefault(kind, []).append(tensor)
        return tensor

    def reclaim(self) -> None:
        """Take back all tensors, none of which is read again; what was not taken since the last time is freed."""
        self._free, self._taken = self._taken, {}
