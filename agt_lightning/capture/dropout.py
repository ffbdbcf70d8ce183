"""Active dropout as a product with a fixed tensor, the mask that was drawn.

The mask does not depend on data or parameters, only on the state of the random number generator. So a poisoned run with
the same seeds draws the same masks, and bounds for these masks cover it. The masks of a step are drawn again, from the
state of the generator at the beginning of that training step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from agt_lightning.capture.graph import ITEM, Call, Graph, Mask, Reference

_aten = torch.ops.aten

_DROPOUTS = frozenset({_aten.dropout.default, _aten.native_dropout.default, _aten.feature_dropout.default})


@dataclass(frozen=True)
class RandomState:
    """A state of the random number generators, as at the beginning of a training step.

    Args:
        cpu: state of the CPU generator.
        cuda: state of the generator of the current CUDA device; None if there is none.
        at_masks: the states right before each dropout layer of the step; filled by `noting_masks` while it runs.
    """

    cpu: Tensor
    cuda: Tensor | None
    at_masks: list[RandomState] = field(default_factory=list)

    @classmethod
    def now(cls) -> RandomState:
        """Return the current state, without changing it."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
        return cls(torch.get_rng_state(), cuda)


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
    finally:
        for handle in handles:
            handle.remove()


def masked(graph: Graph) -> Graph:
    """Replace active dropout by a product with a mask that is an input of the graph.

    Returns:
        The graph, with one entry in ``masks`` for each active dropout, in the order of drawing.
    """
    masks: dict[str, Mask] = {}
    calls: list[Call] = []
    for call in graph.calls:
        p = _drop_probability(call)
        if p is None:
            calls.append(call)
            continue
        name = f"{call.name}.mask"
        masks[name] = Mask(p, call.shape, call.dtype, whole_channels=call.op is _aten.feature_dropout.default)
        arguments = {"self": Reference(call.inputs[0]), "other": Reference(name)}
        calls.append(replace(call, op=_aten.mul.Tensor, arguments=arguments))
    shapes = dict(graph.shapes) | {name: mask.shape for name, mask in masks.items()}
    return replace(graph, calls=tuple(calls), shapes=shapes, masks=masks)


def masks_of_size(masks: Mapping[str, Mask], captured: int, samples: int) -> dict[str, Mask]:
    """Return the masks that a batch of another number of samples draws, if their first axis counts samples.

    Args:
        masks: of a graph.
        captured: number of samples that it was captured on.
        samples: number of samples of the batch.
    """

    def shape(mask: Mask) -> tuple[int, ...]:
        return (samples, *mask.shape[1:]) if mask.shape[:1] == (captured,) else mask.shape

    return {name: replace(mask, shape=shape(mask)) for name, mask in masks.items()}


def draw_masks(masks: Mapping[str, Mask], device: torch.device, state: RandomState) -> dict[str, Tensor]:
    """Return the masks that the training step drew, by drawing them again in the same order.

    Each is drawn from the state at its layer if these were noted, and otherwise one after another from the beginning of
    the step.

    Args:
        masks: the masks of a graph, in order, as large as the step draws them.
        device: device on which training runs.
        state: state of the generators at the beginning of the step; their current state is restored afterwards.
    """
    devices: Sequence[torch.device] = [device] if device.type == "cuda" else []
    states = state.at_masks if len(state.at_masks) == len(masks) else [state]
    drawn: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=devices):
        for at, (name, mask) in enumerate(masks.items()):
            if at < len(states):
                _set(states[at], devices)
            drawn[name] = _draw(mask, device)
    return drawn


def _set(state: RandomState, devices: Sequence[torch.device]) -> None:
    torch.set_rng_state(state.cpu)
    if state.cuda is not None:
        for device in devices:
            torch.cuda.set_rng_state(state.cuda, device)


def _draw(mask: Mask, device: torch.device) -> Tensor:
    ones = torch.ones(mask.shape, dtype=mask.dtype, device=device)
    return (torch.feature_dropout if mask.whole_channels else torch.dropout)(ones, mask.p, True)


def _drop_probability(call: Call) -> float | None:
    """Return p if the call is an active dropout; None for other calls, and for p = 1, whose scale is infinite."""
    if call.op not in _DROPOUTS or not call.arguments["train"] or call.arguments.get(ITEM, 0) != 0:
        return None
    p = call.arguments["p"]
    return float(p) if isinstance(p, int | float) and 0 < p < 1 else None
