"""Settings that cannot be are refused at once, with those that can."""

import pytest
import torch

from agt_lightning import BoundedAdversary, CertifiedTraining
from agt_lightning.propagation.config import CertificationConfig


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, "float64"])
def test_bounds_in_other_types_are_refused(dtype):
    with pytest.raises(ValueError, match=r"Expected `dtype` to be one of \(torch.float64, torch.float32\), but got"):
        CertificationConfig(dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_in_single_and_double_precision_are_not(dtype):
    assert CertificationConfig(dtype=dtype).dtype == dtype
    assert CertifiedTraining(BoundedAdversary(n=1), dtype=dtype).config.dtype == dtype
