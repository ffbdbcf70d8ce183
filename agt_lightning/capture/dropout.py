"""Active dropout as a product with a fixed tensor, the mask that was drawn; other random numbers as such tensors.

They do not depend on data or parameters, only on the state of the random number generator. So a poisoned run with
the same seeds draws the same ones, and bounds for these cover it. The masks and numbers of a step are drawn again, from
the state of the generator at the beginning of that training step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.dropout import _DropoutNd

from agt_lightning.capture.graph import ITEM, STEPS_FIRST, STRIDED, Call, Draw, Graph, Mask, Reference
from agt_lightning.capture.layout import FIRST
from agt_lightning.errors import UncertifiableError

_aten = torch.ops.aten

_DROPOUTS = frozenset({_aten.dropout.default, _aten.native_dropout.default, _aten.feature_dropout.default})

_DRAWS = frozenset(
    {
        _aten.normal.float_float,
        _aten.rand.default,
        _aten.rand_like.default,
        _aten.randint.default,
        _aten.randint.low,
        _aten.randint_like.default,
        _aten.randint_like.low_dtype,
        _aten.randn.default,
        _aten.randn_like.default,
    }
)
"""Calls that draw numbers of one distribution, and read no number of a tensor."""

_ALPHA = 1.7580993408473766
"""What `alpha_dropout` drops to, with the opposite sign: the limit of `nn.SELU` at minus infinity."""

_FILLS = frozenset({_aten.full.default, _aten.ones.default, _aten.zeros.default})


@dataclass(frozen=True)
class RandomState:
    """A state of the random number generators, as at the beginning of a training step.

    Args:
        cpu: state of the CPU generator.
        cuda: state of the generator of the current CUDA device; None if there is none.
        at_masks: the states right before each dropout layer of the step; filled by `noting_masks` while it runs.
        after: the state at the end of the step, filled likewise.
    """

    cpu: Tensor
    cuda: Tensor | None
    at_masks: list[RandomState] = field(default_factory=list)
    after: list[RandomState] = field(default_factory=list)

    @classmethod
    def now(cls) -> RandomState:
        """Return the current state, without changing it."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
        return cls(torch.get_rng_state(), cuda)

    def equals(self, other: RandomState, devices: Sequence[torch.device]) -> bool:
        """Return whether both give the same numbers, on the CPU and on some devices."""
        same = torch.equal(self.cpu, other.cpu)
        if not devices:
            return same
        return same and self.cuda is not None and other.cuda is not None and torch.equal(self.cuda, other.cuda)


@contextmanager
def noting_masks(module: nn.Module, state: RandomState) -> Iterator[None]:
    """Note the generators' states at the dropout layers of a step that runs in this context.

    A step may draw other random numbers before its masks. Calls of `torch.nn.functional.dropout` are not seen.

    Args:
        module: the module in training.
        state: at the beginning of the step; the states are added to it.
    """
    layers = [part for part in module.modules() if isinstance(part, _DropoutNd) and part.training and 0 < part.p < 1]
    note = lambda *_: state.at_masks.append(RandomState.now())  # noqa: E731
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield
        state.after.append(RandomState.now())
    finally:
        for handle in handles:
            handle.remove()


def masked(graph: Graph, *, on_cpu: bool = True) -> Graph:
    """Replace active dropout by a product with a mask that is an input of the graph, and random numbers by inputs.

    Attention with dropout becomes attention with a mask of its weights, which a CPU draws as any other: no fused kernel
    of a CPU has dropout. Those of other devices draw in their own way, so that there it stays as it is.

    Args:
        graph: as it was recorded.
        on_cpu: whether the training runs on a CPU.

    Returns:
        The graph, with one entry in ``masks`` for each active dropout and each draw, in the order of drawing.
    """
    masks: dict[str, Mask | Draw] = {}
    calls: list[Call] = []
    fills = {call.name: call for call in graph.calls if call.op in _FILLS}
    for call in graph.calls:
        draw = _draw_of(call, fills)
        if draw is not None:
            masks[call.name] = draw
            continue
        if on_cpu and _drops_weights(call):
            name = f"{call.name}.mask"
            masks[name] = _of_weights(call, graph)
            calls.append(_with_mask(call, name))
            continue
        if _is_alpha_dropout(call):
            name = f"{call.name}.shift"
            masks[name] = Draw(call.op, {"p": call.arguments["p"]}, call.shape, call.dtype)
            calls += _scaled_and_shifted(call, name)
            continue
        p = _drop_probability(call)
        if p is None:
            calls.append(call)
            continue
        name = f"{call.name}.mask"
        channels, steps = call.op is _aten.feature_dropout.default, bool(call.arguments.get(STEPS_FIRST))
        order = call.arguments.get(STRIDED)
        assert order is None or isinstance(order, tuple)
        masks[name] = Mask(p, call.shape, call.dtype, channels, steps, order)
        arguments = {"self": Reference(call.inputs[0]), "other": Reference(name)}
        calls.append(replace(call, op=_aten.mul.Tensor, arguments=arguments))
    shapes = {call.name: call.shape for call in calls} | {name: mask.shape for name, mask in masks.items()}
    types = {call.name: call.dtype for call in calls}
    return replace(
        graph, calls=tuple(calls), shapes={**graph.shapes, **shapes}, types={**graph.types, **types}, masks=masks
    )


