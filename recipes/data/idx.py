"""The idx format of MNIST: a header of magic number and lengths, then the elements, row by row."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_GZIP = b"\x1f\x8b"


def read_idx(path: Path, shape: Sequence[int | None]) -> Tensor:
    """Read the unsigned bytes of an idx file, compressed by gzip or not.

    Args:
        path: the file; its first bytes, not its name, show if it is compressed.
        shape: the expected length of each dimension; None for any.

    Returns:
        Tensor of type uint8 with as many dimensions as ``shape``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not in the format, has another shape, or fewer or more elements than in its header.
    """
    content = path.read_bytes()
    try:
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        magic, start = bytes([0, 0, 8, len(shape)]), 4 + 4 * len(shape)
        if content[:4] != magic or len(content) < start:
            raise ValueError(f"its header is 0x{content[:start].hex()}")
        lengths = np.frombuffer(content, ">u4", len(shape), offset=4).tolist()
        if any(length < 1 or wanted not in (None, length) for wanted, length in zip(shape, lengths, strict=True)):
            raise ValueError(f"its shape is {' × '.join(map(str, lengths))}")
        elements = np.frombuffer(content, np.uint8, offset=start)
        return torch.from_numpy(elements.reshape(lengths).copy())
    except (EOFError, OSError, zlib.error, ValueError) as error:
        wanted = " × ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(
            f"Expected an idx file of unsigned bytes of shape {wanted} in {path}, but {error}. Delete the file and get "
            "it again from its owner."
        ) from error
