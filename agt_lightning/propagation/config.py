"""The settings of a certified training that do not belong to module, loss or adversary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import Any, Literal

import torch

from agt_lightning.aggregation.keyword import check_aggregation
from agt_lightning.capture.entries import Selection, check_selection
from agt_lightning.capture.roles import NamedRoles
from agt_lightning.errors import require_one_of
from agt_lightning.memory import require_memory_budget
from agt_lightning.propagation.methods import Method, require_method
from agt_lightning.propagation.samples import Poisonable, SampleIds, Sources
from agt_lightning.rounding import FLOATS, Floats
from agt_lightning.rules import RuleTable

BOUND_TYPES = (torch.float64, torch.float32)
"""Types that bounds can be computed in; a sum in half precision has no correct digit."""

DomainChoice = Literal["auto"] | Sequence[Any]
"""Domains by name or class (`agt_lightning.domains.Domain`), or ``"auto"`` for all built-in ones that apply."""


@dataclass(frozen=True)
class CertificationConfig:
    """How bounds are computed; `CertifiedTraining` and `AbstractGradientEngine` take its fields as keywords.

    Args:
        method: how the box propagates bounds forward, see `agt_lightning.propagation.Method`.
        aggregation: leave it out. Per-sample bounds are summed exactly; the former values ``"moment"`` and ``"auto"``
            are accepted with a warning until the next release.
        domains: which sets of parameters are kept: ``"box"``, ``"ball"``, ``"adjoint"``, ``"influence"``, classes of
            domains, several of them, or ``"auto"`` for all built-in ones that apply but ``"adjoint"``.
        poisonable: which samples can be poisoned: a function from batch to a boolean mask (batch,), or the key of such
            a mask in the batch. None means all.
        sample_ids: names of the samples in all epochs: a function from batch to integers (batch,), or the key of such
            a tensor in the batch. None means that a sample is a distinct pair of features and target.
        sources: whom samples come from, for adversaries with ``counts="sources"``: a function from batch to integers
            (batch,), or the key of such a tensor in the batch.
        features: batch entries that the adversary moves by ε: a key, position or field of the batch, a name as messages
            print it, such as ``"batch['inputs'][0]"``, or a sequence of these. A container means all tensors in it.
            With ``features`` or ``labels``, no other entry is moved; None for both means that the roles are found in
            the captured loss, and asked for where that is not certain.
        labels: batch entries that it moves by ν, likewise.
        memory_budget: bytes for temporary tensors of the aggregation, for bounds inside frozen layers and for the
            coefficients of linear bounds. None means a part of what is available: at most 32 MiB on a CPU, 1 GiB on a
            GPU.
        dtype: floating point type of the bounds' computation, whose rounding they cover.
        floats: ``"run"``: the bounds contain every run as hardware executes it, in the parameters' type and any order
            of summation (docs/floats.md); ``"real"``: every run in real arithmetic.
        rules: bound rules by overload; None means the built-in ones, `agt_lightning.rules.RULES`.

    Raises:
        TypeError: if ``features`` or ``labels`` are no names of batch entries.
        ValueError: if ``method``, ``aggregation`` or ``floats`` is unknown, the budget is not positive, or ``dtype`` is
            neither single nor double precision.

    Example:
        >>> CertificationConfig(method="crown").floats
        'run'
    """

    method: Method = "ibp"
    aggregation: InitVar[str] = "exact"
    domains: DomainChoice = "auto"
    poisonable: Poisonable | None = None
    sample_ids: SampleIds | None = None
    features: Selection | None = None
    labels: Selection | None = None
    memory_budget: int | None = None
    dtype: torch.dtype = torch.float64
    rules: RuleTable | None = None
    floats: Floats = "run"
    sources: Sources | None = None

    def __post_init__(self, aggregation: str) -> None:
        """Refuse unknown values once, for everybody who is given the settings."""
        require_method(self.method)
        check_aggregation(aggregation, stacklevel=4)
        require_one_of("floats", self.floats, FLOATS)
        require_one_of("dtype", self.dtype, BOUND_TYPES)
        require_memory_budget(self.memory_budget)
        check_selection("features", self.features)
        check_selection("labels", self.labels)

    @property
    def roles(self) -> NamedRoles:
        """The batch entries whose roles the user names."""
        return NamedRoles(self.features, self.labels)
