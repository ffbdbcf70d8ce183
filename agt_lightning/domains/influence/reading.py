"""What the influence domain reads off a captured loss: one linear layer, its targets, and their labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agt_lightning.adversaries import Adversary, BoundedAdversary
from agt_lightning.capture import reached
from agt_lightning.domains.base import OptimizerStep
from agt_lightning.domains.head import HeadError, HeadLayer
from agt_lightning.domains.head_loss import match_head_loss
from agt_lightning.domains.losses import SquaredError
from agt_lightning.domains.sgd import SGDSettings, sgd_settings
from agt_lightning.labels import ClassLabels
from agt_lightning.propagation import propagate_forward
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.rules.base import Value, as_interval

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
        direct: whether y is the label itself, up to its shape and type.
        codes: y of each class, (C, K) in float64; None where labels are numbers.
    """

    layer: HeadLayer
    input: str
    target: str
    label: str
    factor: float
    direct: bool
    codes: Tensor | None


def read_labelled_head(bounded: BoundedObjective, module: nn.Module) -> LabelledHead:
    """Find layer, targets and labels.

    Args:
        bounded: the captured loss.
        module: owner of the buffers.

    Raises:
        HeadError: if the loss has another form; the message says what stands in the way, and the way out.
    """
    found = match_head_loss(bounded)
    if not isinstance(found.loss, SquaredError):
        raise HeadError("only squared error is linear in the labels; train with `mse_loss`")
    if len(found.head.layers) != 1:
        raise HeadError(f"{len(found.head.layers)} layers are trained; freeze all but the last linear layer")
    label = _only_label(bounded, found.head.input, found.target)
    codes = _class_targets(bounded, module, label, found.target)
    layer, factor = found.head.layers[0], 2 * found.loss.scale
    return LabelledHead(layer, found.head.input, found.target, label, factor, found.target_is_label, codes)


def reach_problems(head: LabelledHead, adversary: Adversary) -> list[str]:
    """Why this adversary changes more than targets, or targets in a way that is not known, each with its way out."""
    if not isinstance(adversary, BoundedAdversary):
        return ["The influence domain needs a `BoundedAdversary` that changes labels alone."]
    if adversary.perturbs_features and adversary.n > 0:
        return [
            "The influence domain covers changes of labels alone, and features would change with them: set `epsilon=0`."
        ]
    if adversary.perturbs_labels and adversary.q != 0 and not head.direct:
        return [
            "The influence domain needs targets that are the labels themselves where an adversary moves them by `nu`. "
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


def _only_label(bounded: BoundedObjective, head_input: str, target: str) -> str:
    """The one batch entry that the targets come from, which must not change the features."""
    graph = bounded.program.graph
    downstream = {leaf: reached(graph, {leaf}) for leaf in (*graph.leaves, *graph.masks)}
    sources = [leaf for leaf, names in downstream.items() if target in names]
    if len(sources) != 1 or sources[0] not in graph.leaves:
        raise HeadError(f"the targets come from {len(sources)} batch entries or masks; compute them from one label")
    if head_input in downstream[sources[0]]:
        raise HeadError("the labels change the features of the last layer as well; keep them out of its input")
    return sources[0]


def _class_targets(bounded: BoundedObjective, module: nn.Module, label: str, target: str) -> Tensor | None:
    """Targets of all classes, by the code between label and target, if that has one-hot vectors of class labels."""
    graph = bounded.program.graph
    from_label = reached(graph, {label})
    one_hot = [call for call in graph.calls if call.op is _aten.one_hot.default and call.inputs[0] in from_label]
    if not one_hot:
        return None
    sample = graph.shapes[label][1:]
    if torch.Size(sample).numel() != 1:
        raise HeadError(f"each sample has labels of shape {sample}; use one class label a sample")
    every = torch.arange(one_hot[0].shape[-1]).reshape(-1, *sample)
    buffers = dict(module.named_buffers(remove_duplicate=False))
    fixed = {name: buffers[owner] for name, owner in graph.buffers.items()} | dict(graph.constants)
    values: dict[str, Value] = {name: _value(tensor) for name, tensor in fixed.items()}
    values[label] = ClassLabels(every)
    skip = frozenset(call.name for call in graph.calls) - _leading_to(bounded, target)
    codes = as_interval(propagate_forward(bounded.program, values, skip=skip)[target]).lower.reshape(len(every), -1)
    if len(codes.unique(dim=0)) < len(codes):
        raise HeadError("two classes have the same target; give each class its own")
    return codes.double()


def _leading_to(bounded: BoundedObjective, target: str) -> frozenset[str]:
    """Names of the calls that the target is computed by."""
    needed = {target}
    for call in reversed(bounded.program.graph.calls):
        if call.name in needed:
            needed |= set(call.inputs)
    return frozenset(needed)


def _value(tensor: Tensor) -> Value:
    return as_interval(tensor.detach().double().cpu()) if tensor.is_floating_point() else tensor.cpu()
