"""Calls that copy elements to other places: permutations, slices, pieces, joins and repetitions.

Each result element is one input element, so bounds move like values and are exact; the gradient of an input element is
the sum over its copies, which the transpose of the call itself gives. A value with a sample axis keeps it in front.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture.graph import ITEM, map_references
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels
from agt_lightning.rules.base import Rule, Site, name_of
from agt_lightning.rules.roundings import EXACT, LinearMap, Roundings
from agt_lightning.rules.shape import map_value
from agt_lightning.rules.values import Value, as_interval

_MAY_REPEAT = (
    torch.ops.aten.embedding,
    torch.ops.aten.index,
    torch.ops.aten.index_select,
    torch.ops.aten.pad,
    torch.ops.aten.upsample_nearest1d,
    torch.ops.aten.upsample_nearest2d,
    torch.ops.aten.upsample_nearest3d,
)
"""Calls that can read an element several times, although their result is no larger than their input."""


class Selection(Rule):
    """A call on one value that moves, drops or repeats elements within each sample; exact."""

    def takes_constants(self, site: Site) -> bool:
        """Accept calls on constants alone, along any axes."""
        return True

    def roundings(self, site: Site) -> Roundings:
        """None forward; backward the gradients of all copies of an element are added."""
        first = int(site.has_samples)
        result, source = math.prod(site.call.shape[first:]), math.prod(site.shapes[0][first:])
        repeats = site.call.op.overloadpacket in _MAY_REPEAT or result > source
        return LinearMap(0, result if repeats else 0)

    def takes_parameters(self, site: Site) -> bool:
        """Accept calls on parameters alone, at places that are fixed."""
        return not any(site.trainable[1:])

    def problem(self, site: Site) -> str | None:
        """Refuse calls that move elements from one sample to another, found by a trial on numbered samples."""
        if not site.samples[0] or any(site.samples[1:]) or any(site.trainable[1:]):
            return (
                f"`{name_of(site.call)}` at {site.call.source} takes positions from the batch or from parameters. "
                "Only positions that are the same for all samples are supported."
            )
        return None if self._keeps_rows(site) else _moved(site)

    def _keeps_rows(self, site: Site) -> bool:
        """Return whether every sample keeps its row, both for one sample and for one more than captured."""
        for samples in (1, site.shapes[0][0] + 1):
            rows = torch.arange(samples, dtype=torch.float64)
            try:
                moved = self._call(site, self._probes(site, rows))
            except (RuntimeError, IndexError):
                return False
            if moved.shape[:1] != rows.shape or not bool((moved.reshape(samples, -1) == rows[:, None]).all()):
                return False
        return True

    def _probes(self, site: Site, rows: Tensor) -> list[Tensor]:
        """Return inputs whose elements are the number of their sample, and zero for indices."""
        others = [torch.zeros(shape, dtype=torch.int64) for shape in site.shapes[1:]]
        return [_numbered(rows, site.shapes[0]), *others]

    def arguments(self, site: Site, samples: int) -> dict[str, object]:
        """Return the call's arguments for this many samples."""
        return dict(site.call.arguments)

    def _call(self, site: Site, tensors: Sequence[Tensor]) -> Tensor:
        """Apply the call to other tensors."""
        supply = iter(tensors)
        arguments = self.arguments(site, tensors[0].shape[0] if tensors[0].ndim else 1)
        item = arguments.pop(ITEM, None)
        values = {
            argument.name: map_references(arguments[argument.name], lambda _: next(supply))
            for argument in site.call.op._schema.arguments
        }
        result = site.call.op(**values)
        moved: Tensor = result if item is None else result[item]
        return moved

    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        """The elements in their new places."""
        others = [_fixed_indices(value) for value in inputs[1:]]
        return map_value(inputs[0], lambda tensor: self._call(site, [tensor, *others]))

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """The gradient carried back to where each element came from, summed over its copies."""
        shape, others = as_interval(inputs[0]).shape, [_fixed_indices(value) for value in inputs[1:]]

        def carried(bound: Tensor) -> Tensor:
            return _carried(lambda tensors: self._call(site, [*tensors, *others]), [shape], bound, site)[0]

        return [grad.mapped(carried, nonnegative=grad.nonnegative), *[None] * len(others)]


class Expansion(Selection):
    """``expand``: axes of size one repeated, the samples' axis left as it is; exact."""

    def arguments(self, site: Site, samples: int) -> dict[str, object]:
        """Return the arguments with the value's number of samples."""
        size = site["size"]
        assert isinstance(size, list)
        if not site.has_samples:
            return dict(site.call.arguments)
        whole = size[:1] in ([-1], [site.shapes[0][0]])
        return dict(site.call.arguments) | ({"size": [samples, *size[1:]]} if whole else {})


