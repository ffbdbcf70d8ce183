"""Random numbers that the user's code draws, used or not: what one run draws more, all later ones find otherwise."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import fx
from torch._ops import OpOverload

from agt_lightning.capture.source import source_of
from agt_lightning.errors import CaptureError

_REJECTING = frozenset(
    {
        "aten._sample_dirichlet",
        "aten._standard_gamma",
        "aten.binomial",
        "aten.poisson",
        "aten.rrelu",
        "aten.rrelu_",
        "aten.rrelu_with_noise",
        "aten.rrelu_with_noise_",
        "aten.rrelu_with_noise_functional",
    }
)
"""Calls that draw as many numbers as values decide: they reject some, or draw for negative elements alone."""


def generator_states() -> tuple[Hashable, ...]:
    """Return the states of all generators of random numbers: of Python, numpy and torch."""
    name, keys, *rest = np.random.get_state()
    assert isinstance(keys, np.ndarray)
    return random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


def seed_all(seed: int) -> None:
    """Seed all these generators on the CPU.

    Example:
        >>> seed_all(3)
        >>> once = generator_states()
        >>> seed_all(3)
        >>> once == generator_states()
        True
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def draws_of(nodes: Iterable[fx.Node], before: tuple[Hashable, ...]) -> Hashable:
    """Return all that a recording has drawn, as a value that is equal for recordings that leave the same states.

    Call it before the states of the generators are put back.

    Args:
        nodes: of the exported program, with those on which its result does not depend.
        before: the `generator_states` before the recording, which are the same before each of them where a state moves.

    Raises:
        CaptureError: if a size that depends on data, or the values that a call is given, decide how many numbers are
            drawn.
    """
    nodes = list(nodes)
    _require_known_number(nodes)
    calls = tuple(_draw(node) for node in nodes if _draws(node))
    pairs = zip(before, generator_states(), strict=True)
    return calls, tuple(None if state == now else now for state, now in pairs)


def _require_known_number(nodes: Iterable[fx.Node]) -> None:
    """Raise if a call draws as many numbers as values decide: its result need not be used for later draws to differ."""
    for node in nodes:
        if isinstance(node.target, OpOverload) and rejects(node.target, node.args, node.kwargs):
            raise CaptureError(
                f"`{node.target.overloadpacket}` at {source_of(node.meta.get('stack_trace'))} draws as many random "
                "numbers as the values decide that it is given, so a poisoned run finds others later. Draw in the data "
                "set, or use `torch.rand` or `torch.randn`, which draw one number for each element."
            )


def _draws(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and draws(node.target, node.args, node.kwargs)


def rejects(op: OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Return whether a call draws as many random numbers as the values decide that it is given."""
    return str(op.overloadpacket) in _REJECTING and draws(op, args, kwargs)


def draws(op: OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Return whether a call draws: it can, is in training mode, and has a probability other than zero."""
    if torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    schema = op._schema.arguments
    given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    given.update(zip((argument.name for argument in schema), args, strict=False))
    given.update(kwargs)
    probability = given.get("p", given.get("dropout_p", given.get("dropout", 1)))
    return bool(probability != 0) and given.get("train", given.get("training", True)) is not False


def _draw(node: fx.Node) -> Hashable:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else (value,)
    shapes = tuple(tuple(each.shape) for each in values if isinstance(each, torch.Tensor))
    if not all(isinstance(size, int) for shape in shapes for size in shape):
        raise CaptureError(
            f"{source_of(node.meta.get('stack_trace'))} draws as many random numbers as data decide, so a poisoned run "
            "finds others later. Draw the same number in every step."
        )
    return str(node.target), shapes


DRAWS_DIFFER = (
    "The code draws random numbers, or sets a seed, where data decide, so a poisoned run finds other ones in later "
    "steps. Draw the same numbers in every step, whether or not they are used."
)
"""Why recordings are refused that draw different random numbers."""
