"""How outputs decide between classes, from what they are and what the training compared them with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import Graph, LabelKind
from agt_lightning.certificates.goals import possible_classes
from agt_lightning.certificates.origin import origin
from agt_lightning.certificates.predictions import Certification
from agt_lightning.certificates.probabilities import (
    before_probabilities,
    behind_logarithm,
    ends_in_sigmoid,
    rounded_type,
)
from agt_lightning.certificates.task import Task
from agt_lightning.errors import UncertifiableError
from agt_lightning.interval import Interval
from agt_lightning.rounding import Floats
from agt_lightning.rules.softmax import probability_error

_ROUNDINGS = 16
"""Roundings of a sigmoid, with margin."""

_SUBJECT = "Predictions of this `forward`"
_BY_THRESHOLD = "Name the threshold between the two classes, as in `certify(x, threshold=0.5)`"
_BOUNDS = "`bound_forward(x)` bounds the outputs themselves, and `CertifiedMSE` their squared error"


@dataclass(frozen=True)
class Decision:
    """A rule by which a value of a network decides between classes.

    Args:
        value: name of the value.
        threshold: each of its elements decides for class 1 if it is larger than this, and for class 0 otherwise; None
            means that the largest of each sample is its class.
    """

    value: str
    threshold: float | None

    def certification(self, outputs: Interval, nominal: Tensor, graph: Graph, floats: Floats) -> Certification:
        """Return the classes on both sides of the threshold; at the threshold itself both are possible.

        Args:
            outputs: bounds on the value, (batch, ...).
            nominal: the value of the trained network.
            graph: the network.
            floats: whether the classes are those of a run as hardware executes it.
        """
        run = self._run_type(graph, floats)
        shape = outputs.shape[:1] if outputs.shape[1:].numel() == 1 else outputs.shape
        logits = self.logits(outputs, run)
        gap = self.gap(graph, logits, floats).expand(logits.shape[0], 1).reshape(-1, *[1] * (logits.lower.ndim - 1))
        logits = logits.widened(gap).rearranged(lambda bound: bound.reshape(-1))
        possible = possible_classes(logits).reshape(*shape, 2)
        label = (nominal > self._threshold).long().reshape(shape)
        label_is_possible = possible.gather(-1, label.unsqueeze(-1)).squeeze(-1)
        return Certification(label, label_is_possible & (possible.sum(dim=-1) == 1), possible)

    def logits(self, outputs: Interval, run: torch.dtype | None = None) -> Interval:
        """Return bounds on outputs less the threshold; rounding keeps their sign, which decides.

        A run compares with the threshold in its own type.
        """
        exact = torch.tensor(self._threshold, dtype=torch.float64)
        threshold = Interval.point(exact).hull(Interval.point(exact if run is None else exact.to(run).double()))
        upper, lower = threshold.upper.to(outputs.device), threshold.lower.to(outputs.device)
        return Interval.trusted((outputs.lower - upper).to(outputs.dtype), (outputs.upper - lower).to(outputs.dtype))

    def gap(self, graph: Graph, scores: Interval, floats: Floats) -> Tensor:
        """Return by how much scores must differ so that a run's outputs do, (batch, 1).

        Outputs that are a sigmoid or softmax of the scores are rounded: probabilities of close scores can be equal, and
        so can sigmoids of large ones, and then the first class is predicted.

        Args:
            graph: the network.
            scores: bounds on the value that decides, (batch, ...).
            floats: whether the outputs are those of a run as hardware executes it.
        """
        run = self._run_type(graph, floats)
        flat = scores.rearranged(lambda bound: bound.reshape(len(bound), -1))
        if run is None or self.value == graph.output:
            return flat.lower.new_zeros(1, 1)
        arithmetic = Arithmetic(run, scores.dtype)
        if flat.shape[1] == 1:
            return flat.lower.new_full((1, 1), 8 * arithmetic.relative(_ROUNDINGS))
        probabilities = behind_logarithm(graph, graph.output)
        if not ends_in_sigmoid(graph, probabilities):
            return 4 * probability_error(flat, arithmetic)
        size = flat.magnitude.amax(dim=1, keepdim=True)
        rounded = 4 * arithmetic.relative(_ROUNDINGS)
        if probabilities == graph.output:
            return rounded / (size.sigmoid() * (-size).sigmoid())
        # A logarithm adds its own rounding to the relative one of a sigmoid; its slope is at least σ(-size).
        return rounded * (2 + size) / (-size).sigmoid()

    def _run_type(self, graph: Graph, floats: Floats) -> torch.dtype | None:
        """Return the coarsest type in which a run computes its outputs from the value; None for real arithmetic."""
        return None if floats == "real" else rounded_type(graph, self.value, graph.output)

    @property
    def _threshold(self) -> float:
        assert self.threshold is not None
        return self.threshold


def decide(graph: Graph, parameters: Mapping[str, str], task: Task | None, threshold: float | None) -> Decision:
    """Return how the outputs of a network decide between classes.

    Args:
        graph: `forward`, with outputs of shape (batch, outputs) or (batch,).
        parameters: names of parameters in the module by value name.
        task: what the training compared with labels; None if that is unknown.
        threshold: the user's, for outputs as they are; None if the largest output is the class, or the only output is a
            logit or the sigmoid of one.

    Raises:
        TypeError: if the threshold is no number.
        UncertifiableError: if the outputs do not decide between classes without a threshold.
        ValueError: if the threshold is not finite.
    """
    if threshold is not None:
        _require_finite(threshold)
        return Decision(graph.output, float(threshold))
    score = before_probabilities(graph, graph.output)
    kinds = None if task is None else _kinds(graph, parameters, task, score)
    if torch.Size(graph.shapes[graph.output][1:]).numel() == 1:
        problem, decision = _problem_of_one(graph, kinds), Decision(score, 0.0)
    else:
        problem, decision = _problem_of_several(graph, kinds), Decision(score, None)
    if problem is not None:
        raise UncertifiableError([problem], _SUBJECT)
    return decision


def _require_finite(threshold: object) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise TypeError(f"Expected `threshold` to be a number, but got {threshold!r} ({type(threshold).__name__}).")
    if not math.isfinite(threshold):
        raise ValueError(f"Expected `threshold` to be finite, but got {threshold}.")


def _kinds(graph: Graph, parameters: Mapping[str, str], task: Task, score: str) -> frozenset[LabelKind]:
    """Return the kinds of labels that the loss compared with the outputs, or with their scores.

    Probabilities that the loss compares as they are, such as a sigmoid with squared error, are no logits.
    """
    return task.kinds(origin(graph, parameters, graph.output)) or task.kinds(origin(graph, parameters, score))


def _problem_of_one(graph: Graph, kinds: frozenset[LabelKind] | None) -> str | None:
    if kinds is None:
        if ends_in_sigmoid(graph, graph.output):
            return None
        return (
            "`forward` returns one number for each sample, which can be a logit or anything else. "
            f"{_BY_THRESHOLD}; for a logit it is `threshold=0.0`."
        )
    if kinds == frozenset({LabelKind.BINARY}):
        return None
    if LabelKind.NUMBER in kinds:
        return (
            "`forward` returns one number for each sample, and the loss compares it with real numbers, not as a logit. "
            f"{_BY_THRESHOLD}. {_BOUNDS}."
        )
    return f"{_UNMATCHED.format(what='one number for each sample')} {_BY_THRESHOLD}, or {_RETURN}"


def _problem_of_several(graph: Graph, kinds: frozenset[LabelKind] | None) -> str | None:
    sigmoids = ends_in_sigmoid(graph, behind_logarithm(graph, graph.output))
    if kinds == frozenset({LabelKind.CLASS}) or kinds is None and not sigmoids:
        return None
    if kinds is None or kinds == frozenset({LabelKind.BINARY}):
        return (
            "`forward` returns several outputs for each sample that are trained on labels of their own, or are "
            "sigmoids: the largest is not the class. Name the threshold of each: `certify(x, threshold=0.0)` for "
            "logits, `threshold=0.5` for sigmoids."
        )
    if LabelKind.NUMBER in kinds:
        return (
            "`forward` returns several numbers for each sample, and the loss compares them with real numbers: the "
            f"largest is not a class. {_BOUNDS}. If these are scores of classes, make their targets in `training_step` "
            "by `F.one_hot(label, classes)`; if each decides for itself, give `certify(x, threshold=...)`."
        )
    return f"{_UNMATCHED.format(what='several numbers for each sample')} {_RETURN[0].upper()}{_RETURN[1:]} {_BOUNDS}."


_UNMATCHED = (
    "`forward` returns {what} that the loss does not compare with labels, so nothing makes them scores of classes."
)
_RETURN = "let `forward` return the value that `training_step` compares with the labels, or its sigmoid or softmax."
