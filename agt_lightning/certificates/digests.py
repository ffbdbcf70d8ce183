"""The digests of weights and bounds that a certificate states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from agt_lightning.bounds import ParameterBounds
from agt_lightning.digest import content_digest


def weights_digests(state: Mapping[str, Any], parameters: Iterable[str]) -> dict[str, str]:
    """Return the digests of the parameters, and of all other tensors, of a module's `state_dict`.

    Args:
        state: from `torch.nn.Module.state_dict`, or of a checkpoint.
        parameters: names of the parameters.

    Raises:
        KeyError: if a parameter is missing.
    """
    named = {name: state[name] for name in parameters}
    others = {name: value for name, value in state.items() if isinstance(value, Tensor) and name not in named}
    return {
        "sha256_of_parameters": content_digest(named),
        "sha256_of_other_tensors": content_digest(others),
    }


def bounds_digest(bounds: ParameterBounds) -> str:
    """Return the digest of all intervals, and of what the bounds say about weights and runs."""
    known = {"weights": bounds.weights, "floats": bounds.floats}
    return content_digest({**known, "intervals": _ends(bounds), "running": _ends(bounds.running)})


def _ends(intervals: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    return {name: {"lower": each.lower, "upper": each.upper} for name, each in intervals.items()}
