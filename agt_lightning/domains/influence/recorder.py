"""Record the training of a linear head, one optimizer step at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from agt_lightning.domains.influence.replay import HeadStep, LabelInfluence
from agt_lightning.domains.influence.sample_table import SampleTable
from agt_lightning.domains.influence.sgd_map import SGDMap, UpdateFactors
from agt_lightning.domains.sgd import SGDSettings


class HeadRecorder:
    """A growing record of a linear head's training with mean squared error by `torch.optim.SGD`.

    Distinct features are stored once, in their type and on their device, and each step as the rows it used and their
    slopes: 16 bytes a position. So memory grows with the data set, and with epochs by 16 bytes a sample.

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
        self._factors: list[tuple[UpdateFactors, UpdateFactors]] = []
        self._started = {"weight": False, "bias": False}
        self._restarted = False

    def append(
        self,
        features: Tensor,
        targets: Tensor,
        slopes: Tensor,
        settings: SGDSettings,
        *,
        bias_settings: SGDSettings | None = None,
        ids: Tensor | None = None,
        epoch: int | None = None,
        poisonable: Tensor | None = None,
        errors: tuple[float, float] = (0.0, 0.0),
        sources: Tensor | None = None,
    ) -> None:
        """Add one optimizer step.

        Args:
            features: inputs of the head without the 1 of the bias, (b, d); all samples if gradients were accumulated.
            targets: (b, K), in the units of the outputs.
            slopes: c_i, (b,): the gradient of output k is ``Σ_i c_i (w_k·x̂_i - y_ik) x̂_i``; 2 / (b K) for
                `torch.nn.MSELoss`.
            settings: the optimizer's settings at this step, for the weight.
            bias_settings: the same for the bias; None if they agree.
            ids: integers (b,) that identify the samples in all epochs; None to identify them by content.
            epoch: number of the epoch; None makes the step an epoch of its own. New content after the first epoch
                leaves only the budget for each batch.
            poisonable: samples whose label can be changed, boolean (b,); None for all.
            errors: largest distances of a sample's features and targets in a run from these.
            sources: `content_digests` of what the features were computed from; None if it is the features.

        Raises:
            ValueError: if shapes do not fit, a value is not finite, or only some steps have ids.
            UncertifiableError: if one id comes with two targets.
        """
        self._check(features, targets, slopes, ids, poisonable)
        rows = self._table.rows(
            features.detach(),
            targets.detach().double(),
            ids=ids,
            epoch=epoch,
            poisonable=poisonable,
            sources=sources,
        )
        factors = self._next_factors(settings, settings if bias_settings is None else bias_settings)
        self._add(rows, slopes.detach().double().clone(), factors, errors)

    def restart_optimizer(self) -> None:
        """Go on with a new optimizer, which has no momentum buffer yet."""
        self._started = {"weight": False, "bias": False}
        self._restarted = True

    def influence(self, run: torch.dtype | None = None) -> LabelInfluence:
        """Return the steps so far as an immutable record.

        Args:
            run: floating point type in which the runs compute; None for runs in real arithmetic.

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
            run=run,
        )

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return len(self._steps)

    @property
    def named(self) -> bool:
        """Whether samples are identified by ids; if not, a sample is a distinct pair of features and target."""
        return self._table.named

    def last_step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, slopes and update factors of the last step."""
        step = self._steps[-1]
        return step.rows, step.slopes, torch.tensor(self._factors[-1], dtype=torch.float64)

    def state(self) -> dict[str, Any]:
        """Return tensors, numbers and strings for a checkpoint."""
        return {
            "initial": self._initial,
            "bias": self._bias,
            "table": self._table.state(),
            "rows": [step.rows for step in self._steps],
            "slopes": [step.slopes for step in self._steps],
            "numbers": torch.tensor(self._factors, dtype=torch.float64),
            "errors": [list(step.errors) for step in self._steps],
            "started": dict(self._started),
            "restarted": self._restarted,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> HeadRecorder:
        """Return the recorder of a checkpoint, which continues as if it had not been interrupted."""
        recorder = cls(state["initial"], bias=bool(state["bias"]))
        recorder._table = SampleTable.restored(state["table"])
        numbers, errors = state["numbers"].tolist(), state["errors"]
        for rows, slopes, (weight, bias), error in zip(state["rows"], state["slopes"], numbers, errors, strict=True):
            recorder._add(
                rows, slopes, (UpdateFactors(*weight), UpdateFactors(*bias)), (float(error[0]), float(error[1]))
            )
        recorder._started = {name: bool(flag) for name, flag in state["started"].items()}
        recorder._restarted = bool(state.get("restarted", False))
        return recorder

    def _add(
        self, rows: Tensor, slopes: Tensor, factors: tuple[UpdateFactors, UpdateFactors], errors: tuple[float, float]
    ) -> None:
        weight, bias = factors
        features = self._initial.shape[1] - int(self._bias)
        update = SGDMap.of_head(weight, features, bias if self._bias else None, self._initial.device)
        self._steps.append(HeadStep(rows, slopes, update, errors))
        self._factors.append(factors)

    def _next_factors(self, weight: SGDSettings, bias: SGDSettings) -> tuple[UpdateFactors, UpdateFactors]:
        factors = (self._factors_of(weight, "weight"), self._factors_of(bias, "bias"))
        self._started["weight"] |= weight.momentum != 0
        self._started["bias"] |= bias.momentum != 0
        return factors

    def _factors_of(self, settings: SGDSettings, name: str) -> UpdateFactors:
        started = self._started[name]
        factors = UpdateFactors.of_settings(settings, started=started)
        forgets = self._restarted and not started and settings.momentum != 0
        return factors._replace(carry=0.0, keep=0.0) if forgets else factors  # the buffer of an earlier optimizer

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
