"""What training wrote into a module besides its parameters, and `forward` reads: poison may have entered it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor, nn

from agt_lightning.capture import Graph
from agt_lightning.capture.replica import replica
from agt_lightning.capture.sameness import same_graph
from agt_lightning.certificates.recording import record_forward
from agt_lightning.errors import CaptureError, UncertifiableError

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class StartOfTraining:
    """A module as it was before its first step.

    Args:
        module: a replica from before the first step. It shares the parameters and has buffers and attributes of its
            own.
        buffers: digests of the buffers before the first step, by name.

    Example:
        >>> module = nn.BatchNorm1d(2)
        >>> start = StartOfTraining.of(module)
        >>> _ = module(torch.rand(4, 2))                   # in training mode: running statistics follow the data
        >>> start.buffer_problems(module, ["running_mean"])
        ['The buffer `running_mean` changed during training and `forward` reads it; ...']
    """

    module: nn.Module
    buffers: Mapping[str, str]

    @classmethod
    def of(cls, module: nn.Module, buffers: Mapping[str, str] | None = None) -> StartOfTraining:
        """Keep a module as it is now.

        Args:
            module: about to be trained; not changed.
            buffers: digests of its buffers before the first step, if this training continues an earlier one.

        Raises:
            CaptureError: if the module cannot be copied.
        """
        copied = replica(module)
        return cls(copied, _buffer_digests(copied) if buffers is None else dict(buffers))

    def buffer_problems(self, module: nn.Module, names: Iterable[str]) -> list[str]:
        """Return a problem for each of these buffers that has other bits than before the first step, or is new.

        Args:
            module: the trained module.
            names: names of the buffers that `forward` reads.
        """
        return [
            f"The buffer `{name}` changed during training and `forward` reads it; it would be different in a poisoned "
            "run. Compute it before training, or certify a `forward` without it."
            for name in self.changed_buffers(module, names)
        ]

    def changed_buffers(self, module: nn.Module, names: Iterable[str] | None = None) -> list[str]:
        """Return the names of the buffers that have other bits than before the first step, or are new.

        Args:
            module: the module of the training.
            names: of the buffers to look at; None means all.
        """
        now = dict(module.named_buffers(remove_duplicate=False))
        looked_at = now if names is None else names
        return [name for name in sorted(set(looked_at)) if tensor_digest(now[name]) != self.buffers.get(name)]

    def forward_recorded_at_start(self, module: nn.Module, x: Tensor, output: str | int | None) -> Graph:
        """Record `forward` as it was before the first step, with the parameters that ``module`` has now.

        Args:
            module: the trained module.
            x: example inputs.
            output: see `CertifiedModel`.

        Raises:
            CaptureError: if the code of that time cannot be recorded.
        """
        return record_forward(_with_parameters_of(module, replica(self.module)), x, output)

    def problems(
        self,
        module: nn.Module,
        graph: Graph,
        x: Tensor,
        output: str | int | None,
        *,
        bounded: Collection[str] = frozenset(),
    ) -> list[str]:
        """Return what training has written that this recording of `forward` depends on, each with a way out.

        Args:
            module: the trained module.
            graph: `forward` of ``module`` as it is now, recorded for ``x``.
            x: example inputs.
            output: see `CertifiedModel`.
            bounded: names of buffers that may have changed, since they have bounds.
        """
        changed = self.buffer_problems(module, set(graph.buffers.values()) - set(bounded))
        if changed or self._computes(module, graph, x, output):
            return changed
        attributes = _changed_attributes(self.module, module)
        reasons = f"Changed since: {', '.join(attributes)}. " if attributes else ""
        return [
            "`forward` computes something else than before training, by more than its parameters; a poisoned run could "
            f"have changed that too. {reasons}Set what `forward` reads before training, or certify a `forward` without "
            "it."
        ]

    def _computes(self, module: nn.Module, graph: Graph, x: Tensor, output: str | int | None) -> bool:
        """Return whether `forward` before the first step is this graph."""
        try:
            return same_graph(self.forward_recorded_at_start(module, x, output), graph)
        except (CaptureError, UncertifiableError, ValueError):
            return False  # what `forward` reads or returns now was not there


def tensor_digest(tensor: Tensor) -> str:
    """Return a digest of type, shape and bits of a tensor, the same on every device.

    Example:
        >>> tensor_digest(torch.zeros(2)) == tensor_digest(torch.zeros(2)), len(tensor_digest(torch.zeros(2)))
        (True, 32)
    """
    digest = blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    values = tensor.detach().cpu().resolve_conj().resolve_neg()
    dense = values if values.layout is torch.strided else values.to_dense()
    digest.update(dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _buffer_digests(module: nn.Module) -> dict[str, str]:
    return {name: tensor_digest(buffer) for name, buffer in module.named_buffers(remove_duplicate=False)}


def _with_parameters_of(module: nn.Module, copied: nn.Module) -> nn.Module:
    """Return the copy with the parameters of ``module``, and with its own buffers on their device."""
    parts = dict(module.named_modules())
    for name, part in copied.named_modules():
        if name in parts:
            part._parameters |= {key: parts[name]._parameters.get(key) for key in part._parameters}
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    for part in copied.modules():
        part._buffers |= {key: None if value is None else value.to(device) for key, value in part._buffers.items()}
    return copied


def _changed_attributes(then: nn.Module, now: nn.Module) -> list[str]:
    """Describe the plain attributes and tensors of all submodules that differ."""
    before, after = _attributes(then), _attributes(now)
    return [
        f"`{name}` ({before.get(name, 'missing')}, now {after.get(name, 'missing')})"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _attributes(module: nn.Module) -> dict[str, str]:
    """Return the attributes of all submodules as texts, by name."""
    return {
        f"{path}.{key}" if path else key: text
        for path, part in module.named_modules()
        for key, value in vars(part).items()
        if not key.startswith("_") and key != "training" and (text := _text(value))
    }


def _text(value: object) -> str:
    """Return a value as text, equal for equal ones; empty if it is no number, string, tensor or list of these."""
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}, digest {tensor_digest(value)[:8]}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_text(item)}' for key, item in value.items())}}}"
    return repr(value) if isinstance(value, _PLAIN) else ""
