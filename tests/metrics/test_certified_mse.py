from fractions import Fraction

import torch

from agt_lightning.metrics import CertifiedMSE


def test_many_batches_never_fall_below_the_exact_mean() -> None:
    metric = CertifiedMSE()
    value = torch.tensor([0.1])
    for _ in range(500):
        metric.update(value, value, torch.zeros(1))
    assert Fraction(metric.compute().item()) >= Fraction(value.item()) ** 2


def test_large_errors_do_not_swallow_small_ones() -> None:
    metric = CertifiedMSE()
    for error in (1e4, *[1.0] * 100):
        metric.update(torch.tensor([error]), torch.tensor([error]), torch.zeros(1))
    assert metric.compute().item() >= (1e8 + 100) / 101
