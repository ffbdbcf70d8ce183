"""Detection of data that Python reads while the user's code is recorded.

A recorded graph holds for every run only if every path that Python can take through the code leads to it, or ends the
run. Branches on data are taken both ways (`agt_lightning.capture.paths`), and numbers are replaced by stand-ins. Where
neither can be done, reading is refused, and noted, since the user's code can catch the error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode

from agt_lightning.capture import numbers
from agt_lightning.capture.graph import Graph
from agt_lightning.capture.likelihoods import WITH_CHECKS_SEEN
from agt_lightning.capture.paths import raises_by_itself
from agt_lightning.capture.raising import raises_for_some
from agt_lightning.capture.recording import Recording, branch, raise_on_another_path, refuse_branch
from agt_lightning.capture.source import current_line, is_internal
from agt_lightning.errors import CaptureError

DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)
"""Errors of torch where Python needs numbers of a tensor that is recorded."""

_METRIC = -5.01174e-37

_MOST_CALLS = 200_000
"""More functions than a training step calls, unless it loops over a number of data, which can be a large stand-in."""

_BRANCHES: Mapping[object, str] = {
    Tensor.__bool__: "`bool()` of a tensor",
    Tensor.__contains__: "`in` a tensor",
    Tensor.is_nonzero: "`is_nonzero`",
    Tensor.equal: "`equal`",
    Tensor.allclose: "`allclose`",
    torch.is_nonzero: "`is_nonzero`",
    torch.equal: "`equal`",
    torch.allclose: "`allclose`",
}
"""Functions that return a boolean of data; of one element, if they take a single tensor."""

_UNREADABLE: Mapping[object, str] = {
    Tensor.__index__: "a tensor as an index of a list or range",
    Tensor.__complex__: "`complex()` of a tensor",
    Tensor.data_ptr: "`data_ptr`",
    Tensor.untyped_storage: "the storage of a tensor",
    Tensor.storage: "the storage of a tensor",
    Tensor.__dlpack__: "`__dlpack__`",
    Tensor.__reduce_ex__: "pickling a tensor",
}
"""Functions by which Python reads data in a way that nothing follows."""

_HOOKS = (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook)


class DataReads(TorchFunctionMode):
    """A mode in which reading data is noted: branches follow the recording's path, and numbers are stand-ins.

    Args:
        recording: where reads and refusals are noted.
    """

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.recording.calls += 1
        if self.recording.conversions and self.recording.calls > _MOST_CALLS:
            self.recording.refuse(depends_on_size(current_line()))
        if func in _HOOKS:
            self.recording.refuse(
                f"{current_line()} registers a hook on a tensor, which can change gradients in another run. Remove it; "
                "to log gradients, use `on_before_optimizer_step`."
            )
        if func in (Tensor.__bool__, Tensor.item):
            known = self.recording.finite_checks.value_of(args[0], self.recording.unproven)
            if known is None:
                known = self.recording.made_numbers.value_of(args[0])
            if known is not None:
                return known
        if func in _UNREADABLE and any(_is_data(arg) for arg in args):
            refuse_branch(_UNREADABLE[func])
        if func in _BRANCHES and any(_is_data(arg) for arg in args) and (len(args) > 1 or args[0].numel() == 1):
            return branch(_BRANCHES[func])
        if func in _READERS and _is_data(args[0]):
            return _READERS[func](self.recording, *args, **kwargs)
        if func == _GRAD:
            self.recording.refuse(
                f"{current_line()} reads `grad`, which is left of earlier batches. To log gradients, use "
                "`on_before_optimizer_step`."
            )
        if func == _GRAD_FN and not is_internal(sys._getframe(1)):
            self.recording.refuse(
                f"{current_line()} reads `grad_fn`, through which gradients can be changed. Remove it."
            )
        if raises_for_some(func, (args, kwargs), _is_data):
            raise_on_another_path()
        try:
            result = WITH_CHECKS_SEEN.get(func, func)(*args, **kwargs)
        except CaptureError:
            raise
        except Exception as error:
            if not raises_by_itself(error):
                self.recording.failures.append(f"{current_line()} raises {type(error).__name__}: {first_line(error)}")
            raise
        self.recording.finite_checks.follow(func, args, result)
        self.recording.made_numbers.follow(func, args, kwargs, result)
        return result


_GRAD_FN = vars(torch._C.TensorBase)["grad_fn"].__get__
_GRAD = vars(torch._C.TensorBase)["grad"].__get__


def _is_data(value: object) -> bool:
    """Return whether a value is a tensor with other numbers in other runs; not one made of numbers of the code."""
    if isinstance(value, FakeTensor):
        return value.constant is None
    return isinstance(value, Tensor)


def _item(recording: Recording, tensor: Tensor) -> Any:
    if tensor.numel() != 1:
        raise RuntimeError(f"a Tensor with {tensor.numel()} elements cannot be converted to Scalar")
    if tensor.dtype is torch.bool:
        return branch("a boolean of a tensor")
    return numbers.read(recording, tensor)


def _numpy(recording: Recording, tensor: Tensor, *args: object, **kwargs: object) -> Any:
    """Return an array of stand-ins."""
    array = np.empty(tensor.numel(), dtype=object)
    array[:] = numbers.read_all(recording, tensor)
    return array.reshape(tuple(tensor.shape)).view(numbers.ArrayStandIn)


def _tolist(recording: Recording, tensor: Tensor) -> Any:
    return _numpy(recording, tensor).tolist()


def _float(recording: Recording, tensor: Tensor) -> float:
    number = _item(recording, tensor)
    return numbers.plain(number) if numbers.formats_text(sys._getframe(2)) else numbers.converted(number)


def _int(recording: Recording, tensor: Tensor) -> int:
    return numbers.truncated(_item(recording, tensor))


def _text(recording: Recording, tensor: Tensor, *args: object, **kwargs: object) -> str:
    return f"tensor({numbers.read(recording, tensor)!r})"


def _format(recording: Recording, tensor: Tensor, specification: str) -> str:
    if tensor.ndim:
        return _text(recording, tensor)
    return format(numbers.read(recording, tensor), specification)


_READERS: Mapping[object, Callable[..., Any]] = {
    Tensor.item: _item,
    Tensor.tolist: _tolist,
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.__float__: _float,
    Tensor.__int__: _int,
    Tensor.__repr__: _text,
    Tensor.__format__: _format,
}
"""Functions whose result can be printed or logged."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def metric_value() -> Tensor:
    """Return a scalar that stands for the value of a metric; a loss that depends on it is refused."""
    return torch.full((), _METRIC)