def _is_alpha_dropout(call: Call) -> bool:
    given = call.arguments
    active = call.op is _aten.alpha_dropout.default and given["train"] and not given.get(STRIDED)
    return bool(active) and isinstance(given["p"], int | float) and 0 < given["p"] < 1


def _scaled_and_shifted(call: Call, shift: str) -> list[Call]:
    """Return ``x n + b`` of the shift b, which is above zero where x is kept: there n is a, and elsewhere zero.

    With α of `nn.SELU` and ``a = ((α² p + 1) (1 - p))^(-1/2)``, b is ``a α p`` for what is kept and ``a α (p - 1)``
    for the rest. It is what becomes of zeros.
    """
    p = call.arguments["p"]
    assert isinstance(p, int | float)
    scale = 1 / math.sqrt((_ALPHA**2 * p + 1) * (1 - p))
    parts: list[Call] = []

    def write(op: OpOverload, kind: torch.dtype, /, **given: object) -> Reference:
        name = f"{call.name}.{len(parts)}"
        arguments = {each.name: given.get(each.name, each.default_value) for each in op._schema.arguments}
        parts.append(replace(call, name=name, op=op, arguments=arguments, dtype=kind))
        return Reference(name)

    kept = write(_aten.gt.Scalar, torch.bool, self=Reference(shift), other=0)
    ones = write(_aten.to.dtype, call.dtype, self=kept, dtype=call.dtype)
    noise = write(_aten.mul.Tensor, call.dtype, self=ones, other=scale)
    scaled = write(_aten.mul.Tensor, call.dtype, self=Reference(call.inputs[0]), other=noise)
    total = {"self": scaled, "other": Reference(shift), "alpha": 1}
    return [*parts, replace(call, op=_aten.add.Tensor, arguments=total)]


def _drops_weights(call: Call) -> bool:
    p = call.arguments.get("dropout_p")
    return call.op is _aten.scaled_dot_product_attention.default and isinstance(p, int | float) and 0 < p < 1


def _of_weights(call: Call, graph: Graph) -> Mask:
    """Return the mask of the weights of attention, (..., t, s)."""
    p, keys = call.arguments["dropout_p"], graph.shapes[call.inputs[1]][-2]
    assert isinstance(p, int | float)
    return Mask(float(p), (*call.shape[:-1], keys), call.dtype)


def _with_mask(call: Call, name: str) -> Call:
    """Return the call that takes the mask as an argument, and as one of two results what the given call returns."""
    arguments = {**call.arguments, "dropout_mask": Reference(name), ITEM: 0}
    return replace(call, op=_aten._scaled_dot_product_attention_math.default, arguments=arguments)


def _draw_of(call: Call, fills: Mapping[str, Call]) -> Draw | None:
    """Return the draw that a call is; None for other calls, and for distributions that depend on data."""
    if call.op is _aten.normal.Tensor_Tensor and all(name in fills for name in call.inputs):
        standard = [_number(fills[name]) for name in call.inputs] == [0, 1]
        return Draw(_aten.randn.default, {"dtype": call.dtype}, call.shape, call.dtype) if standard else None
    if call.op is _aten.normal_functional.default:
        standard = [call.arguments["mean"], call.arguments["std"], call.arguments["generator"]] == [0.0, 1.0, None]
        drawn = standard and not call.arguments.get(STRIDED)
        return Draw(_aten.randn.default, {"dtype": call.dtype}, call.shape, call.dtype) if drawn else None
    if call.op not in _DRAWS or call.arguments.get(STRIDED) or call.arguments.get("generator") is not None:
        return None
    return Draw(call.op, {**call.arguments, **dict.fromkeys(["self"] if call.inputs else [])}, call.shape, call.dtype)


