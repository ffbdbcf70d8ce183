"""A table of distinct rows of numbers, each stored once."""

from __future__ import annotations

import torch
from torch import Tensor

from agt_lightning.domains.influence.sample_table import content_digests


class RowTable:
    """Rows by their content, which a digest of 128 bits stands for.

    Example:
        >>> table = RowTable()
        >>> table.positions(torch.tensor([[1.0], [2.0], [1.0]])).tolist(), table.rows.tolist()
        ([0, 1, 0], [[1.0], [2.0]])
    """

    def __init__(self) -> None:
        self._position_of: dict[bytes, int] = {}
        self._parts: list[Tensor] = []

    def positions(self, rows: Tensor) -> Tensor:
        """Add rows (b, n) that are new, and return the positions of all of them, int64 (b,)."""
        positions, new = [], []
        for number, digest in enumerate(content_digests([rows]).numpy()):
            known = len(self._position_of)
            position = self._position_of.setdefault(digest.tobytes(), known)
            positions.append(position)
            if position == known:
                new.append(number)
        if new:
            self._parts.append(rows[new])
        return torch.tensor(positions, dtype=torch.int64)

    @property
    def rows(self) -> Tensor:
        """All distinct rows, (m, n)."""
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]

    @classmethod
    def restored(cls, rows: Tensor) -> RowTable:
        """Return the table with these distinct rows."""
        table = cls()
        table.positions(rows)
        return table
