"""What neither poison nor training reaches: it is the same in every run, and is evaluated as it is, without rules.

Under label flips this is all of a frozen backbone, whatever it computes: attention masks, permutations, class tokens,
statistics of the batch. Of the rest, values whose first axis counts samples are a row of fixed numbers per sample.

Where all calls have rules, nothing is cut off: rules also bound how differently such values can be rounded. What is cut
off is assumed to be computed to the same bits in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary
from agt_lightning.capture import Call, Graph, LossRoles, reached
from agt_lightning.capture.batch_statistics import RUNNING, Running
from agt_lightning.capture.counted_labels import CountedLabels
from agt_lightning.capture.graph import ITEM, Draw, Mask, Reference, map_references
from agt_lightning.propagation.program import Program, is_random

_aten = torch.ops.aten

_LOSSES = frozenset({_aten.cross_entropy_loss.default, _aten.binary_cross_entropy_with_logits.default})
"""Calls that can be fused with what comes before, so that the value that their code reads is none of the graph."""

_NORMALIZATIONS = frozenset(
    {
        _aten._native_batch_norm_legit_functional.default,
        _aten.native_batch_norm.default,
        _aten._native_batch_norm_legit.default,
    }
)
"""Batch normalizations whose arguments for kept statistics are not optional."""

_JOINS = frozenset({_aten.cat.default, _aten.concat.default, _aten.concatenate.default, _aten.stack.default})

_RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True)
class Moves:
    """What the adversaries of a training move together.

    Args:
        features: whether any of them moves features.
        labels: whether any of them moves labels.
        at: path of the submodule whose outputs are moved in place of features of the batch; None if there is none.
        samples: whether any of them replaces whole samples, with all their entries.
    """

    features: bool
    labels: bool
    at: str | None = None
    samples: bool = False

    @classmethod
    def of(cls, adversaries: Iterable[Adversary]) -> Moves:
        """Return what some adversaries, which agree on the place, move together."""
        adversaries = tuple(adversaries)
        places = {getattr(adversary, "at", None) for adversary in adversaries if adversary.perturbs_features}
        return cls(
            any(adversary.perturbs_features for adversary in adversaries),
            any(adversary.perturbs_labels for adversary in adversaries),
            next(iter(places), None),
            any(adversary.sample_clipping is not None for adversary in adversaries),
        )

    def leaves(self, roles: LossRoles) -> set[str]:
        """Return the batch entries that can be moved."""
        if self.samples:
            return set(roles.graph.leaves)
        features = set(roles.features) if self.features and self.at is None else set()
        return features | (set(roles.labels) if self.labels else set())


@dataclass(frozen=True)
class Prelude:
    """The part of a captured loss that is evaluated as it is.

    Args:
        graph: the whole loss.
        calls: those that are evaluated, in order.
        given: names of their results that the rest reads.
    """

    graph: Graph
    calls: tuple[Call, ...]
    given: tuple[str, ...]

    @property
    def parameters(self) -> frozenset[str]:
        """Names in the module of the parameters that it reads."""
        names = {name for call in self.calls for name in call.inputs}
        return frozenset(target for name, target in self.graph.parameters.items() if name in names)

    def values(self, module: nn.Module, leaves: list[Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the values that the rest reads, in the types in which training computes them; see `all_values`."""
        values = self.all_values(module, leaves, masks)
        return {name: values[name] for name in self.given}

    def all_values(self, module: nn.Module, leaves: list[Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all values, in the types in which training computes them.

        Args:
            module: owner of parameters and buffers.
            leaves: the tensors of the batch.
            masks: dropout masks by name.
        """
        graph, buffers = self.graph, dict(module.named_buffers(remove_duplicate=False))
        parameters = dict(module.named_parameters(remove_duplicate=False))
        values: dict[str, Tensor] = {name: parameters[target] for name, target in graph.parameters.items()}
        values |= {name: buffers[target].clone() for name, target in graph.buffers.items()}
        values |= {name: leaves[position] for name, position in graph.leaves.items()}
        values |= dict(graph.constants)
        drawn = {name: mask for name, mask in graph.masks.items() if isinstance(mask, Mask | Draw)}
        values |= {name: mask.to(drawn[name].dtype) for name, mask in masks.items()}
        with torch.no_grad():
            for call in self.calls:
                values[call.name] = _result(call, values)
        return values

    @property
    def running(self) -> tuple[tuple[str, Running], ...]:
        """The running statistics that its calls move, each behind the name of the batch that moves them."""
        kept = ((call.inputs[0], call.arguments[RUNNING]) for call in self.calls if RUNNING in call.arguments)
        return tuple((name, running) for name, running in kept if isinstance(running, Running))


def _result(call: Call, values: Mapping[str, Tensor]) -> Tensor:
    def concrete(reference: Reference) -> Tensor:
        return values[reference.name]

    arguments = {name: map_references(argument, concrete) for name, argument in call.arguments.items()}
    if call.op is _aten.view.default:  # of a copy that the graph leaves out
        return torch.reshape(arguments["self"], arguments["size"])  # type: ignore[arg-type]
    if _joins_within_samples(call):
        arguments["tensors"] = _rows_of_all(arguments["tensors"])  # type: ignore[arg-type]
    schema = call.op._schema.arguments
    result: Any = call.op(
        *(arguments[argument.name] for argument in schema if not argument.kwarg_only),
        **{argument.name: arguments[argument.name] for argument in schema if argument.kwarg_only},
    )
    item = call.arguments.get(ITEM)
    chosen: Tensor = result if item is None else result[item]
    return chosen


def _joins_within_samples(call: Call) -> bool:
    """Return whether a call joins values along another axis than the first, which then is as long in all of them."""
    dim = call.arguments.get("dim")
    other = isinstance(dim, int) and dim % max(len(call.shape), 1) != 0
    return call.op is _aten.stack.default or call.op in _JOINS and other


def _rows_of_all(parts: Sequence[Tensor]) -> list[Tensor]:
    """Repeat a part that is one row for all samples."""
    samples = max(part.shape[0] if part.ndim else 1 for part in parts)
    return [part.expand(samples, *part.shape[1:]) if part.shape[:1] == (1,) else part for part in parts]


def outputs_of(graph: Graph, path: str) -> frozenset[str]:
    """Return the values that a submodule computes and code outside of it reads."""
    inside = {call.name for call in graph.calls if call.module == path or call.module.startswith(f"{path}.")}
    read = {name for call in graph.calls if call.name not in inside for name in call.inputs}
    return frozenset(inside & read)


def place_problems(
    roles: LossRoles,
    path: str,
    module: nn.Module,
    size: int,
    troubled: Collection[str],
    of_one_more: Callable[[], Graph],
) -> list[str]:
    """Return why the outputs of a submodule cannot be what is poisoned, each with its way out.

    Args:
        roles: of the whole loss.
        path: of the submodule.
        module: the whole module.
        size: number of samples.
        troubled: names of the calls that have no rule, or that keep the samples elsewhere than first.
        of_one_more: records the loss on one sample more. Behind troubled calls, it shows which axis counts samples:
            others can be as long.

    Raises:
        CaptureError: if the loss cannot be recorded on one sample more.
    """
    graph = roles.graph
    outputs = outputs_of(graph, path)
    if not outputs or path not in graph.called:
        names = ", ".join(f"`{name}`" for name, _ in module.named_children())
        return [
            f"`at={path!r}` names no submodule that computes what the loss reads. Give the path of one whose `forward` "
            f"`training_step` calls, such as one of {names}."
        ]
    depending = reached(graph, {*trained(roles), *_unrepeatable(graph)})
    problems = []
    if outputs & depending:
        problems.append(
            f"`at={path!r}` poisons outputs of a submodule that depend on trained parameters or random numbers, so "
            "they are not the same in every run. Freeze all parameters before it, or poison the batch itself."
        )
    if any(outputs & (reached(graph, {name}) - {name}) for name in outputs):
        problems.append(f"`at={path!r}` poisons outputs that are computed from one another. Call it once.")
    rows = all(graph.shapes[name][:1] == (size,) and name in roles.samples for name in outputs)
    if rows and outputs & reached(graph, set(troubled)):
        rows = _output_shapes(of_one_more(), path) == [(size + 1, *shape[1:]) for shape in _output_shapes(graph, path)]
    if not rows or not all(graph.types[name].is_floating_point for name in outputs):
        problems.append(
            f"`at={path!r}` poisons outputs that are no floating point numbers with the samples as first axis. Name a "
            "submodule that returns a row per sample."
        )
    if any(call.op in _LOSSES and outputs.intersection(call.inputs) for call in graph.calls):
        problems.append(f"`at={path!r}` poisons predictions. Name a submodule before a trained layer.")
    return problems


def _output_shapes(graph: Graph, path: str) -> list[tuple[int, ...]]:
    outputs = outputs_of(graph, path)
    return [call.shape for call in graph.calls if call.name in outputs]


def cut(
    program: Program, moved: Collection[str], outputs: frozenset[str] = frozenset()
) -> tuple[Graph, Prelude] | None:
    """Cut what is evaluated as it is from the front of a program.

    Args:
        program: with the calls that have no rules.
        moved: names of the inputs that are not the same in every run, parameters among them.
        outputs: names of values that are evaluated, but moved afterwards.

    Returns:
        The rest, and what comes before it; None if nothing needs to be cut off.
    """
    graph = program.graph
    counted = {name for name, mask in graph.masks.items() if isinstance(mask, CountedLabels)}
    moving = reached(graph, {*moved, *counted, *_unrepeatable(graph), *outputs})
    fixed = {call.name for call in graph.calls if call.name not in moving}
    seeds = fixed & (program.troubled | program.mixing)
    if not seeds and not outputs:
        return None
    connected = _before(graph, reached(graph, seeds) & fixed) & fixed
    evaluated = connected | (_before(graph, outputs) & (fixed | outputs))
    graph = _without_statistics(graph, evaluated)
    calls = tuple(call for call in graph.calls if call.name in evaluated)
    rest = tuple(call for call in graph.calls if call.name not in evaluated)
    read = {graph.output, *(name for call in rest for name in call.inputs)}
    given = tuple(call.name for call in calls if call.name in read)
    sizes = {graph.shapes[leaf][:1] for leaf in graph.leaves if leaf in program.samples}
    rows = {name: name in program.samples and graph.shapes[name][:1] in sizes for name in given}
    parameters = {name: target for name, target in graph.parameters.items() if name in read}
    return replace(graph, calls=rest, parameters=parameters, given=rows), Prelude(graph, calls, given)


def trained(roles: LossRoles) -> set[str]:
    """Return the parameters of a loss that are trained, by value name."""
    return {name for name in roles.graph.parameters if name in roles.trainable}


def _without_statistics(graph: Graph, names: Collection[str]) -> Graph:
    """Let calls that normalize by the statistics of their batch not read those that they keep of earlier ones."""
    calls = tuple(_by_own_statistics(call) if call.name in names else call for call in graph.calls)
    read = {name for call in calls for name in call.inputs}
    return replace(graph, calls=calls, buffers={n: target for n, target in graph.buffers.items() if n in read})


def _by_own_statistics(call: Call) -> Call:
    if not call.arguments.get("training") or call.arguments.get("running_mean") is None:
        return call
    op = _aten._native_batch_norm_legit.no_stats if call.op in _NORMALIZATIONS else call.op
    kept = {name: value for name, value in call.arguments.items() if name not in _RUNNING}
    return replace(call, op=op, arguments=kept if op is not call.op else {**call.arguments, **dict.fromkeys(_RUNNING)})


def _unrepeatable(graph: Graph) -> set[str]:
    """Return the calls that draw random numbers, and those that read memory by its layout, which is not recorded.

    Dropout with masks of the graph's own draws none. Attention that is given its mask rounds in another order.
    """
    drawing = (call for call in graph.calls if is_random(call))
    random = {call.name for call in drawing if call.arguments.get("p") != 0 and call.arguments.get("train", True)}
    others = (_aten.as_strided.default, _aten._scaled_dot_product_attention_math.default)
    return random | {call.name for call in graph.calls if call.op in others}


def _before(graph: Graph, names: Iterable[str]) -> set[str]:
    """Return some values and all that they are computed from."""
    needed = set(names)
    for call in reversed(graph.calls):
        if call.name in needed:
            needed.update(call.inputs)
    return needed
