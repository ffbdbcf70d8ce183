"""Layers that change their buffers as no recording can: under several names, or by a count of their calls."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def shared_statistics(module: nn.Module) -> str | None:
    """Return why batch normalization under several names cannot be recorded; None if there is none in training mode.

    Args:
        module: that is recorded.

    Example:
        >>> layer = nn.BatchNorm1d(2)
        >>> shared_statistics(nn.ModuleDict({"norm": layer, "net": nn.Sequential(layer)}))[:33]
        '`norm` and `net.0` are one layer '
        >>> shared_statistics(nn.Sequential(layer))
    """
    names: dict[nn.Module, list[str]] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, _BatchNorm) and part.training:
            names.setdefault(part, []).append(name)
    shared = next((found for found in names.values() if len(found) > 1), None)
    if shared is None:
        return None
    return (
        f"{' and '.join(f'`{name}`' for name in shared)} are one layer of batch normalization in training mode, whose "
        "running statistics cannot be followed under several names. Keep one name, for example by a list that is no "
        "`ModuleList`; or use `GroupNorm`; or keep that layer in `eval()` during training."
    )


def counted_statistics(module: nn.Module) -> str:
    """Return a sentence on layers that weigh each batch by how many there were, which Python reads; empty if none.

    Args:
        module: that is recorded.

    Example:
        >>> counted_statistics(nn.Sequential(nn.BatchNorm1d(2, momentum=None)))
        ' `0` has `momentum=None`, for which Python reads how often it ran. Give it a number.'
    """
    names = [
        f"`{name}`"
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.training and part.track_running_stats and part.momentum is None
    ]
    return (
        f" {names[0]} has `momentum=None`, for which Python reads how often it ran. Give it a number." if names else ""
    )
