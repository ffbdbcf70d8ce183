"""The choice of values that are bounded by backward substitution."""

from agt_lightning.capture import Call
from agt_lightning.propagation.crown.relaxation import Relaxation
from agt_lightning.propagation.crown.table import RELAXATIONS
from agt_lightning.propagation.program import Program


def tightened_values(
    program: Program, skip: frozenset[str] = frozenset(), wanted: frozenset[str] = frozenset()
) -> frozenset[str]:
    """Return the names of the values to bound: inputs of nonlinear calls and of products with trained parameters.

    Interval bounds lose tightness where an affine call combines elements that depend on the same inputs; the elements
    of the inputs themselves do not. Affine calls between such a call and the next reader that needs a box are
    substituted in one piece, and their own results keep interval bounds.

    Args:
        program: the program.
        skip: values that are not computed.
        wanted: values whose own bounds are results.
    """
    kept = [call for call in program.graph.calls if call.name in program.rules and call.name not in skip]
    mixed: set[str] = set()
    loose: set[str] = set()
    targets: set[str] = set()
    for call in kept:
        relaxation, before = RELAXATIONS.get(call.op), set(call.inputs)
        affine = relaxation is not None and relaxation.affine
        combines = relaxation is None or relaxation.combines(program.sites[call.name])
        if not affine or combines or before & mixed:
            mixed.add(call.name)
        if not affine or not (combines and before & mixed or before & loose):
            continue
        if call.name not in wanted and _passes_on(program, [reader for reader in kept if call.name in reader.inputs]):
            loose.add(call.name)
        else:
            targets.add(call.name)
    return frozenset(targets)


def _passes_on(program: Program, readers: list[Call]) -> bool:
    """Whether all readers are affine with fixed parameters, so that none needs the box."""
    return bool(readers) and all(_is_fixed(RELAXATIONS.get(reader.op), program, reader) for reader in readers)


def _is_fixed(relaxation: Relaxation | None, program: Program, call: Call) -> bool:
    return relaxation is not None and relaxation.affine and not relaxation.weighs(program.sites[call.name])