def _number(fill: Call) -> object:
    return fill.arguments.get("fill_value", 1.0 if fill.op is _aten.ones.default else 0.0)


def masks_of_size(masks: Mapping[str, Mask | Draw], captured: int, samples: int) -> dict[str, Mask | Draw]:
    """Return the masks that a batch of another number of samples draws, if one of their axes counts samples.

    Args:
        masks: of a graph.
        captured: number of samples that it was captured on.
        samples: number of samples of the batch.
    """

    def shape(mask: Mask | Draw) -> tuple[int, ...]:
        layout = mask.layout if isinstance(mask, Mask) else FIRST
        before, (size, *after) = mask.shape[: layout.axis], mask.shape[layout.axis :] or (0,)
        counts_samples = size == captured * layout.folded
        return (*before, samples * layout.folded, *after) if counts_samples else mask.shape

    return {name: replace(mask, shape=shape(mask)) for name, mask in masks.items()}


def draw_masks(masks: Mapping[str, Mask | Draw], device: torch.device, state: RandomState) -> dict[str, Tensor]:
    """Return the masks that the training step drew, by drawing them again in the same order.

    They are drawn one after another from the state at the beginning of the step. If the step has drawn more than these,
    masks alone can still be drawn from the states at their layers, if these were noted.

    Args:
        masks: the masks of a graph, in order, as large as the step draws them.
        device: device on which training runs.
        state: state of the generators at the beginning of the step; their current state is restored afterwards.

    Raises:
        UncertifiableError: if the step has drawn more than these, and it is not known when.
    """
    devices: Sequence[torch.device] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        _set(state, devices)
        drawn = {name: _draw(mask, device) for name, mask in masks.items()}
        if not state.after or state.after[0].equals(RandomState.now(), devices):
            return drawn
        if len(state.at_masks) != len(masks) or any(isinstance(mask, Draw) for mask in masks.values()):
            raise UncertifiableError([_OTHER_DRAWS])
        for at, (name, mask) in zip(state.at_masks, masks.items(), strict=True):
            _set(at, devices)
            drawn[name] = _draw(mask, device)
    return drawn


_OTHER_DRAWS = (
    "`training_step` draws random numbers besides those that the loss reads, so that it is not known which of them the "
    "loss has got. Draw those for logs in another hook, such as `on_train_batch_end`; of dropout, write `nn.Dropout`."
)


def _set(state: RandomState, devices: Sequence[torch.device]) -> None:
    torch.set_rng_state(state.cpu)
    if state.cuda is not None:
        for device in devices:
            torch.cuda.set_rng_state(state.cuda, device)


def _draw(mask: Mask | Draw, device: torch.device) -> Tensor:
    if isinstance(mask, Draw):
        return _numbers(mask, mask.shape, device)
    drawn = _dropped(mask, device)
    return drawn if mask.layout == FIRST else mask.layout.samples_first(drawn)


def _dropped(mask: Mask, device: torch.device) -> Tensor:
    ones = torch.ones(mask.shape, dtype=mask.dtype, device=device)
    if mask.order is not None:
        back = sorted(range(len(mask.order)), key=mask.order.__getitem__)
        ones = ones.permute(mask.order).contiguous().permute(back)
    if mask.steps_first:
        return torch.dropout(ones.transpose(0, 1).contiguous(), mask.p, True).transpose(0, 1)
    return (torch.feature_dropout if mask.whole_channels else torch.dropout)(ones, mask.p, True)


def _drop_probability(call: Call) -> float | None:
    """Return p if the call is an active dropout; None for other calls, and for p = 1, whose scale is infinite."""
    if call.op not in _DROPOUTS or not call.arguments["train"] or call.arguments.get(ITEM, 0) != 0:
        return None
    p = call.arguments["p"]
    return float(p) if isinstance(p, int | float) and 0 < p < 1 else None


def _numbers(draw: Draw, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw again; of a tensor that gives the shape, torch reads nothing else."""
    if draw.op is _aten.alpha_dropout.default:
        return torch.alpha_dropout(torch.zeros(shape, dtype=draw.dtype, device=device), draw.arguments["p"], True)  # type: ignore[arg-type]
    given = {**draw.arguments, "device": device}
    given |= {"self": torch.zeros(shape, dtype=draw.dtype, device=device)} if "self" in given else {"size": list(shape)}
    schema = draw.op._schema.arguments
    result: Tensor = draw.op(
        *(given[each.name] for each in schema if not each.kwarg_only),
        **{each.name: given.get(each.name) for each in schema if each.kwarg_only},
    )
    return result
