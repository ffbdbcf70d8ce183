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
from agt_lightning.capture.numbers import tracked_math
from agt_lightning.capture.recording import BRANCH, Recording
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
    """Note branches on sizes that depend on data, such as ``len(mask.nonzero())``, also if their error is caught."""
    with ExitStack() as stack:
        for kind, name in _SYMBOLIC:
            stack.enter_context(_replaced(kind, name, _noting(recording, getattr(kind, name))))
        yield


def _noting(recording: Recording, method: Callable[..., Any]) -> Callable[..., Any]:
    def noted(self: object) -> Any:
        try:
            return method(self)
        except Exception:
            if not is_internal(sys._getframe(1)):
                recording.refusals.append(f"{current_line()} lets Python read a size that depends on data: {BRANCH}")
            raise

    return noted


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
