import pytest
import torch
from torch import nn

from agt_lightning import CertifiedModel, Interval, ParameterBounds
from recipes.runs.certificates import accuracy_certificate, mse_certificate


class Network(nn.Module):
    """Stands in for a LightningModule: a network on a device."""

    device = torch.device("cpu")

    def __init__(self, outputs):
        super().__init__()
        self.layer = nn.Linear(2, outputs, dtype=torch.float64)

    def forward(self, x):
        return self.layer(x) if self.layer.out_features > 1 else self.layer(x).squeeze(-1)


@pytest.fixture
def network_and_model(request):
    outputs, radius = request.param
    torch.manual_seed(0)
    network = Network(outputs)
    bounds = {name: Interval(p.detach() - radius, p.detach() + radius) for name, p in network.named_parameters()}
    return network, CertifiedModel(network, ParameterBounds(bounds))


def batches(targets):
    torch.manual_seed(1)
    x = torch.randn(20, 2, dtype=torch.float64)
    y = targets(x)
    return [(x[:12], y[:12]), (x[12:], y[12:])]


def sampled(model, count=50):
    """Parameters from the box, as callables."""
    for _ in range(count):
        yield {name: torch.lerp(box.lower, box.upper, torch.rand_like(box.lower)) for name, box in model.bounds.items()}


@pytest.mark.parametrize("network_and_model", [(3, 0.05), (3, 0.0)], indirect=True)
def test_every_sampled_model_is_at_least_as_accurate_as_certified(network_and_model):
    network, model = network_and_model
    data = batches(lambda x: network(x).argmax(dim=1))
    certificate = accuracy_certificate(model, network, data)
    assert list(certificate) == ["nominal accuracy", "certified accuracy"]
    assert certificate["nominal accuracy"] == 1.0
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    accuracies = [
        (torch.func.functional_call(network, parameters, (x,)).argmax(dim=1) == y).double().mean()
        for parameters in sampled(model)
    ]
    assert certificate["certified accuracy"] <= min(accuracies)
    assert certificate["certified accuracy"] > 0.3


@pytest.mark.parametrize("network_and_model", [(3, 0.0)], indirect=True)
def test_wrong_predictions_are_never_certified_accurate(network_and_model):
    network, model = network_and_model
    data = batches(lambda x: (network(x).argmax(dim=1) + 1) % 3)
    assert accuracy_certificate(model, network, data) == {"nominal accuracy": 0.0, "certified accuracy": 0.0}


@pytest.mark.parametrize("network_and_model", [(3, 0.02)], indirect=True)
def test_a_backdoor_trigger_lowers_what_is_certified(network_and_model):
    network, model = network_and_model
    data = batches(lambda x: network(x).argmax(dim=1))
    plain, triggered = (accuracy_certificate(model, network, data, epsilon=epsilon) for epsilon in (0.0, 0.5))
    assert triggered["certified accuracy"] < plain["certified accuracy"]
    assert triggered["nominal accuracy"] == plain["nominal accuracy"]


@pytest.mark.parametrize("network_and_model", [(1, 0.05), (1, 0.0)], indirect=True)
def test_mean_squared_error_of_every_sampled_model_lies_within_the_bounds(network_and_model):
    network, model = network_and_model
    data = batches(lambda x: x[:, 0])
    certificate = mse_certificate(model, network, data)
    assert list(certificate) == ["best MSE", "nominal MSE", "worst MSE"]
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    assert certificate["nominal MSE"] == pytest.approx((network(x) - y).square().mean().item())
    rounding = 1e-12
    for parameters in sampled(model):
        error = (torch.func.functional_call(network, parameters, (x,)) - y).square().mean().item()
        assert certificate["best MSE"] - rounding <= error <= certificate["worst MSE"] + rounding
