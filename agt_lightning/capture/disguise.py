"""An environment in which the user's code runs as in training, although it is recorded."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch._dynamo.config
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from agt_lightning.capture.data_reads import DataReads
from agt_lightning.capture.numbers import read_size, tracked_math
from agt_lightning.capture.recording import Recording, branch
from agt_lightning.capture.source import current_line, is_internal

_FLAGS = ("_is_compiling_flag", "_is_exporting_flag", "_is_non_strict_tracing_flag")

_SYMBOLIC = tuple(
    (kind, name)
    for kind in (torch.SymBool, torch.SymInt, torch.SymFloat)
    for name in ("__bool__", "__int__", "__index__", "__float__")
    if name in vars(kind)
)


@contextmanager
def observed(recording: Recording) -> Iterator[None]:
    """Run the user's code as in training, and note what Python reads of its data.

    Args:
        recording: where reads and refusals are noted.
    """
    with ExitStack() as stack:
        stack.enter_context(recording.running())
        stack.enter_context(tracked_math())
        stack.enter_context(_eager_flags())
        stack.enter_context(
            torch._dynamo.config.patch(error_on_nested_fx_trace=False)
        )  # compiled parts run as they are
        stack.enter_context(_symbolic_branches(recording))
        stack.enter_context(_saved_tensors(recording))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # training prints the same
        stack.enter_context(DataReads(recording))
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Disable logging, in which `torch.export` prints graphs for each error and the user's code stand-ins."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _eager_flags() -> Iterator[None]:
    """Let `torch.compiler.is_compiling` and its relatives return False, as in training."""
    before = {name: getattr(torch.compiler, name) for name in _FLAGS if hasattr(torch.compiler, name)}
    for name in before:
        setattr(torch.compiler, name, False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.compiler, name, value)


@contextmanager
def _symbolic_branches(recording: Recording) -> Iterator[None]:
    """Follow branches on sizes that depend on data, such as ``mask.nonzero().shape[0] > 0``, and read sizes as numbers.

    Torch's own code cannot go on without the size; its error is noted, in case that the user's code catches it.
    """
    with ExitStack() as stack:
        for kind, name in _SYMBOLIC:
            stack.enter_context(_replaced(kind, name, _reading(recording, name, getattr(kind, name))))
        yield


def _reading(recording: Recording, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def read(self: object) -> Any:
        if not is_internal(sys._getframe(1)) and not _is_known(self):
            return branch("a size that depends on data") if name == "__bool__" else read_size(recording)
        return method(self)

    return read


def _is_known(size: object) -> bool:
    """Return whether a size is the same for all data."""
    node = size.node  # type: ignore[attr-defined]
    return node.maybe_as_int() is not None or node.maybe_as_bool() is not None or node.maybe_as_float() is not None


@contextmanager
def _saved_tensors(recording: Recording) -> Iterator[None]:
    """Refuse hooks on saved tensors, which can change gradients, unless they are torch's own."""
    enter = saved_tensors_hooks.__enter__

    def checked(self: saved_tensors_hooks) -> None:
        internal = type(self).__module__.startswith("torch.utils.checkpoint") or type(self) is save_on_cpu
        if not internal and not is_internal(sys._getframe(1)):
            recording.refuse(
                f"{current_line()} changes the tensors that are saved for gradients, which is not followed. Remove "
                "`saved_tensors_hooks`."
            )
        enter(self)

    with _replaced(saved_tensors_hooks, "__enter__", checked):
        yield


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
