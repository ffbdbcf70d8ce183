"""Which tensor `forward` returns counts, and what is said if it cannot be recorded or bounded."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agt_lightning import CertifiedModel, ParameterBounds, UncertifiableError
from agt_lightning.errors import AgtError, CaptureError


@dataclass
class Data:
    features: Tensor
    logits: Tensor


class Named(NamedTuple):
    features: Tensor
    logits: Tensor


class Net(nn.Module):
    """Features and logits, wrapped by ``pack``."""

    def __init__(self, pack):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.pack = nn.Linear(2, 3), nn.Linear(3, 3), pack

    def forward(self, x):
        hidden = self.body(x)
        return self.pack(hidden, self.head(hidden))


def model_of(module, **options):
    return CertifiedModel(module, ParameterBounds.point(module), **options)


def inputs(count=20):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("pack", "output"),
    [
        (lambda h, z: {"features": h, "logits": z}, "logits"),
        (lambda h, z: (h, z), 1),
        (lambda h, z: (h, z), -1),
        (lambda h, z: [h, z], 1),
        (Named, "logits"),
        (Named, 1),
        (Data, "logits"),
    ],
)
def test_the_named_output_is_certified_and_never_the_first(pack, output):
    module, x = Net(pack), inputs()
    for method in (CertifiedModel.certify, CertifiedModel.bound_forward):
        with pytest.raises(UncertifiableError, match="one tensor of outputs is expected") as raised:
            method(model_of(module), x)
        assert "output=" in str(raised.value)
        assert "training" not in str(raised.value)
    answer = model_of(module, output=output).certify(x)
    with torch.no_grad():
        hidden = module.body(x)
        assert torch.equal(answer.label, module.head(hidden).argmax(dim=1))
        assert not torch.equal(answer.label, hidden.argmax(dim=1))


@pytest.mark.parametrize("pack", [lambda h, z: {"logits": z}, lambda h, z: (z,), lambda h, z: (z, None, 0.5)])
def test_the_only_tensor_needs_no_name(pack):
    module = Net(pack)
    assert torch.equal(model_of(module).certify(inputs()).label, module.head(module.body(inputs())).argmax(dim=1))


@pytest.mark.parametrize(
    ("pack", "output"),
    [
        (lambda h, z: z, 0),
        (lambda h, z: z, "logits"),
        (lambda h, z: (h, z), 2),
        (lambda h, z: (h, z), "logits"),
        (lambda h, z: {"h": h, "z": z}, "logits"),
        (lambda h, z: {"h": h, "z": 1.0}, "z"),
    ],
)
def test_a_name_of_no_output_is_refused(pack, output):
    with pytest.raises(ValueError, match="Expected `output` to name a tensor in what `forward` returns"):
        model_of(Net(pack), output=output).bound_forward(inputs())


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return self.layer(x.float() / 255)


def test_integers_cannot_be_moved_by_epsilon():
    model, x = model_of(Images()), torch.randint(0, 256, (5, 2), dtype=torch.uint8)
    assert model.certify(x).certified.shape == (5,)
    target = torch.zeros(5, dtype=torch.long)
    for method in (
        model.certify,
        model.bound_forward,
        model.deciding_domains,
        lambda x, e: model.margins(x, target, e),
    ):
        with pytest.raises(ValueError, match="Cast them") as raised:
            method(x, 60)
        assert "epsilon=0" in str(raised.value)
    assert bool((model.bound_forward(x.float(), 60).width > 0).all()), "the cast that is advised works"


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x, mask):
        return self.layer(x * mask)


class AlwaysDrops(TwoInputs):
    def forward(self, x):
        return self.layer(F.dropout(x, 0.5))


class Branches(TwoInputs):
    def forward(self, x):
        return self.layer(x) if x.max() > 0 else -self.layer(x)


class Noisy(TwoInputs):
    def forward(self, x):
        return self.layer(torch.normal(x, 0.1))


class Mixes(TwoInputs):
    def forward(self, x):
        return self.layer(x) - self.layer(x).mean(dim=0)


class Sums(TwoInputs):
    def forward(self, x):
        return self.layer(x).sum()


class Constant(TwoInputs):
    def forward(self, x):
        return self.layer.bias.expand(2, 3)


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        (Constant, UncertifiableError, "from no value of that batch"),
        (TwoInputs, UncertifiableError, "missing a required argument: 'mask'.*Give them defaults"),
        (AlwaysDrops, UncertifiableError, "training=self.training"),
        (Branches, CaptureError, "lets Python read data"),
        (Noisy, UncertifiableError, "random"),
        (Mixes, UncertifiableError, "have no rules.*epsilon=0"),
        (Sums, UncertifiableError, "from no value of that batch"),
    ],
)
def test_problems_of_forward_are_not_blamed_on_training(kind, error, reason):
    with pytest.raises(error, match=reason) as raised:
        model_of(kind()).bound_forward(inputs(), epsilon=0.1)  # what nothing moves is evaluated as it is
    assert isinstance(raised.value, AgtError)
    for blame in ("This training", "certified_objective", "training_step", "loss"):
        assert blame not in str(raised.value)


class Default(TwoInputs):
    def forward(self, x, mask=None):
        return self.layer(x)


def test_inputs_with_defaults_are_no_obstacle():
    assert model_of(Default()).bound_forward(inputs()).shape == (20, 3)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.long, torch.float32, torch.bool])
def test_targets_of_one_output_pair_with_their_samples(shape, dtype):
    module, x = nn.Linear(2, 1), inputs(4)
    target = torch.tensor([0, 1, 1, 0]).reshape(shape).to(dtype)
    margins = model_of(module).margins(x, target, threshold=0.0)
    with torch.no_grad():
        logits = module(x).flatten()
    assert margins.shape == (4, 2)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0])
    assert torch.allclose(margins.center.sum(dim=1), -signs * logits)


@pytest.mark.parametrize(
    ("outputs", "target"),
    [
        (1, torch.tensor([0, 1, 2, 0])),
        (1, torch.tensor([0, 1, -1, 0])),
        (1, torch.tensor([0.0, 1.0, 0.7, 0.0])),
        (1, torch.tensor([0, 1])),
        (1, torch.zeros(1, 4)),
        (3, torch.tensor([0, 1, 3, 0])),
        (3, torch.tensor([0, -100, 1, 0])),
        (3, torch.tensor([0, 1])),
        (3, torch.zeros(4, 1, dtype=torch.long)),
        (3, torch.zeros(4, 3, dtype=torch.long)),
    ],
)
def test_targets_that_are_no_classes_are_refused(outputs, target):
    model = model_of(nn.Linear(2, outputs))
    with pytest.raises(ValueError, match="Expected `target`"):
        model.margins(inputs(4), target, threshold=0.0 if outputs == 1 else None)


def test_real_targets_of_several_outputs_are_refused():
    with pytest.raises(TypeError, match="integer type"):
        model_of(nn.Linear(2, 3)).margins(inputs(4), torch.zeros(4))


@pytest.mark.parametrize(("threshold", "error"), [(float("nan"), ValueError), (True, TypeError), ("0", TypeError)])
def test_wrong_thresholds_are_named(threshold, error):
    model = model_of(nn.Linear(2, 1))
    for method in (model.certify, lambda x, threshold: model.margins(x, torch.zeros(20), threshold=threshold)):
        with pytest.raises(error, match="Expected `threshold`"):
            method(inputs(), threshold=threshold)


def test_an_output_at_the_threshold_is_class_zero_and_not_certified():
    module = nn.Linear(2, 1)
    nn.init.zeros_(module.weight)
    nn.init.constant_(module.bias, 0.1)
    at = model_of(module).certify(inputs(3), threshold=module.bias.item())
    assert at.label.tolist() == [0, 0, 0]
    assert at.possible.all()
    below = model_of(module).certify(inputs(3), threshold=0.0)
    assert below.label.tolist() == [1, 1, 1]
    assert below.certified.all()


@pytest.mark.parametrize(("x", "error"), [(3.0, TypeError), ({"x": inputs()}, TypeError), (inputs(0), ValueError)])
def test_inputs_that_are_no_batch_are_refused(x, error):
    with pytest.raises(error, match="Expected .* inputs|Expected inputs"):
        model_of(nn.Linear(2, 3)).certify(x)
