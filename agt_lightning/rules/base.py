"""The interface of a rule: forward bounds, backward bounds and parameter gradients of one ATen overload.

Axis letters: ``b`` samples (always axis 0 of a value that depends on the batch), ``k`` inputs, ``o`` outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from agt_lightning.capture.graph import Call
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.gradients import Deferred, FactoredGradient
from agt_lightning.interval import Interval
from agt_lightning.rules.roundings import UNSTATED, Roundings
from agt_lightning.rules.values import Value, as_interval


@dataclass(frozen=True)
class Site:
    """A call site: a captured call, with the facts about its inputs that hold whatever their values are.

    Args:
        call: the captured call.
        shapes: shapes of the tensor inputs in the captured batch.
        samples: for each tensor input, whether its axis 0 counts samples.
        trainable: for each tensor input, whether it depends on a trainable parameter.
        kinds: types of the tensor inputs that depend on a trainable parameter, as far as they are known.
        types: types of all tensor inputs; empty if they are not known.
    """

    call: Call
    shapes: tuple[tuple[int, ...], ...]
    samples: tuple[bool, ...]
    trainable: tuple[bool, ...]
    kinds: tuple[torch.dtype, ...] = ()
    types: tuple[torch.dtype, ...] = ()

    def __getitem__(self, name: str) -> object:
        """Return an argument of the call by its name in the ATen schema."""
        return self.call.arguments[name]

    def integer(self, name: str) -> int:
        """Return an integer argument."""
        value = self[name]
        assert isinstance(value, int)
        return value

    def number(self, name: str) -> float:
        """Return a numeric argument."""
        value = self[name]
        assert isinstance(value, int | float)
        return float(value)

    @property
    def has_samples(self) -> bool:
        """Whether the result has a sample axis."""
        return any(self.samples)


class Rule(ABC):
    """The bounds of one operation; stateless.

    Every result must contain the exact real-arithmetic result for all inputs in the given intervals. Values with a
    sample axis may have another number of samples than the captured batch, so a rule takes all sizes but the first from
    the call.
    """

    def at(self, site: Site) -> Rule:
        """Return the rule that applies to a call; another one only if this one chooses among several.

        Args:
            site: the call.
        """
        return self

    def roundings(self, site: Site) -> Roundings:
        """Return the roundings of a call; the default is safe for every operation, and wide.

        Args:
            site: the call.
        """
        return UNSTATED

    def problem(self, site: Site) -> str | None:
        """Return why this call cannot be certified, with a way out; None if it can.

        The default is for element-wise operations: only axis 0 may pair samples with each other.
        """
        return alignment_problem(site)

    def takes_parameters(self, site: Site) -> bool:
        """Return whether a call on parameters alone, before they meet the data, has bounds; by default it has not.

        If it has, `backward` takes gradients with a sample axis in front of the result's shape.
        """
        return False

    def takes_constants(self, site: Site) -> bool:
        """Return whether `forward` bounds a call on buffers or constants alone; otherwise it is evaluated as it is.

        By default it does if it accepts the same call where axis 0 of the first input counts samples: with these
        settings, and with that axis in front of those that it is about.
        """
        first = tuple(position == 0 for position in range(len(site.shapes)))
        return self.problem(replace(site, samples=first)) is None

    @abstractmethod
    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        """Return bounds on the result.

        Args:
            site: the call.
            inputs: bounds on its tensor inputs.
        """

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """Return bounds on the per-sample gradient with respect to each input.

        Args:
            site: the call.
            grad: bounds on the gradient with respect to the result.
            inputs: bounds on the call's tensor inputs.
            output: bounds on the result.

        Returns:
            One interval per input, of the input's shape if that has a sample axis; if it is shared, with a sample axis
            in front. None for an input that gets no gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradient.")

    def share(self, site: Site, gradient: Interval, uses: int) -> Interval:
        """Return bounds on a gradient of an input that is one of several summands; see `Rounded`.

        Args:
            site: the call.
            gradient: of one of its inputs.
            uses: number of summands.
        """
        return gradient

    def parameter_gradient(
        self, site: Site, position: int, grad: Interval, inputs: Sequence[Value]
    ) -> FactoredGradient:
        """Return the per-sample gradient with respect to a shared input (a parameter), in factored form.

        The default calls `backward` for a few samples at a time, so every rule has a gradient of bounded memory.

        Args:
            site: the call.
            position: which of the inputs.
            grad: bounds on the gradient with respect to the result.
            inputs: bounds on the call's tensor inputs.
        """

        def evaluate(rows: slice) -> Interval:
            pairs = zip(inputs, site.samples, strict=True)
            part = [value[rows] if has_samples else value for value, has_samples in pairs]  # type: ignore[index]
            gradient = self.backward(site, grad[rows], part, inputs[position])[position]
            assert gradient is not None
            return gradient

        return Deferred.where_large(evaluate, grad.shape[0], tuple(as_interval(inputs[position]).shape))


