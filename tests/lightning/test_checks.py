"""What would void the guarantee is refused before the first step, all at once, each with its way out."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging
from torch import nn
from torch.optim import SGD, Adam, NAdam, RMSprop, Rprop
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

from agt_lightning import BoundedAdversary, CertifiedTraining, UncertifiableError

ADVERSARY = BoundedAdversary(n=2, epsilon=0.05)


@pytest.fixture
def refusal(fit, loader, regressor):
    """The message with which a training is refused; checks that nothing was trained and logged."""

    def run(module=None, *callbacks, adversary=ADVERSARY, kind="number", loader=loader, **options):
        module = regressor() if module is None else module
        before = [parameter.detach().clone() for parameter in module.parameters()]
        data = loader(kind) if not isinstance(loader, DataLoader) else loader
        with pytest.raises(UncertifiableError) as caught:
            fit(module, data, *callbacks, CertifiedTraining(adversary), **options)
        pairs = zip(before, module.parameters(), strict=True)
        assert all(torch.equal(old.to(new.dtype), new) for old, new in pairs)
        return caught.value.problems

    return run


def with_optimizer(module, make):
    module.configure_optimizers = lambda: make(module.parameters())
    return module


OPTIMIZERS = {
    "NAdam": (lambda p: NAdam(p), "`NAdam` has no bounds. Use one of `torch.optim.SGD`"),
    "Rprop": (lambda p: Rprop(p), "`Rprop` has no bounds"),
    "centered": (lambda p: RMSprop(p, centered=True), "Set `centered=False`"),
    "no eps": (lambda p: Adam(p, eps=0.0), "Set `eps=1e-8`"),
    "one group": (
        lambda p: RMSprop([{"params": [next(p)]}, {"params": list(p), "centered": True}], lr=0.1),
        "parameter group 1",
    ),
    "subclass": (lambda p: type("OwnSGD", (SGD,), {})(p, lr=0.1), "`OwnSGD` has no bounds"),
}


@pytest.mark.parametrize(("make", "message"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_unsupported_optimizers(make, message, refusal, regressor):
    assert message in "\n".join(refusal(with_optimizer(regressor(), make)))


@pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer:UserWarning")
def test_no_optimizer(refusal, regressor):
    module = regressor()
    module.configure_optimizers = lambda: None
    assert "torch.optim.SGD" in "\n".join(refusal(module))


def test_several_optimizers_and_manual_optimization(refusal, regressor):
    class Manual(regressor):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [SGD(self.net[0].parameters(), lr=0.1), SGD(self.net[2].parameters(), lr=0.1)]

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            first.step()
            second.step()

    problems = "\n".join(refusal(Manual()))
    assert "automatic_optimization=False" in problems
    assert "2 optimizers are configured" in problems


SETTINGS = {
    "bf16-mixed": ({"precision": "bf16-mixed"}, "Use '32-true' or '64-true'"),
    "bf16-true": ({"precision": "bf16-true"}, "precision='bf16-true'"),
    "16-true": ({"precision": "16-true"}, "precision='16-true'"),
}


@pytest.mark.parametrize(("options", "message"), SETTINGS.values(), ids=SETTINGS)
def test_trainer_settings(options, message, refusal):
    assert message in "\n".join(refusal(**options))


CALLBACKS = {
    "early stopping": (lambda: EarlyStopping("loss"), "`EarlyStopping`"),
    "averaging": (lambda: StochasticWeightAveraging(swa_lrs=0.1), "`StochasticWeightAveraging`"),
    "moving average": (lambda: EMAWeightAveraging(), "averages that have no bounds"),
}


@pytest.mark.parametrize(("make", "message"), CALLBACKS.values(), ids=CALLBACKS)
def test_callbacks_that_change_or_choose_parameters(make, message, refusal):
    assert message in "\n".join(refusal(None, make(), max_epochs=2))


def test_learning_rates_that_depend_on_the_data(refusal, regressor):
    class Plateau(regressor):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "x"}}

    assert "ReduceLROnPlateau" in "\n".join(refusal(Plateau()))


def test_samplers_that_depend_on_the_data(refusal, loader):
    data = loader().dataset
    weighted = DataLoader(data, batch_size=4, sampler=WeightedRandomSampler([1.0] * 8, 8))
    assert "WeightedRandomSampler" in "\n".join(refusal(loader=weighted))
    repeated = DataLoader(data, batch_size=4, sampler=RandomSampler(data, replacement=True))
    assert "without replacement" in "\n".join(refusal(loader=repeated))


def test_overridden_gradient_clipping(refusal, regressor):
    class Clips(regressor):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_gradients(optimizer, 1.0, "norm")

    assert "configure_gradient_clipping" in "\n".join(refusal(Clips()))


MODULES = {
    "dropout": (nn.Dropout(1.0), "is active"),
    "unknown activation": (nn.Threshold(0.5, 0.0), "aten.threshold"),
}


@pytest.mark.parametrize(("layer", "message"), MODULES.values(), ids=MODULES)
def test_layers(layer, message, refusal, regressor):
    module = regressor()
    module.net.insert(1, layer)
    assert message in "\n".join(refusal(module))


def test_a_step_without_a_loss(refusal, regressor):
    class Nothing(regressor):
        def training_step(self, batch, batch_idx):
            return None

    assert "return the loss" in "\n".join(refusal(Nothing()))


WRONG_ADVERSARIES = {
    "flips of numbers": ("number", BoundedAdversary(n=1, nu=1, q=0), "Use `q=inf`"),
    "moved classes": ("class", BoundedAdversary(n=1, nu=0.5), "Use `nu=1, q=0`"),
}


@pytest.mark.parametrize(("kind", "adversary", "message"), WRONG_ADVERSARIES.values(), ids=WRONG_ADVERSARIES)
def test_adversaries_that_do_not_fit_the_labels(kind, adversary, message, refusal, regressor, classifier):
    module = regressor() if kind == "number" else classifier()
    assert message in "\n".join(refusal(module, kind=kind, adversary=adversary))


def test_everything_is_listed_at_once(refusal, regressor):
    class Everything(regressor):
        def training_step(self, batch, batch_idx):
            x, y = batch
            out = torch.lgamma(self.net(F.threshold(x, 0.5, 0.0)))
            return F.mse_loss(out, y).log()

        def configure_optimizers(self):
            return NAdam(self.parameters())

        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            pass

    problems = refusal(Everything(), EarlyStopping("loss"), gradient_clip_val=1.0, precision="bf16-mixed")
    text = "\n".join(problems)
    expected = ["aten.lgamma", "aten.log", "aten.threshold", "NAdam", "EarlyStopping", "configure_gradient_clipping"]
    expected.append("bf16-mixed")
    assert [word for word in expected if word not in text] == []
    assert len(problems) == len(set(problems))


def test_the_message_numbers_its_reasons():
    error = UncertifiableError(["first", "second"])
    assert str(error).splitlines()[1:] == ["  1. first", "  2. second"]


@pytest.mark.slow
def test_a_later_kind_of_batch_is_checked_too(fit, loader, regressor):
    """The last batch is shorter, and its code is another one."""

    class Depends(regressor):
        def training_step(self, batch, batch_idx):
            x, y = batch
            out = self(x) if len(x) == 4 else torch.lgamma(self(x))
            return F.mse_loss(out, y)

    with pytest.raises(UncertifiableError, match="aten.lgamma"):
        fit(Depends(), loader(size=6), CertifiedTraining(ADVERSARY))


@pytest.mark.parametrize("adversary", [None, "bounded", 3])
def test_what_is_no_adversary_is_refused(adversary):
    with pytest.raises(TypeError, match="Expected `adversary`"):
        CertifiedTraining(adversary)


@pytest.mark.parametrize("settings", [{"method": "zonotope"}, {"aggregation": "loose"}])
def test_unknown_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"Expected `{next(iter(settings))}`"):
        CertifiedTraining(ADVERSARY, **settings)