class NearestUpsampling(Selection):
    """``upsample_nearest``: the nearest element along each axis of an image; exact.

    Which one is nearest is computed from a ratio of sizes that kernels round in the type of the image: in another type
    an image can have other elements. Gradients go back by the ratio in single precision, also in double precision.
    """

    def _call(self, site: Site, tensors: Sequence[Tensor]) -> Tensor:
        # Shorter types compute in single precision.
        return self._read(site, tensors[0], torch.float64 if site.call.dtype == torch.float64 else torch.float32)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """The gradient carried back by the places of both passes."""
        shape, (direct,) = as_interval(inputs[0]).shape, super().backward(site, grad, inputs, output)
        assert direct is not None
        if site.call.dtype != torch.float64:
            return [direct]
        in_single = grad.mapped(
            lambda bound: _carried(lambda each: self._read(site, each[0], torch.float32), [shape], bound, site)[0]
        )
        return [direct if _same(direct, in_single) else direct.hull(in_single)]

    def _read(self, site: Site, image: Tensor, kind: torch.dtype) -> Tensor:
        """Return the elements of an image at the places that are computed in this type."""
        for axis, places in enumerate(self._places(site, image.device, kind), start=2):
            image = image.index_select(axis, places)
        return image

    def _places(self, site: Site, device: torch.device, kind: torch.dtype) -> Iterator[Tensor]:
        """Yield the positions along each axis of the image that the elements of the result are read from."""
        image = site.shapes[0][2:]
        for axis, size in enumerate(image):
            lengths = [size if other == axis else 1 for other in range(len(image))]
            numbers = torch.arange(size, dtype=kind, device=device).reshape(1, 1, *lengths).expand(1, 1, *image)
            read = super()._call(site, [numbers.contiguous()])
            yield read.movedim(2 + axis, 0).flatten(1)[:, 0].long()


class Padding(Selection):
    """``pad``: a frame of one number, or of copies of elements, around axes other than the samples'."""

    def roundings(self, site: Site) -> Roundings:
        """That of the frame's number to the type of the call; backward as of any selection."""
        moves = super().roundings(site)
        assert isinstance(moves, LinearMap)
        fill = site["value"]
        return FrameRoundings(moves.terms, moves.gradient_terms, float(fill) if isinstance(fill, int | float) else 0.0)

    def _keeps_rows(self, site: Site) -> bool:
        """Return whether the widths, two for each axis from the last, leave axis 0 out."""
        widths = site["pad"]
        assert isinstance(widths, list)
        return len(widths) <= 2 * (len(site.shapes[0]) - 1)

    def forward(self, site: Site, inputs: Sequence[Value]) -> Value:
        """The elements and their frame; they are no longer known to be nonnegative if its number is negative."""
        image, fill = inputs[0], site["value"]
        if isinstance(image, Interval) and isinstance(fill, int | float) and fill < 0:
            return image.mapped(lambda bound: self._call(site, [bound]))
        return super().forward(site, inputs)


def _same(first: Interval, second: Interval) -> bool:
    return torch.equal(first.lower, second.lower) and torch.equal(first.upper, second.upper)


@dataclass(frozen=True)
class FrameRoundings(LinearMap):
    """Elements are moved, and a frame of one number is put around them, which is rounded to the type of the call.

    Args:
        fill: the number.
    """

    fill: float = 0.0

    @override
    def forward(self, rule: Rule, site: Site, inputs: Sequence[Value], arithmetic: Arithmetic) -> Value:
        framed = super().forward(rule, site, inputs, arithmetic)
        if not isinstance(framed, Interval) or all(_holds(kind, self.fill) for kind in (arithmetic.run, framed.dtype)):
            return framed
        number = Interval.point(framed.lower.new_tensor(self.fill), nonnegative=self.fill >= 0)
        stored = arithmetic.clear_of_underflow(arithmetic.outward(number))
        elements = Interval.point(torch.zeros_like(as_interval(inputs[0]).lower))
        inside = as_interval(rule.forward(site, [elements, *inputs[1:]])).lower == 0  # the frame's number is not zero
        lower, upper = (
            torch.where(inside, bound, end)
            for bound, end in ((framed.lower, stored.lower), (framed.upper, stored.upper))
        )
        return Interval.trusted(lower, upper, nonnegative=framed.nonnegative)


def _holds(kind: torch.dtype | None, number: float) -> bool:
    """Return whether a type, or real arithmetic, has this number."""
    return kind is None or float(torch.tensor(number, dtype=kind)) == number


