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
    read.zero_()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "its header is 0x"),
        (idx_bytes(VALUES, b"\0\0\x0d\x03"), "its header is 0x00000d03"),  # floats
        (b"<!DOCTYPE html>", "its header is 0x3c21444f"),
        (idx_bytes(VALUES.flatten()), "its header is 0x00000801"),
        (idx_bytes(VALUES)[:10], "its header is 0x00000803"),
        (idx_bytes(VALUES.mT), "its shape is 4 × 3 × 2"),
        (idx_bytes(VALUES[:0]), "its shape is 0 × 2 × 3"),
        (idx_bytes(VALUES)[:-1], "of size 23"),
        (idx_bytes(VALUES) + b"\0", "of size 25"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_another_file_is_refused_in_one_message(written, pack, content, found):
    path = written(pack(content))
    expected = f"Expected an idx file of unsigned bytes of shape any × 2 × 3 in {path}, but "
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}.*{re.escape(found)}.*Delete the file.*$"):
        read_idx(path, (None, 2, 3))


def test_every_broken_gzip_is_refused(written):
    packed = gzip.compress(idx_bytes(VALUES), mtime=0)
    for at in range(10, len(packed)):
        changed = bytearray(packed)
        changed[at] ^= 0xFF
        for content in (bytes(changed), packed[:at]):
            with pytest.raises(ValueError, match="^Expected an idx file"):
                read_idx(written(content), (4, 2, 3))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_idx(tmp_path / "nothing", (None,))
