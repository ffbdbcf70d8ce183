"""The unbounded adversary of section 2, whose influence is limited by clipping (Theorem D.1)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from agt_lightning.adversaries.base import check_count, check_size, check_unit
from agt_lightning.aggregation import SampleClipping, SampleNormClipping, ValueClipping
from agt_lightning.capture.roles import LabelKind
from agt_lightning.rules.values import Value, as_interval


@dataclass(frozen=True)
class UnboundedAdversary:
    """An adversary that substitutes up to ``n`` samples of **each batch** by any others, or inserts and deletes some.

    It changes training: each sample's gradient is clipped, and the optimizer applies the mean of the clipped gradients
    (Algorithm 1, purple). Without clipping there is no bound.

    Theorem D.1 proves *substitution*. In batches that are cut from a sequence, insertions and deletions shift the
    samples of all later batches. With ``edits="insert-delete"`` they are covered, by another theorem, for batches made
    by content, such as those of `ContentBatches`: an inserted or deleted sample changes one batch of each epoch there.

    Args:
        n: number of substituted samples per batch (per optimizer step, if gradients accumulate); or of inserted and
            deleted ones together, of which a substituted sample is two, if both are in the same batch.
        kappa: clipping level κ, in units of the gradient of one sample's loss, without a factor in front of the mean:
            in ``0.3 * loss.mean()``, gradients of ``loss`` are clipped, and 0.3 is a factor of their mean.
        clip: ``"value"`` cuts each entry of a sample's gradient to [-κ, κ]; ``"norm"`` scales a sample's gradient, over
            all trainable parameters, to Euclidean norm at most κ.
        edits: ``"replace"`` for substitutions, ``"insert-delete"`` for insertions and deletions.
        counts: what n counts: ``"samples"``, or ``"sources"``, each of which can substitute all samples that come from
            it, and adds and removes none. Training is then told whose a sample is, by
            ``CertifiedTraining(..., sources="hospital")``. What stands in that column of a substituted sample has no
            effect, since the samples of a source are those that this run has from it.
        per: where n counts: ``"batch"``, others in every step if the adversary likes, or ``"dataset"``, the same ones
            in all epochs. Bounds of the latter are never wider (docs/theory.md, section 17.3).

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``n`` is negative, ``kappa`` not positive and finite, ``clip``, ``edits``, ``counts`` or ``per``
            unknown, or sources would insert and delete.

    Reference:
        Paper, appendix D, in the weighted form of docs/theory.md, eq. (5.1): Σ w_i δ_i + SEMax_n {w_i (κ - δ_i)}. For
        insertions and deletions docs/theory.md, eq. (5.4); for both in the ball, section 10.12.

    Example:
        >>> UnboundedAdversary(n=2, kappa=0.5)
        UnboundedAdversary(n=2, kappa=0.5, clip='value', edits='replace', counts='samples', per='batch')
        >>> UnboundedAdversary(n=2, kappa=0.0)
        Traceback (most recent call last):
        ...
        ValueError: Expected `kappa` to be finite and positive, but got 0.0.
    """

    n: int
    kappa: float
    clip: Literal["value", "norm"] = "value"
    edits: Literal["replace", "insert-delete"] = "replace"
    counts: Literal["samples", "sources"] = "samples"
    per: Literal["batch", "dataset"] = "batch"

    def __post_init__(self) -> None:
        """Validate the fields, so that each instance is a meaningful threat model."""
        check_count("n", self.n)
        check_size("kappa", self.kappa, positive=True)
        if self.clip not in ("value", "norm"):
            raise ValueError(f"Expected `clip` to be 'value' or 'norm', but got {self.clip!r}.")
        if self.edits not in ("replace", "insert-delete"):
            raise ValueError(f"Expected `edits` to be 'replace' or 'insert-delete', but got {self.edits!r}.")
        check_unit(self.counts, self.per)
        if self.counts == "sources" and self.edits != "replace":
            raise ValueError(
                "Expected `edits='replace'` with `counts='sources'`: nothing bounds how many samples a source inserts. "
                "Count samples, or leave `edits` out."
            )

    @property
    def perturbs_features(self) -> bool:
        """False, since substituted samples are bounded by clipping, not by their features."""
        return False

    @property
    def perturbs_labels(self) -> bool:
        """False, since substituted samples are bounded by clipping, not by their labels."""
        return False

    @property
    def sample_clipping(self) -> SampleClipping:
        """The clipping of each sample's gradient to κ, by value or by norm."""
        return ValueClipping(self.kappa) if self.clip == "value" else SampleNormClipping(self.kappa)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The assumption that each run clips as this one."""
        return ("Every run clips the gradient of each sample as this one did.",)

    def problems(self, label_kind: LabelKind, labels: int, features: int) -> list[str]:
        """Return no problems, since clipping suits all objectives."""
        return []

    def poisoned_features(self, features: Value) -> Value:
        """Return the features unchanged."""
        return features

    def poisoned_labels(self, labels: Tensor, label_kind: LabelKind) -> Value:
        """Return the labels unchanged."""
        return as_interval(labels)
