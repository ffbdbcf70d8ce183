"""Nominal and certified metrics of each sample, which can never contradict each other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from agt_lightning.certificates.margins import predicted_classes
from agt_lightning.certificates.values import BoundedValues
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.interval import Interval, require_inside
from agt_lightning.labels import ClassLabels
from agt_lightning.lightning.comparison import Comparison, Metric, MetricUndefinedError
from agt_lightning.rules import Value
from agt_lightning.rules.values import as_interval

_ADVICE = "The trained module itself is one of those that bounds must cover. Please report this."


def sample_metrics(
    compared: Comparison, nominal: Interval, values: BoundedValues, classes: Tensor | None
) -> Mapping[str, Tensor]:
    """Return the metrics of each sample by name, of shape (batch,).

    Args:
        compared: label and prediction.
        nominal: bounds on the trained module's predictions, as wide as rounding.
        values: bounds on all values, predictions and labels among them.
        classes: from `label_classes`.

    Raises:
        UncertifiableError: if they do not fit the predictions.
        UnsoundBoundError: if the trained module does worse than the certificate allows.
    """
    target, outputs = values.values[compared.target], values.outputs
    meets = (nominal.upper >= outputs.lower) & (nominal.lower <= outputs.upper)
    if not bool(meets.all()):
        require_inside("the prediction of the trained module", nominal.center, outputs, 0.0, _ADVICE)
    # What the module predicts lies in both; its center is one of these predictions.
    predicted = torch.minimum(torch.maximum(nominal.center, outputs.lower), outputs.upper)
    if compared.metric is Metric.SQUARED_ERROR:
        wide = (each.to(dtype=torch.float64) for each in (outputs, as_interval(target)))
        return _errors(predicted.double(), *wide)
    assert classes is not None
    return _accuracies(predicted, values, classes)


def label_classes(compared: Comparison, target: Value, outputs: Interval) -> Tensor | None:
    """Return the class of each sample, integers of shape (batch,); None if its label is no class.

    Args:
        compared: label and prediction.
        target: the labels.
        outputs: predictions.

    Raises:
        MetricUndefinedError: if the labels of this batch do not fit the metric.
    """
    if compared.metric is Metric.SQUARED_ERROR:
        return None
    return _classes(target, 2 if compared.metric is Metric.BINARY_ACCURACY else outputs.shape[1])


def _errors(nominal: Tensor, outputs: Interval, truth: Interval) -> dict[str, Tensor]:
    """Return the mean squared error: the trained module's, the largest and the smallest reachable one.

    Labels are as wide as the type of the bounds rounds them.

    Raises:
        UncertifiableError: if labels have another shape than predictions.
    """
    if truth.shape != nominal.shape:
        raise UncertifiableError(
            [
                f"Expected labels of the predictions' shape {tuple(nominal.shape)}, but got {tuple(truth.shape)}, so "
                "that each prediction would be compared with several labels. Reshape the validation data."
            ],
            "The error",
        )
    bounds, error = (outputs - truth).square(), (nominal - truth.center).square()
    return {
        "nominal_mse": _mean(error),
        "certified_mse": _mean(torch.maximum(bounds.upper, error)),
        "best_mse": _mean(torch.minimum(bounds.lower, error)),
    }


def _accuracies(nominal: Tensor, values: BoundedValues, target: Tensor) -> dict[str, Tensor]:
    """Return whether the trained module predicts each sample correctly, and whether every reachable one does.

    Raises:
        UnsoundBoundError: if every reachable one does, and the trained one does not.
    """
    margins = values.margins(target).lower
    certified = ((margins > 0) | torch.nn.functional.one_hot(target, margins.shape[1]).bool()).all(dim=1)
    right = predicted_classes(nominal) == target
    wrong = certified & ~right
    if bool(wrong.any()):
        raise UnsoundBoundError(
            f"Expected the trained module to predict sample {int(wrong.nonzero()[0])} correctly, as every module "
            f"within the bounds does, but it does not. {_ADVICE}"
        )
    return {"nominal_accuracy": right, "certified_accuracy": certified & right}


def _classes(target: Value, classes: int) -> Tensor:
    """Return the class of each sample, integers of shape (batch,).

    Raises:
        MetricUndefinedError: if the labels are no classes.
    """
    labels = target.index if isinstance(target, ClassLabels) else as_interval(target).lower
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _hot(labels)
    flat = labels.reshape(-1)
    if not bool(((flat >= 0) & (flat < classes) & (flat == flat.round())).all()):
        raise MetricUndefinedError(f"Some labels of the validation data are no classes 0 to {classes - 1}.")
    return flat.long()


def _hot(vectors: Tensor) -> Tensor:
    """Return where each vector is largest, if all its other entries are equal.

    Raises:
        MetricUndefinedError: if they are not.
    """
    largest, position = vectors.max(dim=1)
    others = vectors.scatter(1, position[:, None], vectors.amin(dim=1, keepdim=True))
    if not bool(((others.amax(dim=1) == others.amin(dim=1)) & (largest > others.amax(dim=1))).all()):
        raise MetricUndefinedError("Some label vectors of the validation data do not encode one class.")
    return position


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1) if values.ndim > 1 else values