def depends_on_numbers(recording: Recording) -> str:
    """Return the message for code that makes other calls if it reads other numbers."""
    lines = ", ".join(dict.fromkeys(recording.reads[:3]))
    return (
        f"The loss depends on numbers that Python reads of tensors: {lines}. A poisoned run can read others, so no "
        "bound exists. Compute with the tensors themselves, or use the numbers for logging alone."
    )


def depends_on_size(line: str) -> str:
    """Return the message for a line that uses a size that depends on data, such as that of ``x[mask]``."""
    return (
        f"{line} uses a size or number that depends on data, so no bound exists. Select samples by a product with a "
        "mask of zeros and ones, and compute with tensors."
    )


def require_known_inputs(graph: Graph) -> None:
    """Require that a loss depends on tensors alone that the graph contains.

    Raises:
        CaptureError: if it depends on a metric, or on a size or number that depends on data, such as ``len(x[mask])``.
    """
    for call in graph.calls:
        if call.arguments.get("fill_value") == _METRIC:
            raise CaptureError(
                f"The loss depends on the value of a metric ({call.source}), which remembers earlier batches, so no "
                "bound exists. Compute the loss from the batch alone."
            )
    inputs = {*graph.parameters, *graph.buffers, *graph.constants, *graph.leaves, *graph.masks}
    known = inputs | {call.name for call in graph.calls}
    for call in graph.calls:
        if not known.issuperset(call.inputs):
            raise CaptureError(depends_on_size(call.source))
    if graph.output not in known:
        raise CaptureError("The loss has a size that depends on data, so no bound exists. Return a scalar.")
