"""Fingerprints tell tensors apart by every bit."""

import torch

from agt_lightning.distributed.fingerprint import fingerprint, row_fingerprints


def test_every_bit_of_every_element_counts():
    values = torch.randn(50, dtype=torch.float64)
    marks = {fingerprint([values])}
    for index in range(50):
        for bit in (0, 1, 31, 32, 62, 63):
            bits = values.view(torch.int64).clone()
            bits[index] ^= 1 << bit if bit < 63 else -(2**63)
            marks.add(fingerprint([bits.view(torch.float64)]))
    assert len(marks) == 1 + 50 * 6


def test_order_of_elements_and_tensors_counts():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    assert len({fingerprint([a, b]), fingerprint([b, a]), fingerprint([a.flip(0), b])}) == 3


def test_rows_are_told_apart_by_all_tensors():
    x, y = torch.randn(6, 2, 2), torch.arange(6) % 2
    x[3], y[3] = x[1], y[1]
    x[5], y[5] = x[1], 1 - y[1]
    marks = row_fingerprints([x, y])
    assert marks[3] == marks[1]
    assert len(marks.unique()) == 5


def test_types():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.bool, torch.uint8):
        values = torch.tensor([0, 1, 1]).to(dtype)
        assert fingerprint([values]) != fingerprint([values.flip(0)])
        assert row_fingerprints([values])[1] == row_fingerprints([values])[2]
