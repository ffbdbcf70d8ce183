"""Where the adjoint domain applies: at most one hidden layer, a loss with a derivative, plain SGD, and the ball."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from agt_lightning.adversaries import BoundedAdversary
from agt_lightning.domains.adjoint.curvature import COVERED
from agt_lightning.domains.base import Domain, TrainingSetup
from agt_lightning.domains.head import HeadError
from agt_lightning.domains.head_loss import HeadLossPattern, match_head_loss
from agt_lightning.domains.losses import SoftmaxLoss
from agt_lightning.domains.sgd import plain_sgd_problems

_DEEP = (
    "The adjoint domain covers heads of one trained linear layer, or two with a ReLU between, but {layers} layers are "
    "trained. Freeze all but the last two (`requires_grad_(False)`), or leave the domain out."
)

_LOSS = (
    "The adjoint domain covers mse_loss, binary_cross_entropy_with_logits and cross_entropy: the second derivative of "
    "{loss} jumps. Train with one of them, or leave the domain out."
)

_NO_BALL = (
    "The adjoint domain needs the radius of the ball at every step. Use both, `domains=('ball', 'adjoint')`, with or "
    "without 'box'; for few large steps, where the ball is of no use, `domains=('box', 'adjoint')`."
)

_OUTPUTS = (
    "The adjoint domain with the box alone covers one output, or cross entropy of two classes, but there are {outputs} "
    "outputs. Use `domains=('ball', 'adjoint')`."
)


_ONE_LAYER = (
    "The adjoint domain with the box alone covers two trained layers, but one is trained. Use `domains=('ball', "
    "'adjoint')`."
)


def setup_problems(setup: TrainingSetup, others: Mapping[str, Domain[Any]], dtype: torch.dtype) -> list[str]:
    """Return every reason why the domain does not apply, each with its way out.

    Args:
        setup: the training before a step.
        others: all domains that are kept, by name.
        dtype: in which bounds are computed.
    """
    problems = []
    if "ball" not in others and "box" not in others:
        problems.append(_NO_BALL)
    if not isinstance(setup.adversary, BoundedAdversary):
        problems.append(
            "The adjoint domain needs a `BoundedAdversary`: it does not follow clipped gradients. Use the box."
        )
    if setup.clipping is not None:
        problems.append("The adjoint domain does not cover clipping of the mean gradient. Leave it out.")
    if dtype != torch.float64:
        problems.append("The adjoint domain computes in double precision. Set `dtype=torch.float64` for the bounds.")
    try:
        pattern = match_head_loss(setup.bounded)
    except HeadError as error:
        return [*problems, f"The adjoint domain does not apply: {error}."]
    problems += _pattern_problems(pattern)
    if "ball" not in others and "box" in others:
        problems += _scalar_problems(setup, pattern)
    return [*problems, *plain_sgd_problems("adjoint", setup, pattern.head.parameters)]


def _pattern_problems(pattern: HeadLossPattern) -> list[str]:
    layers, problems = len(pattern.head.layers), []
    if layers > 2:
        problems.append(_DEEP.format(layers=layers))
    if not isinstance(pattern.loss, COVERED):
        problems.append(_LOSS.format(loss="a Huber loss"))
    return problems


def _scalar_problems(setup: TrainingSetup, pattern: HeadLossPattern) -> list[str]:
    if len(pattern.head.layers) == 1:
        return [_ONE_LAYER]
    outputs = len(setup.module.get_parameter(pattern.head.layers[-1].weight))
    softmax = isinstance(pattern.loss, SoftmaxLoss)
    return [] if outputs == (2 if softmax else 1) else [_OUTPUTS.format(outputs=outputs)]
