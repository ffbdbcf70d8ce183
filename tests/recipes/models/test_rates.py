import pytest
import torch
import torch.nn.functional as F

from recipes.models import rates
from recipes.models.rates import mse_rate


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_rate_is_one_over_the_largest_eigenvalue_of_the_hessian(weight_decay, monkeypatch):
    monkeypatch.setattr(rates, "_CHUNK", 3)
    torch.manual_seed(0)
    x, y = torch.randn(8, 2, dtype=torch.float64) + 1, torch.randn(8, 3, dtype=torch.float64)

    def loss(parameters):
        weight, bias = parameters[:6].reshape(3, 2), parameters[6:]
        return F.mse_loss(F.linear(x, weight, bias), y) + weight_decay / 2 * parameters.square().sum()

    hessian = torch.autograd.functional.hessian(loss, torch.zeros(9, dtype=torch.float64))
    assert mse_rate(x, 3, weight_decay) == pytest.approx(1 / torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-10)


def test_single_precision_features_are_summed_in_double():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert mse_rate(x, 10) == mse_rate(x.double(), 10)


@pytest.mark.parametrize(
    ("features", "outputs", "weight_decay"),
    [
        (torch.zeros(0, 3), 10, 0.0),
        (torch.zeros(4), 10, 0.0),
        (torch.zeros(4, 3), 0, 0.0),
        (torch.zeros(4, 3), 1, -1.0),
    ],
)
def test_what_has_no_rate_is_refused(features, outputs, weight_decay):
    with pytest.raises(ValueError, match="Expected features of shape .samples, width."):
        mse_rate(features, outputs, weight_decay)