class ElementwiseRule(Rule):
    """A rule of a call that computes each element of its result from one element of each input, or moves elements.

    Such a call needs no samples: on parameters alone, before they meet the data, it has the same bounds, and `backward`
    takes gradients with a sample axis in front of the result's shape.
    """

    def takes_constants(self, site: Site) -> bool:
        """Accept calls on constants alone."""
        return True

    def takes_parameters(self, site: Site) -> bool:
        """Accept calls on parameters alone, unless they have a `problem`."""
        return True


def alignment_problem(site: Site) -> str | None:
    """Return why a broadcast pairs different samples with each other, with a way out; None if it does not."""
    rank = max((len(shape) for shape in site.shapes), default=0)
    sizes = {shape[0] for shape, samples in zip(site.shapes, site.samples, strict=True) if samples and shape}
    for shape, samples in zip(site.shapes, site.samples, strict=True):
        if samples and len(shape) < rank or not samples and site.has_samples and _spans_samples(shape, rank):
            if not samples and len(shape) == rank and shape[0] in sizes:
                return _rows_of_its_own(site, shape)
            shapes = " and ".join(str(shape) for shape in site.shapes)
            return (
                f"`{name_of(site.call)}` at {site.call.source} broadcasts shapes {shapes} so that each sample meets "
                "all others. Give both the same number of axes, for example with `.squeeze(-1)` on the prediction."
            )
    return None


def _rows_of_its_own(site: Site, shape: tuple[int, ...]) -> str:
    return (
        f"`{name_of(site.call)}` at {site.call.source} meets a tensor of shape {shape} that has a row for each sample "
        "and is not part of the batch, so that no bounds belong to its rows. If they are all equal, make one, which is "
        f"broadcast (shape {(1, *shape[1:])}, as by `torch.zeros(1, ...)`); otherwise put them into the data set."
    )


def _spans_samples(shape: tuple[int, ...], rank: int) -> bool:
    return len(shape) > rank or (len(shape) == rank and shape[0] != 1)


def name_of(call: Call) -> str:
    """Return the name of the op in documentation, such as ``aten.linear``."""
    return str(call.op).rsplit(".", 1)[0]


def address(call: Call) -> str:
    """Return the op, source line and submodule of a call, for messages."""
    return f"`{name_of(call)}` at {call.source}" + (f" in `{call.module}`" if call.module else "")


def located(error: UnsoundBoundError | UncertifiableError, call: Call) -> UnsoundBoundError | UncertifiableError:
    """Return an error that the rule of a call raised, with the call's address in front of messages without one."""
    known = f"`{name_of(call)}` at {call.source}"

    def with_address(message: str) -> str:
        return message if message.startswith(known) else f"{address(call)}: {message}"

    if isinstance(error, UncertifiableError):
        return UncertifiableError([with_address(problem) for problem in error.problems])
    return UnsoundBoundError(with_address(str(error)))


def reduce_to(gradient: Interval, shape: torch.Size, *, samples: bool) -> Interval:
    """Undo broadcasting of a gradient: sum over the axes that were repeated.

    Args:
        gradient: bounds of shape (b, ...), the shape of the broadcast result.
        shape: shape of the input.
        samples: whether the input has a sample axis; if not, that of the gradient stays in front.
    """
    target = tuple(shape) if samples else (gradient.shape[0], *shape)
    if not samples and len(shape) == len(gradient.shape):
        target = (gradient.shape[0], *shape[1:])  # a leading axis of one over the samples
    extra = len(gradient.shape) - len(target)
    dims = list(range(1, 1 + extra))
    rest = gradient.shape[1 + extra :]
    dims += [1 + extra + axis for axis, (have, want) in enumerate(zip(rest, target[1:], strict=True)) if have != want]
    summed = gradient.mapped(lambda bound: bound.sum(dim=dims, keepdim=True)) if dims else gradient
    final = tuple(shape) if samples else (gradient.shape[0], *shape)
    return summed.rearranged(lambda bound: bound.reshape(final)) if tuple(summed.shape) != final else summed
