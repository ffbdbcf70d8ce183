"""Where the influence domain applies: one linear layer, squared error, targets from labels, and SGD."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary, BoundedAdversary, UnboundedAdversary
from agt_lightning.arithmetic import euclidean_norm
from agt_lightning.capture import Graph, reached
from agt_lightning.domains.base import OptimizerStep
from agt_lightning.domains.head import HeadError, HeadLayer
from agt_lightning.domains.head_loss import match_head_loss
from agt_lightning.domains.losses import SquaredError
from agt_lightning.domains.sgd import SGDSettings, sgd_settings
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation import propagate_forward
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.rules.shape import CASTS, RESHAPES
from agt_lightning.rules.values import Value, as_interval

_aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class LabelledHead:
    """A loss ``Σ_i w_i (factor / 2) ‖W x̂_i - y_i‖²`` of one trained linear layer.

    Args:
        layer: the layer, by its names.
        input: name of the value that enters it, (b, d); neither training nor labels change it.
        target: name of the value that holds y, (b, ...); labels alone change it.
        label: name of the batch entry that holds the labels.
        factor: sample i has the slope ``c_i = factor w_i``, for its weight w_i in the loss.
        target_is_label: whether y is the label itself, up to its shape and type.
        codewords: y of each class, (C, K) in float64; None if labels are numbers.
        code_error: largest distance of the target of a class in a run from its codeword.
    """

    layer: HeadLayer
    input: str
    target: str
    label: str
    factor: float
    target_is_label: bool
    codewords: Tensor | None
    code_error: float = 0.0


def match_labelled_head(bounded: BoundedObjective, module: nn.Module) -> LabelledHead:
    """Match layer, targets and labels of a captured loss.

    Args:
        bounded: the captured loss.
        module: owner of the buffers.

    Raises:
        HeadError: if the loss has another form; the message names the obstacle and the way out.
    """
    pattern = match_head_loss(bounded)
    if not isinstance(pattern.loss, SquaredError):
        raise HeadError("only squared error is linear in the labels; train with `mse_loss`")
    if len(pattern.head.layers) != 1:
        raise HeadError(f"{len(pattern.head.layers)} layers are trained; freeze all but the last linear layer")
    features, target = pattern.head.input, pattern.target
    label = _only_label(bounded, features, target)
    codewords, code_error = _codewords(bounded, module, label, target)
    return LabelledHead(
        layer=pattern.head.layers[0],
        input=features,
        target=target,
        label=label,
        factor=2 * pattern.loss.scale,
        target_is_label=pattern.target_is_label,
        codewords=codewords,
        code_error=code_error,
    )


def adversary_problems(adversary: Adversary, head: LabelledHead | None, labels: Collection[str] = ()) -> list[str]:
    """Return the changes of this adversary that the domain does not cover, each with its way out.

    Args:
        adversary: the threat model.
        head: the matched head; None if the loss does not match.
        labels: names of the batch entries that the adversary moves by ν.
    """
    if isinstance(adversary, UnboundedAdversary):
        return [
            "The influence domain needs a `BoundedAdversary` that changes labels alone: without a sample, or with its "
            'gradient clipped, a step is another linear map or none. Use the ball, which covers `clip="norm"`, or the '
            "box."
        ]
    if not isinstance(adversary, BoundedAdversary):
        return ["The influence domain needs a `BoundedAdversary` that changes labels alone. Use the box."]
    if head is None:
        return []
    if adversary.perturbs_features and adversary.n > 0:
        return [
            "The influence domain covers changes of labels alone, and features would change with them: set `epsilon=0`."
        ]
    if adversary.perturbs_labels and set(labels) != {head.label}:
        return ["The influence domain covers changes of the targets' batch entry alone. Name it by `labels=`."]
    if adversary.perturbs_labels and adversary.q == 0 and head.codewords is None:
        return ["The influence domain covers flips of one-hot encoded classes. Use `one_hot` for the targets."]
    if adversary.perturbs_labels and adversary.q != 0 and not head.target_is_label:
        return [
            "The influence domain needs targets that are the labels themselves if an adversary moves them by `nu`. "
            "Compute the targets in the data set."
        ]
    return []


def layer_settings(step: OptimizerStep, layer: HeadLayer) -> tuple[SGDSettings, SGDSettings]:
    """Return the settings that moved weight and bias; a frozen bias has learning rate 0.

    Raises:
        DomainLostError: if the optimizer did not move them, or is none that the domain covers.
    """
    settings = sgd_settings(step, layer.parameters)
    weight = settings[layer.weight]
    if layer.bias is None:
        return weight, weight
    return weight, settings.get(layer.bias, SGDSettings(rate=0.0))


def _only_label(bounded: BoundedObjective, features: str, target: str) -> str:
    """Return the one batch entry that the targets come from, which must not change the features."""
    graph = bounded.program.graph
    downstream = {leaf: reached(graph, {leaf}) for leaf in (*graph.leaves, *graph.masks)}
    sources = [leaf for leaf, names in downstream.items() if target in names]
    if len(sources) != 1 or sources[0] not in graph.leaves:
        raise HeadError(f"the targets come from {len(sources)} batch entries or masks; compute them from one label")
    if features in downstream[sources[0]]:
        raise HeadError("the labels change the features of the last layer as well; keep them out of its input")
    return sources[0]


def _codewords(bounded: BoundedObjective, module: nn.Module, label: str, target: str) -> tuple[Tensor | None, float]:
    """Return the targets of all classes, (C, K) in float64, and how far they can be off in a run.

    There are none if labels are not one-hot encoded. They come from a pass of all class indices through the calls
    between label and target.
    """
    graph = bounded.program.graph
    from_label = reached(graph, {label})
    one_hot = [call for call in graph.calls if call.op is _aten.one_hot.default and call.inputs[0] in from_label]
    if not one_hot:
        return None, 0.0
    if _unshaped(graph, one_hot[0].inputs[0]) != label:
        raise HeadError("the labels are changed before `one_hot`; number the classes from 0 in the data set")
    sample = graph.shapes[label][1:]
    if torch.Size(sample).numel() != 1:
        raise HeadError(f"each sample has labels of shape {sample}; use one class label a sample")
    classes = torch.arange(one_hot[0].shape[-1]).reshape(-1, *sample)
    buffers = dict(module.named_buffers(remove_duplicate=False))
    fixed = {name: buffers[owner] for name, owner in graph.buffers.items()} | dict(graph.constants)
    values: dict[str, Value] = {name: _value(tensor) for name, tensor in fixed.items()}
    values[label] = ClassLabels(classes)
    skip = frozenset(call.name for call in graph.calls) - _leading_to(bounded, target)
    exact = as_interval(propagate_forward(bounded.program.exact, values, skip=skip)[target])
    runs = as_interval(propagate_forward(bounded.program, values, skip=skip)[target])
    codewords = exact.lower.reshape(len(classes), -1)
    apart = torch.maximum(runs.upper - exact.lower, exact.lower - runs.lower).reshape(len(classes), -1)
    if len(codewords.unique(dim=0)) < len(codewords):
        raise HeadError("two classes have the same target; give each class its own")
    return codewords.double(), float(euclidean_norm(apart, dim=1).max()) * (1 + 2.0**-20)


def _unshaped(graph: Graph, name: str) -> str:
    """Return the value that ``name`` is a copy of in another shape or type."""
    call = graph.producer(name)
    while call is not None and call.op in (*RESHAPES, *CASTS):
        name = call.inputs[0]
        call = graph.producer(name)
    return name


def _leading_to(bounded: BoundedObjective, target: str) -> frozenset[str]:
    """Return the names of the values that the target is computed from, and its own."""
    needed = {target}
    for call in reversed(bounded.program.graph.calls):
        if call.name in needed:
            needed |= set(call.inputs)
    return frozenset(needed)


def _value(tensor: Tensor) -> Value:
    return as_interval(tensor.detach().double().cpu()) if tensor.is_floating_point() else tensor.cpu()
