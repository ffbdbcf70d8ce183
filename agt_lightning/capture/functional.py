"""Recorded programs without calls in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx
from torch._ops import OpOverload

_COLLECT, _IS_KEPT = "_collect_all_valid_cia_ops", "_is_preservable_cia_op"
"""Functions of torch: one returns all composite operators that decomposition can keep, one says whether it can."""


def functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with functional calls in the place of those that change tensors, and all others as they are.

    Args:
        program: as it was exported.
    """
    with _keeping({node.target for node in nodes(program.graph_module)}):
        result: torch.export.ExportedProgram = program.run_decompositions({})
    return result


def nodes(module: torch.nn.Module) -> Iterator[fx.Node]:
    """Yield all nodes of a program, including those of nested regions."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            yield from part.graph.nodes


@contextmanager
def _keeping(targets: set[object]) -> Iterator[None]:
    """Let decomposition keep the composite operators of a program alone.

    It otherwise prepares for some two thousand, in which it spends nearly all of its time; no others occur. Without
    these functions in a version of torch it does that.
    """
    exported, utils = torch.export.exported_program, torch._export.utils
    collect, is_kept = getattr(exported, _COLLECT, None), getattr(utils, _IS_KEPT, None)
    if collect is None or is_kept is None:
        yield
        return
    kept = {target for target in targets if isinstance(target, OpOverload) and is_kept(target)}
    setattr(exported, _COLLECT, lambda: set(kept))
    try:
        yield
    finally:
        setattr(exported, _COLLECT, collect)
