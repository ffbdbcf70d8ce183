"""The idx format of MNIST: a header of magic number and lengths, then the elements, row by row."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

_UNSIGNED_BYTE = 0x08
_GZIP = b"\x1f\x8b"
_BLOCK = 1 << 24  # bytes to read at once, however many the header promises


def read_idx(path: Path, shape: Sequence[int | None]) -> Tensor:
    """Unsigned bytes of an idx file, compressed by gzip or not.

    Args:
        path: the file; whether it is compressed is read off its first bytes, not its name.
        shape: the expected length of each dimension, None where any will do.

    Returns:
        Tensor of type uint8 with as many dimensions as ``shape``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not in the format, has another shape, or has fewer or more elements than its header says.
    """
    with path.open("rb") as raw:
        compressed = raw.read(len(_GZIP)) == _GZIP
        raw.seek(0)
        with gzip.open(raw) if compressed else raw as file:
            try:
                return _read(file, path, shape)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise _refusal(path, "a sound gzip file", f"its data are broken: {error}") from error


def _read(file: IO[bytes] | gzip.GzipFile, path: Path, shape: Sequence[int | None]) -> Tensor:
    magic = bytes([0, 0, _UNSIGNED_BYTE, len(shape)])
    found = file.read(4)
    if found != magic:
        raise _refusal(
            path,
            f"the magic number 0x{magic.hex()} (unsigned bytes in {len(shape)} dimensions)",
            f"got 0x{found.hex()}" if len(found) == 4 else f"got only {len(found)} bytes",
        )
    header = file.read(4 * len(shape))
    if len(header) < 4 * len(shape):
        raise _refusal(path, f"{len(shape)} lengths of 4 bytes each in the header", f"got only {len(header)} bytes")
    lengths = [int.from_bytes(header[at : at + 4], "big") for at in range(0, len(header), 4)]
    if any(length < 1 or wanted not in (None, length) for wanted, length in zip(shape, lengths, strict=True)):
        wanted = " × ".join("any" if length is None else str(length) for length in shape)
        raise _refusal(path, f"elements of shape {wanted}", f"got {' × '.join(map(str, lengths))}")
    count = math.prod(lengths)
    content = bytearray()
    while len(content) <= count and (block := file.read(min(_BLOCK, count + 1 - len(content)))):
        content += block  # up to one byte more, which shows a file that is too long and lets gzip verify its checksum
    if len(content) != count:
        raise _refusal(
            path,
            f"{count} bytes after the header",
            "got more" if len(content) > count else f"the file ends after {len(content)}",
        )
    return torch.frombuffer(content, dtype=torch.uint8).reshape(lengths)


def _refusal(path: Path, expected: str, found: str) -> ValueError:
    return ValueError(f"Expected {expected} in {path}, but {found}. Delete the file and get it again from its owner.")
