"""A network under bounds: every network in the box answers within what is certified."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning import (
    BoundsMismatchError,
    CertifiedModel,
    Interval,
    ParameterBounds,
    UncertifiableError,
)
from agt_lightning.digest import values_digest

CONTAINMENT = 1e-9
"""Rounding of a float64 forward pass; one-sided."""

LOGIT = {1: 0.0, 2: None, 3: None}
"""Threshold of predictions by number of outputs: one output is a logit here, of several the largest is the class."""


def network(outputs=3, *extra):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs), *extra).double()


def box_around(module, radius):
    return ParameterBounds(
        {name: Interval(p.detach() - radius, p.detach() + radius) for name, p in module.named_parameters()}
    )


def samples(module, bounds, count=50, corners=True):
    """Copies of the module with parameters drawn from the box, half of them from its corners."""
    generator = torch.Generator().manual_seed(3)
    for number in range(count):
        state = {}
        for name, interval in bounds.items():
            share = torch.rand(interval.shape, generator=generator, dtype=interval.dtype)
            share = share.round() if corners and number % 2 else share
            state[name] = interval.lower + share * interval.width
        yield lambda x, state=state: torch.func.functional_call(module, state, (x,))


@pytest.fixture
def inputs():
    return torch.randn(7, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_outputs_of_every_network_in_the_box_are_contained(epsilon, inputs):
    module = network()
    model = CertifiedModel(module, box_around(module, 0.02))
    out = model.bound_forward(inputs, epsilon)
    for sample in samples(module, model.bounds):
        noise = (2 * torch.rand_like(inputs) - 1).sign() * epsilon
        assert out.contains(sample(inputs + noise), CONTAINMENT)
    assert out.shape == (7, 3)


@pytest.mark.parametrize("p", [1, 2, float("inf")])
def test_a_ball_of_any_norm_is_within_the_box(p, inputs):
    module = network()
    model = CertifiedModel(module, ParameterBounds.point(module))
    out, point = model.bound_forward(inputs, 0.1, p), model.bound_forward(inputs)
    assert (out.lower <= point.lower).all()
    assert (out.upper >= point.upper).all()


def test_margins_are_contained_and_never_looser_than_differences(inputs):
    module = network()
    model = CertifiedModel(module, box_around(module, 0.02))
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    margins, out = model.margins(inputs, target, 0.05), model.bound_forward(inputs, 0.05)
    rows = torch.arange(7)
    loose_lower = out.lower[rows, target][:, None] - out.upper
    loose_upper = out.upper[rows, target][:, None] - out.lower
    other = nn.functional.one_hot(target, 3) == 0
    assert (margins.lower >= loose_lower - CONTAINMENT)[other].all()
    assert (margins.upper <= loose_upper + CONTAINMENT)[other].all()
    assert (margins.lower > loose_lower + 1e-3)[other].any()
    assert (margins.lower[~other] == 0).all()
    for sample in samples(module, model.bounds):
        logits = sample(inputs + 0.05)
        assert margins.contains(logits[rows, target][:, None] - logits, CONTAINMENT)


def test_margins_survive_a_log_softmax(inputs):
    module, logits = network(3, nn.LogSoftmax(dim=1)), network()
    target = torch.zeros(7, dtype=torch.long)
    bounds = box_around(logits, 0.02)
    margins = CertifiedModel(module, bounds).margins(inputs, target)
    plain = CertifiedModel(logits, bounds).margins(inputs, target)
    assert torch.allclose(margins.lower, plain.lower)


def test_a_point_certifies_what_it_predicts(inputs):
    module = network()
    answer = CertifiedModel(module, ParameterBounds.point(module)).certify(inputs)
    assert torch.equal(answer.label, module(inputs).argmax(dim=1))
    assert answer.certified.all()
    assert torch.equal(answer.possible, nn.functional.one_hot(answer.label, 3).bool())


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("radius", [0.001, 0.02, 0.2])
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_certified_predictions_are_those_of_every_network(outputs, radius, epsilon, inputs):
    module = network(outputs)
    model = CertifiedModel(module, box_around(module, radius))
    answer = model.certify(inputs, epsilon, threshold=LOGIT[outputs])
    rows = torch.arange(len(inputs))
    assert answer.possible[rows, answer.label].all()
    assert (answer.possible.sum(dim=1) == 1)[answer.certified].all()
    assert answer.possible.shape == (7, max(2, outputs))
    for sample in samples(module, model.bounds, count=30):
        logits = sample(inputs + epsilon)
        label = (logits[:, 0] > 0).long() if outputs == 1 else logits.argmax(dim=1)
        assert answer.possible[rows, label].all()
        assert torch.equal(label[answer.certified], answer.label[answer.certified])


@pytest.mark.parametrize("outputs", [1, 2])
def test_ties_are_not_certified(outputs):
    module = nn.Linear(2, outputs, bias=False)
    nn.init.zeros_(module.weight)
    model = CertifiedModel(module, ParameterBounds.point(module))
    answer = model.certify(torch.ones(3, 2), threshold=LOGIT[outputs])
    assert not answer.certified.any()
    assert answer.possible.all() or outputs == 1
    assert answer.possible[torch.arange(3), answer.label].all()


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_huge_box_certifies_nothing(outputs, inputs):
    module = network(outputs)
    answer = CertifiedModel(module, box_around(module, 10.0)).certify(inputs, threshold=LOGIT[outputs])
    assert not answer.certified.any()
    assert answer.possible.all()


def test_more_perturbation_is_never_tighter(inputs):
    module = network()
    model = CertifiedModel(module, box_around(module, 0.01))
    widths = [model.bound_forward(inputs, epsilon).width.max().item() for epsilon in (0.0, 0.01, 0.1)]
    assert widths == sorted(set(widths))


def test_float32_results_are_rounded_outward(inputs):
    module = network().float()
    model = CertifiedModel(module, ParameterBounds.point(module))
    single, exact = model.bound_forward(inputs.float()), model.bound_forward(inputs.float().double())
    assert single.dtype == torch.float32
    assert exact.dtype == torch.float64
    assert (single.lower.double() <= exact.lower).all()
    assert (single.upper.double() >= exact.upper).all()
    assert (single.width > 0).any()


def test_a_batch_of_one_is_a_row_of_a_batch(inputs):
    module = network()
    model = CertifiedModel(module, box_around(module, 0.01))
    whole, one = model.bound_forward(inputs), model.bound_forward(inputs[2:3])
    assert one.shape == (1, 3)
    assert torch.allclose(one.lower, whole.lower[2:3])
    assert torch.allclose(one.upper, whole.upper[2:3])


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network(1)

    def forward(self, x):
        return self.net(x).squeeze()


@pytest.mark.parametrize("size", [1, 7])
def test_a_module_that_squeezes(size, inputs):
    module = Squeezed()
    model = CertifiedModel(module, box_around(module, 0.01))
    out, answer = model.bound_forward(inputs[:size]), model.certify(inputs[:size], threshold=0.0)
    assert out.shape == (size,)
    assert answer.label.shape == answer.certified.shape == (size,)
    assert answer.possible.shape == (size, 2)
    assert out.contains(module.net(inputs[:size]).squeeze(1), CONTAINMENT)


class Rearranged(nn.Module):
    """Code without parameters that rearranges whole batches, but none of four samples."""

    def __init__(self):
        super().__init__()
        self.net = network(2)

    def forward(self, x):
        return self.net(F.group_norm(x.reshape(4, -1), 1).reshape(x.shape))


def test_batches_of_a_size_at_which_nothing_is_rearranged(inputs):
    module = Rearranged()
    model = CertifiedModel(module, box_around(module, 0.01))
    for size in (7, 4):
        assert model.bound_forward(inputs[:size]).contains(module(inputs[:size]), CONTAINMENT)


def test_it_evaluates_in_eval_mode_and_leaves_the_module_alone(inputs):
    module = network(3, nn.Dropout(0.5)).train()
    model = CertifiedModel(module, ParameterBounds.point(module))
    out = model.bound_forward(inputs)
    assert module.training
    assert module[-1].training
    assert torch.allclose(out.center, module.eval()(inputs))


def test_bounds_of_another_run_are_refused():
    module, other = network(), network()
    with torch.no_grad():
        other[1].weight += 1
    with pytest.raises(BoundsMismatchError, match="another run"):
        CertifiedModel(module, ParameterBounds.point(other))


def test_a_module_that_is_changed_afterwards_is_refused(inputs):
    """Its new parameters lie in the intervals, but those of a poisoned run of the same change need not."""
    module = network()
    bounds = ParameterBounds(box_around(module, 0.1), values_digest(module.named_parameters()))
    model = CertifiedModel(module, bounds)
    model.certify(inputs)
    with torch.no_grad():
        module[1].weight.add_(0.01)
    for ask in (model.certify, model.bound_forward, model.deciding_domains):
        with pytest.raises(BoundsMismatchError, match="Expected the parameters of the step"):
            ask(inputs)


def test_bounds_of_another_shape_are_refused():
    with pytest.raises(BoundsMismatchError, match="shape"):
        CertifiedModel(network(3), ParameterBounds.point(network(2)))


def test_bounds_of_another_module_are_refused():
    with pytest.raises(BoundsMismatchError, match="names"):
        CertifiedModel(network(), ParameterBounds.point(nn.Linear(2, 2)))


def test_an_operation_without_bounds_is_refused(inputs):
    module = network(3, nn.Threshold(0.5, 0.0))
    with pytest.raises(UncertifiableError, match="have no rules.*epsilon=0"):
        CertifiedModel(module, ParameterBounds.point(module)).bound_forward(inputs, epsilon=0.1)


@pytest.mark.parametrize(("epsilon", "error"), [(-1, ValueError), (float("nan"), ValueError), ("0.1", TypeError)])
def test_wrong_radii_are_named(epsilon, error, inputs):
    module = network()
    with pytest.raises(error, match="Expected `epsilon`"):
        CertifiedModel(module, ParameterBounds.point(module)).bound_forward(inputs, epsilon)


def test_a_wrong_norm_is_named(inputs):
    module = network()
    with pytest.raises(ValueError, match="Expected `p`"):
        CertifiedModel(module, ParameterBounds.point(module)).bound_forward(inputs, 0.1, 3)


def test_images_of_several_sizes(inputs):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3).double()

        def forward(self, x):
            return self.layer(x.mean(dim=1))

    module = Mean()
    model = CertifiedModel(module, box_around(module, 0.01))
    for length in (2, 5):
        assert model.bound_forward(torch.ones(3, length, 2, dtype=torch.float64)).shape == (3, 3)
