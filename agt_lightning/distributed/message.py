"""Messages between processes: tensors, intervals and text by name, as one run of bytes.

`torch.distributed.all_gather_object` would need no code here, but it pickles. Its documentation warns that this copies
tensors on a GPU to the CPU, and that unpickling can run any code of the sender. Here a short JSON header describes the
message, and the tensors follow as they are in memory, on the device that the collective sends from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from agt_lightning.interval import Interval

Entry = Tensor | Interval | str
"""One part of a message."""

Message = Mapping[str, Entry]
"""Parts by name."""

_LENGTH = 8
"""Bytes of the number that says how long the header is."""

_ALIGNMENT = 16
"""Each tensor begins at a multiple of this many bytes, so that it can be read where it lies."""


def packed(message: Message, device: torch.device) -> Tensor:
    """Return a message as bytes, uint8 (length,) on ``device``; `unpacked` reads it.

    A tensor that stands in several parts is sent once.

    Example:
        >>> there = packed({"box": Interval.point(torch.ones(2)), "note": "hello"}, torch.device("cpu"))
        >>> back = unpacked(there, torch.device("cpu"))
        >>> back["box"].is_point, back["note"]
        (True, 'hello')
    """
    tensors: dict[int, Tensor] = {}
    entries = {name: _described(entry, tensors) for name, entry in message.items()}
    forms = [(str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for tensor in tensors.values()]
    header = json.dumps({"entries": entries, "tensors": forms}).encode()
    header += b" " * (-(_LENGTH + len(header)) % _ALIGNMENT)
    start = torch.frombuffer(bytearray(len(header).to_bytes(_LENGTH, "little") + header), dtype=torch.uint8)
    return torch.cat([start.to(device), *(_bytes(tensor, device) for tensor in tensors.values())])


def unpacked(content: Tensor, device: torch.device) -> dict[str, Entry]:
    """Return the message that `packed` made, with its tensors on ``device``."""
    size = int.from_bytes(bytes(content[:_LENGTH].tolist()), "little")
    header = json.loads(bytes(content[_LENGTH : _LENGTH + size].cpu().numpy()))
    tensors = _tensors(content[_LENGTH + size :].to(device), header["tensors"])
    return {name: _entry(described, tensors) for name, described in header["entries"].items()}


def _described(entry: Entry, tensors: dict[int, Tensor]) -> dict[str, Any]:
    """Return the header's entry for a part, and add its tensors to those of other parts."""
    if isinstance(entry, str):
        return {"text": entry}
    bounds = (entry, entry) if isinstance(entry, Tensor) else (entry.lower, entry.upper)
    for bound in bounds:
        tensors.setdefault(id(bound), bound)
    numbers = [list(tensors).index(id(bound)) for bound in bounds]
    if isinstance(entry, Tensor):
        return {"tensor": numbers[0]}
    return {"bounds": numbers, "nonnegative": entry.nonnegative}


def _entry(described: dict[str, Any], tensors: list[Tensor]) -> Entry:
    if "text" in described:
        text: str = described["text"]
        return text
    if "tensor" in described:
        tensor: Tensor = tensors[described["tensor"]]
        return tensor
    lower, upper = (tensors[number] for number in described["bounds"])
    return Interval.trusted(lower, upper, nonnegative=described["nonnegative"])


def _tensors(content: Tensor, forms: list[tuple[str, list[int]]]) -> list[Tensor]:
    """Read tensors of the given types and shapes, one after another."""
    tensors, position = [], 0
    for name, shape in forms:
        dtype = getattr(torch, name)
        size = torch.Size(shape).numel() * dtype.itemsize
        tensors.append(content[position : position + size].view(dtype).reshape(shape))
        position += size + -size % _ALIGNMENT
    return tensors


def _bytes(tensor: Tensor, device: torch.device) -> Tensor:
    content = tensor.detach().to(device).contiguous().reshape(-1).view(torch.uint8)
    return torch.nn.functional.pad(content, (0, -len(content) % _ALIGNMENT))
