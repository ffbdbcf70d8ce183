"""What the certificate of a training states about its validations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agt_lightning.certificates.record import Results, Weights
from agt_lightning.lightning.validation import ValidationResults

_LEFT_OUT = (
    "The results of the last validation do without the bounds of {names}, which take a replay of the training. "
    "`trainer.validate(module, loader)` after training uses them, and `save` writes the certificate anew."
)


class ValidationRecord:
    """The results of the last validation, tied to the weights that it was about."""

    def __init__(self) -> None:
        self._latest: ValidationResults | None = None
        self._reason = ""

    def add(self, results: ValidationResults) -> None:
        """Keep the results of a validation; those of other weights are dropped.

        Args:
            results: also those that have a reason in place of metrics.
        """
        self._reason = results.warning or results.remark
        if results.metrics:
            self._latest = results.after(self._latest)

    def data(self, weights: Weights) -> list[dict[str, object]]:
        """Return what the validation of some weights was evaluated on, one dictionary for each loader.

        Args:
            weights: those that the bounds are about.
        """
        latest = self._latest
        if latest is None or latest.weights != weights:
            return []
        return [{"loader": index, **data} for index, data in sorted(latest.data.items())]

    def metrics(self, weights: Weights) -> Mapping[str, float]:
        """Return the results by name if they are about these weights, else none."""
        latest = self._latest
        return {} if latest is None or latest.weights != weights else latest.metrics

    def described(
        self, weights: Weights, metrics: Mapping[str, float], domains: Mapping[str, object]
    ) -> dict[str, Any]:
        """Return the arguments of `certificate` that depend on validations.

        Args:
            weights: those that the bounds are about.
            metrics: other results of these weights, by name.
            domains: what the certificate states about the domains.
        """
        latest, decided = self._latest, "decided_validation_bounds"
        if latest is not None and latest.weights == weights:
            return {
                "results": Results(weights, {**metrics, **latest.metrics}, latest.domain_shares, latest.by_class),
                "domains": {**domains, decided: latest.domain_shares},
                "remarks": [_LEFT_OUT.format(names=", ".join(latest.left_out))] if latest.left_out else [],
            }
        missing = {"results": Results(weights, metrics), "domains": {**domains, decided: {}}}
        if latest is None or latest.weights is None:
            return {**missing, "remarks": [self._reason] if self._reason else []}
        remark = (
            f"Results of the last step lack those of a validation: the last one with results was after step "
            f"{latest.weights.steps} of {weights.steps}. {self._reason}".rstrip()
        )
        return {**missing, "earlier": Results(latest.weights, latest.metrics), "remarks": [remark]}