class Join(Selection):
    """``cat`` and ``stack`` along another axis than the samples', also with a part that all samples share; exact."""

    def roundings(self, site: Site) -> Roundings:
        """None forward, since the result has the finest type of the parts; backward one in parts of coarser types."""
        return EXACT if set(site.kinds) <= {site.call.dtype} else LinearMap(0, 1)

    def takes_parameters(self, site: Site) -> bool:
        """Accept parts that are all parameters or fixed."""
        return True

    def problem(self, site: Site) -> str | None:
        """Refuse shared parts that are not one row for all samples, and joins along the samples' axis."""
        pairs = zip(site.shapes, site.samples, strict=True)
        if any(not samples and shape[:1] != (1,) for shape, samples in pairs):
            return (
                f"`{name_of(site.call)}` at {site.call.source} joins samples with a value that is shared by all. Give "
                "each sample the same one, `value.expand(len(x), -1, -1)`, and join along another axis."
            )
        return None if self._keeps_rows(site) else _moved(site)

    def _probes(self, site: Site, rows: Tensor) -> list[Tensor]:
        """Return parts with the same numbers."""
        return [_numbered(rows, shape) for shape in site.shapes]

    def forward(self, site: Site, inputs: Sequence[Value]) -> Interval:
        """The parts side by side."""
        parts = [as_interval(value) for value in inputs]
        lower = self._joined(site, [part.lower for part in parts])
        nonnegative = all(part.nonnegative for part in parts)
        if all(part.is_point for part in parts):
            return Interval.point(lower, nonnegative=nonnegative)
        return Interval.trusted(lower, self._joined(site, [part.upper for part in parts]), nonnegative=nonnegative)

    def _joined(self, site: Site, parts: Sequence[Tensor]) -> Tensor:
        """Join parts, of which a shared one is repeated for each sample."""
        samples = max((len(part) for part, own in zip(parts, site.samples, strict=True) if own), default=0)
        whole = [
            part if own or not site.has_samples else part.expand(samples, *part.shape[1:])
            for part, own in zip(parts, site.samples, strict=True)
        ]
        return self._call(site, whole)

    def backward(self, site: Site, grad: Interval, inputs: Sequence[Value], output: Value) -> Sequence[Interval | None]:
        """Each part's share of the gradient."""
        shapes = [as_interval(value).shape for value in inputs]
        pairs = list(zip(shapes, site.samples, strict=True))
        whole = [
            shape if own or not site.has_samples else torch.Size((grad.shape[0], *shape[1:])) for shape, own in pairs
        ]
        lower = _carried(lambda tensors: self._call(site, tensors), whole, grad.lower, site)
        upper = lower
        if not grad.is_point:
            upper = _carried(lambda tensors: self._call(site, tensors), whole, grad.upper, site)
        gradients = []
        for (shape, own), *ends in zip(pairs, lower, upper, strict=True):
            bounds = Interval.trusted(*ends, nonnegative=grad.nonnegative)
            shared = site.has_samples and not own
            gradients.append(_unflattened(bounds, shape) if shared else bounds)
        return gradients


def _unflattened(gradient: Interval, shape: torch.Size) -> Interval:
    """Return a gradient with a sample axis in front of a shape."""
    return gradient.rearranged(lambda bound: bound.reshape(bound.shape[0], *shape))


def _carried(
    linear: Callable[[Sequence[Tensor]], Tensor], shapes: Sequence[torch.Size], gradient: Tensor, site: Site
) -> tuple[Tensor, ...]:
    """Apply the transpose to a gradient, sample by sample if the call itself has no samples."""
    if site.has_samples:
        return _transpose(linear, shapes, gradient)
    carried = torch.func.vmap(lambda sample: _pulled(linear, [sample.new_zeros(shape) for shape in shapes], sample))
    return tuple(carried(gradient))


def _pulled(
    linear: Callable[[Sequence[Tensor]], Tensor], inputs: Sequence[Tensor], gradient: Tensor
) -> tuple[Tensor, ...]:
    pulled: tuple[Tensor, ...] = torch.func.vjp(lambda *tensors: linear(tensors), *inputs)[1](gradient)
    return pulled


def _transpose(
    linear: Callable[[Sequence[Tensor]], Tensor], shapes: Sequence[torch.Size], gradient: Tensor
) -> tuple[Tensor, ...]:
    """Apply the transpose of a linear function to a gradient.

    Its matrix has entries zero and one, so it is non-decreasing and maps bounds to bounds.
    """
    with torch.enable_grad():
        inputs = [gradient.new_zeros(()).expand(shape).requires_grad_() for shape in shapes]
        return torch.autograd.grad(linear(inputs), inputs, gradient)


def _numbered(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor whose elements are the number of their sample."""
    return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(len(rows), *shape[1:])


def _fixed_indices(value: Value) -> Tensor:
    """Return indices that are the same for every sample."""
    tensor = value.lower if isinstance(value, Interval) else value.index if isinstance(value, ClassLabels) else value
    return tensor if tensor.dtype == torch.bool else tensor.long()


def _moved(site: Site) -> str:
    return (
        f"`{name_of(site.call)}` at {site.call.source} moves, cuts or mixes the samples' axis. Keep the batch whole as "
        "first axis and choose among the others, for example `x.transpose(1, 2)` or `x[:, 0]`. If a layer of torch "
        "does it inside, write that layer yourself: for attention, "
        "`F.scaled_dot_product_attention` takes queries, keys and values with the batch first."
    )
