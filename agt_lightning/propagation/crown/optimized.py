"""Backward substitution with lower lines that each bound searches for itself by gradient steps: α-CROWN.

Reference:
    Xu et al., Fast and Complete: Enabling Complete Neural Network Verification with Rapid and Massively Parallel
    Incomplete Verifiers, 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.interval import Interval
from agt_lightning.propagation.crown.backward import Box, Substitution
from agt_lightning.propagation.crown.slopes import Slopes


@dataclass(frozen=True)
class OptimizedSubstitution(Substitution):
    """Computes bounds by backward substitution, each the least of those met in a search over its own lower lines.

    Any slope in [0, 1] is sound, so the search may stop at any time, and its first bound is that of `Substitution`.

    Args:
        program: the program.
        slopes: where the search starts.
        memory_budget: bytes for coefficients; the search keeps those of every call at once.
        steps: number of gradient steps on the sum of all bounds.
        rate: size of a step of the slopes.
    """

    steps: int = 10
    rate: float = 0.2

    @override
    def _part(self, box: Box, name: str, rows: Tensor) -> Tensor:
        shares = _Shares(self.slopes, rows.shape[1])
        with torch.enable_grad():
            bound = self._walk(box, name, rows, shares)
            best = bound.detach()
            if not bound.requires_grad:  # no kinked call on the way
                return best
            search = torch.optim.Adam(shares.tensors.values(), lr=self.rate)
            for _ in range(self.steps):
                search.zero_grad()
                bound.sum().backward()
                search.step()
                shares.project()
                bound = self._walk(box, name, rows, shares)
                best = torch.minimum(best, bound.detach())
        return best

    @override
    def _fitting(self, size: int, most: int) -> int:
        return super()._fitting(size * len(self.program.graph.calls), most)


class _Shares:
    """Holds α of every kinked call, one for each sample, row and unit."""

    def __init__(self, start: Slopes, rows: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._start, self._rows = start, rows

    def __call__(self, name: str, box: Interval) -> Tensor:
        """Return the current α of a call."""
        if name not in self.tensors:
            start = self._start(name, box)
            self.tensors[name] = start.expand(-1, self._rows, *start.shape[2:]).clone().requires_grad_()
        return self.tensors[name]

    def project(self) -> None:
        """Move every α back to [0, 1]."""
        with torch.no_grad():
            for share in self.tensors.values():
                share.clamp_(0, 1)
