"""Recording the training of a linear head, one optimizer step at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from agt_lightning.domains.influence.adjoint import HeadStep
from agt_lightning.domains.influence.replay import LabelInfluence
from agt_lightning.domains.influence.samples import SampleTable
from agt_lightning.domains.influence.update import SGDSettings, SGDUpdate


class HeadRecorder:
    """Collects the steps of a linear head that is trained with mean squared error by `torch.optim.SGD`.

    Distinct features are stored once, in the type they come in, and each step as the rows it used: 20 bytes a position.

    Args:
        initial: the head before the first step, (K, D); the last column is the bias, if there is one.
        bias: whether the head has a bias.

    Raises:
        ValueError: if ``initial`` is not a matrix.

    Example:
        >>> recorder = HeadRecorder(torch.zeros(1, 2), bias=True)
        >>> features, targets = torch.tensor([[0.0], [2.0]]), torch.tensor([[-1.0], [1.0]])
        >>> for epoch in range(2):
        ...     recorder.append(features, targets, torch.ones(2), SGDSettings(rate=0.25), epoch=epoch)
        >>> influence = recorder.influence()
        >>> influence.coefficients(torch.tensor([[2.0]]))
        tensor([[0.1250, 0.8750]], dtype=torch.float64)
        >>> influence.outputs(torch.tensor([[2.0]]))
        tensor([[0.7500]], dtype=torch.float64)
    """

    def __init__(self, initial: Tensor, *, bias: bool) -> None:
        if initial.ndim != 2:
            raise ValueError(f"Expected `initial` of shape (outputs, inputs), but got {tuple(initial.shape)}.")
        self._initial = initial.detach().double().clone()
        self._bias = bias
        self._table = SampleTable()
        self._steps: list[HeadStep] = []
        self._started = {"weight": False, "bias": False}

    def append(
        self,
        features: Tensor,
        targets: Tensor,
        slopes: Tensor,
        settings: SGDSettings,
        *,
        bias_settings: SGDSettings | None = None,
        ids: Tensor | None = None,
        epoch: int = 0,
        poisonable: Tensor | None = None,
    ) -> None:
        """Add one optimizer step.

        Args:
            features: what the head saw, without the 1 of the bias, (b, d). If gradients were accumulated, all samples.
            targets: (b, K), in the units of the outputs.
            slopes: c_i, (b,): the gradient of output k is ``Σ_i c_i (w_k·x̂_i - y_ik) x̂_i``; 2 / (b K) for
                `torch.nn.MSELoss`.
            settings: the optimizer's settings at this step, for the weight.
            bias_settings: the same for the bias; None if they agree.
            ids: integers (b,) that name the samples in all epochs; None identifies them by content.
            epoch: number of the epoch. New content after the first epoch leaves only the budget for each batch.
            poisonable: boolean (b,), samples whose label can be changed; None for all.

        Raises:
            ValueError: if shapes do not fit, a value is not finite, or ids come with some steps only.
            UncertifiableError: if one id comes with two targets.
        """
        self._check(features, targets, slopes, ids, poisonable)
        rows = self._table.rows(
            features.detach(), targets.detach().double(), ids=ids, epoch=epoch, poisonable=poisonable
        )
        update = self._update(settings, settings if bias_settings is None else bias_settings)
        self._steps.append(HeadStep(rows, slopes.detach().double().clone(), update))

    def influence(self) -> LabelInfluence:
        """The steps so far, as an immutable record.

        Raises:
            ValueError: if there is no step yet.
        """
        if not self._steps:
            raise ValueError("Expected at least one step, but none was recorded. Call `append` at each step.")
        table = self._table
        return LabelInfluence(
            features=table.features,
            sample_of_row=table.sample_of_row,
            targets=table.targets,
            poisonable=table.poisonable,
            steps=tuple(self._steps),
            initial=self._initial,
            bias=self._bias,
            problem=table.problem,
        )

    def _update(self, weight: SGDSettings, bias: SGDSettings) -> SGDUpdate:
        features = self._initial.shape[1] - int(self._bias)
        columns = [weight.coefficients(started=self._started["weight"])] * features
        if self._bias:
            columns.append(bias.coefficients(started=self._started["bias"]))
        self._started["weight"] |= weight.momentum != 0
        self._started["bias"] |= bias.momentum != 0
        return SGDUpdate.of_columns(columns, self._initial.device)

    def _check(
        self, features: Tensor, targets: Tensor, slopes: Tensor, ids: Tensor | None, poisonable: Tensor | None
    ) -> None:
        outputs, inputs = self._initial.shape
        batch = features.shape[0]
        expected = {"features": (batch, inputs - int(self._bias)), "targets": (batch, outputs), "slopes": (batch,)}
        given = {"features": features, "targets": targets, "slopes": slopes}
        for name, tensor in (("ids", ids), ("poisonable", poisonable)):
            if tensor is not None:
                expected[name], given[name] = (batch,), tensor
        for name, tensor in given.items():
            if tuple(tensor.shape) != expected[name]:
                raise ValueError(f"Expected `{name}` of shape {expected[name]}, but got {tuple(tensor.shape)}.")
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"Expected finite `{name}`, but got NaN or infinity. Remove those samples.")
