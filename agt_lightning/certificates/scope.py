"""What an adversary may change, in a unit, and what is not certified: for whoever compares or relies on a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.base import counted, counted_in, counts_dataset, inserts_and_deletes

_COUNTED = {
    ("samples", "batch"): "Changed samples of the batch of each optimizer step, which can be others in every step; a "
    "changed one is 1.",
    ("sources", "batch"): "Sources that change their samples in the batch of each optimizer step, which can be others "
    "in every step; a source that changes any number of its samples is 1.",
    ("samples", "dataset"): "Changed samples of the data set, the same ones in every step; a changed one is 1.",
    ("sources", "dataset"): "Sources that change their samples, the same ones in every step; a source that changes any "
    "number of its samples is 1.",
}

_EDITED = {
    "batch": "Inserted and deleted samples of the batch of each optimizer step together, which can be others in every "
    "step; a replaced sample is 2, one deleted and one inserted.",
    "dataset": "Inserted and deleted samples of the data set together, the same ones in every epoch; a replaced sample "
    "is 2, one deleted and one inserted.",
}

UNITS: Mapping[tuple[str, str], str] = {
    ("samples", "batch"): "batch",
    ("samples", "dataset"): "dataset",
    ("sources", "batch"): "sources per batch",
    ("sources", "dataset"): "sources per dataset",
}
"""The unit of n in a certificate, by what an adversary counts, and where; samples go without saying."""


def budget(adversary: Adversary, samples: tuple[int, int] | None, steps: int) -> dict[str, Any]:
    """Return the budget of an adversary with its unit, as count and share.

    Args:
        adversary: the threat model.
        samples: the smallest and the largest number of samples of a step; None if not all steps are known.
        steps: number of certified steps.
    """
    edited = inserts_and_deletes(adversary)
    counts, per = counted(adversary), counted_in(adversary)
    return {
        "n": int(adversary.n),
        "unit": UNITS[counts, per],
        "edits": "insert-delete" if edited else "replace",
        "a_replaced_sample_counts": 2 if edited else 1,
        "meaning": _EDITED[per] if edited else _COUNTED[counts, per],
        "samples_per_step": None if samples is None else list(samples),
        "share_of_the_smallest_batch": None
        if samples is None or not samples[0] or counts == "sources"
        else min(1.0, adversary.n / samples[0]),
        "steps": steps,
    }


def not_certified(adversary: Adversary, *, frozen: bool, validated: bool, real: bool) -> list[str]:
    """Return in plain words what a certificate does not say.

    Args:
        adversary: the threat model.
        frozen: whether some parameters were not trained.
        validated: whether there are results on validation data.
        real: whether bounds are about runs in real arithmetic.
    """
    unit = f"{counted(adversary)} of {'the data set' if counts_dataset(adversary) else 'a batch'}"
    listed = (
        ("That the training was run as this file says: nothing in it is signed.", True),
        ("That the data of this run are clean: other runs are compared with this one, whatever its data are.", True),
        (f"Anything about an adversary that changes more than {adversary.n} {unit}, or by more.", True),
        ("Inputs that are changed after training, when the model is used.", True),
        ("Changes to code, settings, initial parameters, the order of the data or their preprocessing.", True),
        ("Other weights than those of the last step, such as averages or an earlier checkpoint.", True),
        ("What the training data can tell about people in them.", True),
        ("Data other than the validation set, whose inputs and labels count as they are.", validated),
        ("How good predictions are: no validation was evaluated with these weights.", not validated),
        ("How the frozen parameters were trained: they are the same in every run.", frozen),
        ("Rounding errors of runs on hardware.", real),
        ("Samples that are inserted or deleted.", not inserts_and_deletes(adversary)),
    )
    return [sentence for sentence, applies in listed if applies]


def metrics(results: Mapping[str, float], shares: Mapping[int, Mapping[str, float]], step: int) -> list[dict[str, Any]]:
    """Return the results of validations side by side: of the trained module, the certified and the best one.

    Args:
        results: by name, as they are logged: ``val_<kind>_<metric>``, with the index of the loader if there are more.
        shares: by index of the loader, the share of the bounds on outputs that each domain decides.
        step: number of steps after which they were made.

    Example:
        >>> metrics({"val_nominal_mse": 1.0, "val_certified_mse": 2.0, "mean_width": 0.1}, {0: {"box": 1.0}}, 4)
        [{'metric': 'mse', 'loader': 0, 'nominal': 1.0, 'certified': 2.0, 'best': None, 'step': 4, 'decided_by':
        {'box': 1.0}}]
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
    for name, value in results.items():
        start, _, loader = name.partition("/dataloader_idx_")
        prefix, _, rest = start.partition("_")
        kind, _, metric = rest.partition("_")
        if prefix == "val" and metric:
            found.setdefault((metric, int(loader or 0)), {})[kind] = value
    return [
        {
            "metric": metric,
            "loader": loader,
            **{kind: values.get(kind) for kind in ("nominal", "certified", "best")},
            "step": step,
            "decided_by": dict(shares.get(loader, {})),
        }
        for (metric, loader), values in found.items()
    ]
