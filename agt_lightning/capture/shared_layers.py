"""Layers that are registered under several names and change their buffers, which `torch.export` cannot translate."""

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
