"""The process group that Lightning, or any launcher, has made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from agt_lightning.distributed.group import ProcessGroup
from agt_lightning.distributed.message import Entry, Message, packed, unpacked

_FRAME = 2048
"""Bytes of the first exchange, which holds short messages whole."""

_LENGTH = 8
"""Bytes of it that say how long the message is."""


class TorchProcessGroup(ProcessGroup):
    """The default process group of `torch.distributed`, by two of its collectives: all-gather and all-reduce.

    Args:
        device: where this process computes; messages travel through its memory with NCCL, and through that of the CPU
            with gloo.

    Raises:
        RuntimeError: if there is no default process group.

    Attributes:
        sent: bytes that this process has given to collectives so far.
    """

    def __init__(self, device: torch.device) -> None:
        if not dist.is_initialized():
            raise RuntimeError(
                "Expected a process group, but there is none. Call `torch.distributed.init_process_group`."
            )
        self.device = device
        self.sent = 0
        self._transport = torch.device("cpu") if dist.get_backend() == dist.Backend.GLOO else device

    @property
    @override
    def rank(self) -> int:
        return dist.get_rank()

    @property
    @override
    def size(self) -> int:
        return dist.get_world_size()

    @override
    def gather(self, message: Message) -> tuple[Mapping[str, Entry], ...]:
        content = packed(message, self._transport)
        length = torch.frombuffer(bytearray(len(content).to_bytes(_LENGTH, "little")), dtype=torch.uint8)
        frames = self._exchanged(torch.cat([length.to(self._transport), content])[:_FRAME], _FRAME)
        lengths = [int.from_bytes(bytes(frame[:_LENGTH].tolist()), "little") for frame in frames]
        contents = [frame[_LENGTH:] for frame in frames]
        if max(lengths) > _FRAME - _LENGTH:
            contents = self._exchanged(content, max(lengths))
        return tuple(unpacked(content[:length], self.device) for content, length in zip(contents, lengths, strict=True))

    def _exchanged(self, content: Tensor, length: int) -> list[Tensor]:
        """Return what each process gave, padded to one length."""
        own = torch.nn.functional.pad(content, (0, length - len(content)))
        received = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(received, own)
        self.sent += length
        return received

    @override
    def sum(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kinds: dict[torch.dtype, list[str]] = defaultdict(list)
        for name, tensor in tensors.items():
            kinds[tensor.dtype].append(name)
        sums: dict[str, Tensor] = {}
        for names in kinds.values():
            flat = torch.cat([tensors[name].detach().reshape(-1) for name in names]).to(self._transport)
            dist.all_reduce(flat)
            self.sent += flat.numel() * flat.element_size()
            parts = flat.to(self.device).split([tensors[name].numel() for name in names])
            sums |= {name: part.reshape(tensors[name].shape) for name, part in zip(names, parts, strict=True)}
        return {name: sums[name] for name in tensors}
