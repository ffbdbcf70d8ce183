import gzip
import re

import pytest
import torch

from recipes.data.idx import read_idx

VALUES = torch.arange(24, dtype=torch.uint8).reshape(4, 2, 3)


def idx_bytes(values, magic=None):
    header = magic or bytes([0, 0, 8, values.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.numpy().tobytes()


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "images"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("values", [VALUES, VALUES.flatten()], ids=["images", "labels"])
def test_reads_what_was_written_whatever_its_name(written, pack, values):
    read = read_idx(written(pack(idx_bytes(values))), (None,) * values.ndim)
    assert read.dtype == torch.uint8
    assert torch.equal(read, values)


def test_what_is_read_can_be_written_to(written):
    read_idx(written(idx_bytes(VALUES)), (4, 2, 3)).zero_()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the magic number 0x00000803 (unsigned bytes in 3 dimensions)"),
        (b"\0\0", "got only 2 bytes"),
        (idx_bytes(VALUES, b"\0\0\x0d\x03"), "got 0x00000d03"),  # floats
        (b"PK\x03\x04 a zip", "got 0x504b0304"),
        (b"<!DOCTYPE html>", "got 0x3c21444f"),
        (idx_bytes(VALUES.flatten()), "got 0x00000801"),
        (idx_bytes(VALUES)[:10], "3 lengths of 4 bytes each in the header"),
        (idx_bytes(VALUES.mT), "elements of shape any × 2 × 3 in"),
        (idx_bytes(VALUES.mT), "got 4 × 3 × 2"),
        (idx_bytes(VALUES[:0]), "got 0 × 2 × 3"),
        (idx_bytes(VALUES)[:-1], "24 bytes after the header"),
        (idx_bytes(VALUES)[:-1], "the file ends after 23"),
        (idx_bytes(VALUES) + b"\0", "got more"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_another_file_is_refused_in_one_message(written, pack, content, expected):
    path = written(pack(content))
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        read_idx(path, (None, 2, 3))
    message = str(caught.value)
    assert message.startswith("Expected ")
    assert str(path) in message
    assert "Delete the file and get it again" in message
    assert "\n" not in message


def flipped(content, at):
    changed = bytearray(content)
    changed[at] ^= 0xFF
    return bytes(changed)


PACKED = gzip.compress(idx_bytes(VALUES))


@pytest.mark.parametrize(
    "content",
    [
        PACKED[:5],
        PACKED[:-10],
        PACKED[:-2],
        flipped(PACKED, -5),
        flipped(PACKED, -1),
        flipped(PACKED, 2),
        PACKED + b"x",
    ],
    ids=["header", "cut", "no length", "checksum", "length", "method", "trailing"],
)
def test_broken_gzip_is_refused(written, content):
    with pytest.raises(ValueError, match="Expected a sound gzip file in .*, but its data are broken"):
        read_idx(written(content), (None, 2, 3))


def test_every_single_wrong_byte_of_the_compressed_data_is_noticed(written):
    for at in range(10, len(PACKED)):
        with pytest.raises(ValueError, match="^Expected "):
            read_idx(written(flipped(PACKED, at)), (4, 2, 3))


def test_a_huge_shape_costs_nothing(written):
    header = bytes([0, 0, 8, 3]) + b"\xff" * 12
    with pytest.raises(ValueError, match="the file ends after 5"):
        read_idx(written(header + b"12345"), (None, None, None))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_idx(tmp_path / "nothing", (None,))
