"""Three doors, one engine: callback, mixin and strategy give the same bounds for the same run."""

import socket

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from agt_lightning import (
    AbstractGradientStrategy,
    BoundedAdversary,
    CertifiedModule,
    CertifiedTraining,
    UncertifiableError,
)

ADVERSARY = BoundedAdversary(n=2, epsilon=0.05, nu=0.1)


def make(kind):
    torch.manual_seed(5)
    return kind()


@pytest.fixture
def reference(fit, loader, regressor):
    certified = CertifiedTraining(ADVERSARY)
    fit(make(regressor), loader(size=10), certified)
    return certified


def assert_same_bounds(bounds, other):
    for name, interval in bounds.items():
        assert torch.equal(interval.lower, other[name].lower), name
        assert torch.equal(interval.upper, other[name].upper), name


@pytest.fixture
def mixed_in(regressor):
    class MixedIn(CertifiedModule, regressor):
        def configure_certification(self):
            return CertifiedTraining(ADVERSARY)

    return MixedIn


# --- mixin ----------------------------------------------------------------------------------------------------------


def test_the_mixin_brings_its_own_callback(fit, loader, mixed_in, reference):
    module = make(mixed_in)
    trainer = fit(module, loader(size=10))
    assert sum(isinstance(callback, CertifiedTraining) for callback in trainer.callbacks) == 1
    assert_same_bounds(module.parameter_bounds, reference.bounds)


@pytest.mark.slow
def test_the_mixin_answers_like_the_certified_model(fit, loader, mixed_in):
    module = make(mixed_in)
    fit(module, loader())
    model = module.certified_training.certified_model(module)
    x, target, at = torch.randn(4, 3), torch.zeros(4, dtype=torch.long), {"threshold": 0.1}
    for ours, theirs in (
        (module.bound_forward(x), model.bound_forward(x)),
        (module.bound_forward(x, 0.1, 2), model.bound_forward(x, 0.1, 2)),
        (module.margins(x, target, **at), model.margins(x, target, **at)),
    ):
        assert torch.equal(ours.lower, theirs.lower)
        assert torch.equal(ours.upper, theirs.upper)
    assert torch.equal(module.certify(x, **at).certified, model.certify(x, **at).certified)


@pytest.mark.slow
def test_the_mixin_finds_a_callback_of_the_trainer(fit, loader, regressor, reference):
    module = make(type("Mixed", (CertifiedModule, regressor), {}))
    fit(module, loader(size=10), CertifiedTraining(ADVERSARY))
    assert_same_bounds(module.parameter_bounds, reference.bounds)


@pytest.mark.slow
def test_the_mixin_keeps_the_modules_own_callbacks(fit, loader, mixed_in):
    class Own(L.Callback):
        pass

    class WithOwn(mixed_in):
        def configure_callbacks(self):
            return [Own(), *super().configure_callbacks()]

    trainer = fit(make(WithOwn), loader())
    assert sum(isinstance(callback, Own | CertifiedTraining) for callback in trainer.callbacks) == 2


def test_the_mixin_without_training_has_a_clear_error(mixed_in):
    with pytest.raises(RuntimeError, match="certified training|no bounds yet"):
        _ = make(mixed_in).parameter_bounds


@pytest.mark.slow
def test_an_objective_of_its_own_replaces_what_cannot_be_recorded(fit, loader, regressor, reference):
    class Branches(CertifiedModule, regressor):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if loss > 0.1:
                self.large = True
            return loss

        def certified_objective(self, batch):
            return F.mse_loss(self(batch[0]), batch[1])

    certified = CertifiedTraining(ADVERSARY)
    fit(make(Branches), loader(size=10), certified)
    assert_same_bounds(certified.bounds, reference.bounds)


def test_an_objective_with_another_gradient_raises(fit, loader, regressor):
    class Lies(CertifiedModule, regressor):
        def certified_objective(self, batch):
            return 0.5 * F.mse_loss(self(batch[0]), batch[1])

    with pytest.raises(Exception, match="What is certified is not what is trained"):
        fit(make(Lies), loader(), CertifiedTraining(ADVERSARY))


# --- strategy -------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_process(monkeypatch):
    """A process group of one, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    yield {"devices": 1, "use_distributed_sampler": False}
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_the_strategy_has_the_callbacks_bounds(one_process, fit, loader, regressor, reference):
    strategy = AbstractGradientStrategy(ADVERSARY, process_group_backend="gloo")
    module = make(regressor)
    fit(module, loader(size=10), strategy=strategy, **one_process)
    assert_same_bounds(strategy.bounds, reference.bounds)
    assert list(strategy.bounds) == [name for name, _ in module.named_parameters()]
    assert strategy.certified_model(module).bound_forward(torch.zeros(2, 3)).shape == (2, 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["agt", "agt_ddp"])
def test_the_strategy_by_name_serves_a_callback(name, one_process, fit, loader, regressor, reference):
    certified = CertifiedTraining(ADVERSARY)
    fit(make(regressor), loader(size=10), certified, strategy=name, **one_process)
    assert_same_bounds(certified.bounds, reference.bounds)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_strategy_by_name_serves_the_mixin(one_process, fit, loader, mixed_in, reference):
    module = make(mixed_in)
    fit(module, loader(size=10), strategy="agt", **one_process)
    assert_same_bounds(module.parameter_bounds, reference.bounds)


@pytest.mark.filterwarnings("ignore")
def test_the_strategy_by_name_without_an_adversary_is_refused(one_process, fit, loader, regressor):
    """A strategy named for certified training must not train without certifying."""
    with pytest.raises((UncertifiableError, RuntimeError), match="adversary"):
        fit(make(regressor), loader(), strategy="agt", **one_process)


def test_the_strategy_without_an_adversary_says_so():
    with pytest.raises(RuntimeError, match="`adversary`"):
        _ = AbstractGradientStrategy().bounds


def test_the_strategy_takes_the_callbacks_settings():
    strategy = AbstractGradientStrategy(ADVERSARY, certification={"dirpath": "somewhere"})
    assert strategy.certified.dirpath == "somewhere"
