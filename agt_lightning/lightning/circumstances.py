"""What ties a certificate to one certified training: digests of weights, bounds, data and code, time and place."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from agt_lightning.bounds import ParameterBounds
from agt_lightning.certificates.digests import bounds_digest, weights_digests
from agt_lightning.certificates.environment import hyperparameters, made, sources
from agt_lightning.certificates.record import Circumstances
from agt_lightning.digest import content_digest, file_digest
from agt_lightning.engine import AbstractGradientEngine
from agt_lightning.engine.bounded_runs import BoundedRuns
from agt_lightning.lightning.ledger import TrainedBatches, acceptance_of


def circumstances(
    engine: AbstractGradientEngine,
    runs: BoundedRuns,
    bounds: ParameterBounds,
    path: Path,
    *,
    validation_data: Sequence[dict[str, object]],
    datamodule: object,
    times: tuple[datetime, datetime],
) -> Circumstances:
    """Return what ties the certificate for one adversary to its training.

    Args:
        engine: after the last step.
        runs: those of the adversary.
        bounds: of these runs, for the module's parameters.
        path: their file, written already.
        validation_data: from `ValidationRecord.data`.
        datamodule: the Trainer's; None if it has none.
        times: at which the last `fit` started and ended.
    """
    module, batches = engine.module, TrainedBatches.of(engine)
    parameters = dict(module.named_parameters())
    known = batches.steps == engine.steps
    digests: dict[str, Any] = {
        "weights": weights_digests({**module.state_dict(), **parameters}, parameters),
        "bounds": {"sha256_of_content": bounds_digest(bounds), "sha256_of_file": file_digest(path)},
        "domains": {name: content_digest(domain.state()) for name, domain in runs.domains.in_use.items()},
        "training_batches": batches.plain(),
        "validation_data": list(validation_data),
        "source": sources(module),
        "hyperparameters": hyperparameters(module, datamodule),
    }
    types = {str(p.dtype).removeprefix("torch.") for p in parameters.values() if p.requires_grad}
    return Circumstances(
        digests=digests,
        samples=batches.samples if known else None,
        types=sorted(types),
        acceptance=acceptance_of(engine),
        made=made(module, *times),
    )
