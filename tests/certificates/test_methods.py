"""The certificates of a model, by each method: sound, and with linear bounds never fewer than by intervals."""

import copy

import pytest
import torch
from sklearn.datasets import make_moons
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedModel, Interval, ParameterBounds
from agt_lightning.propagation import METHODS

ROUNDING = 1e-9
"""Rounding of a float64 forward pass; one-sided."""


def classifier(*widths):
    torch.manual_seed(0)
    layers = [nn.Linear(i, o, dtype=torch.float64) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def box_around(module, radius):
    return ParameterBounds(
        {name: Interval(p.detach() - radius, p.detach() + radius) for name, p in module.named_parameters()}
    )


def sampled_logits(module, bounds, x, count=40):
    generator = torch.Generator().manual_seed(2)
    for number in range(count):
        state = {}
        for name, interval in bounds.items():
            share = torch.rand(interval.shape, generator=generator, dtype=torch.float64)
            state[name] = interval.lower + (share.round() if number % 2 else share) * interval.width
        yield torch.func.functional_call(module, state, (x,)).detach()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("radius", [0.0, 0.01, 0.1])
def test_margins_contain_those_of_sampled_networks(method, radius):
    module = classifier(3, 6, 6, 6, 3)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bounds, target = box_around(module, radius), torch.tensor([0, 1, 2, 0, 1])
    margins = CertifiedModel(module, bounds, method=method).margins(x, target)
    for logits in sampled_logits(module, bounds, x):
        assert margins.contains(logits.gather(1, target[:, None]) - logits, ROUNDING)
    own = margins.lower.gather(1, target[:, None])
    assert bool((own == 0).all())


def test_margins_start_at_the_differences_themselves():
    """Both outputs share all that lies below them, so their difference is known better than they are."""
    module = classifier(3, 12, 12, 12, 3)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.zeros(20, dtype=torch.long)
    model = CertifiedModel(module, box_around(module, 0.01), method="tightest")
    logits, margins = model.bound_forward(x, 0.1), model.margins(x, target, 0.1)
    apart = logits.lower[:, :1] - logits.upper
    assert float((margins.lower[:, 1:] - apart[:, 1:]).min()) > 1e-3


def moons(seed):
    points, labels = make_moons(120, noise=0.1, random_state=seed)
    return torch.as_tensor(points), torch.as_tensor(labels)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("hidden", [(16,), (12, 12, 12)], ids=["one-hidden", "three-hidden"])
def test_certified_accuracy_on_half_moons_never_falls(hidden):
    start, certified, widths = classifier(2, *hidden, 2), {}, {}
    for method in ("ibp", "tightest", "alpha-crown"):
        module = copy.deepcopy(start)
        engine = AbstractGradientEngine(
            module,
            lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1]),
            BoundedAdversary(n=3, epsilon=0.02),
            domains="box",
            method=method,
        )
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        for _ in range(4):
            engine.step([moons(0)], optimizer)
        x, labels = moons(1)
        answer = CertifiedModel(module, engine.bounds, method=method).certify(x)
        certified[method] = answer.certified & (answer.label == labels)
        widths[method] = engine.bounds.mean_width()
    assert bool((certified["ibp"] <= certified["tightest"]).all())
    assert bool((certified["tightest"] <= certified["alpha-crown"]).all())
    assert widths["alpha-crown"] <= widths["tightest"] * (1 + ROUNDING) <= widths["ibp"] * (1 + ROUNDING) ** 2
    assert float(certified["tightest"].double().mean()) > 0.3


def test_an_unknown_method_is_refused():
    module = classifier(2, 2)
    with pytest.raises(ValueError, match="Expected `method` to be one of"):
        CertifiedModel(module, ParameterBounds.point(module), method="exact")
