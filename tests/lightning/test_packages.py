"""`lightning` and `pytorch_lightning` have classes of their own; both are certified, and neither slips through."""

import ast
import importlib
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import agt_lightning.lightning
from agt_lightning import BoundedAdversary, CertifiedModule, CertifiedTraining, UncertifiableError
from agt_lightning.certificates.phases import UNTRIED_HOOKS
from agt_lightning.lightning import packages
from agt_lightning.lightning.checkpoint_io import AtomicCheckpointIO
from agt_lightning.lightning.checks import trainer_problems
from agt_lightning.lightning.distributed import strategy_problems
from agt_lightning.lightning.packages import base_of, of_both, package_problems
from agt_lightning.lightning.samplers import draws_once, sampler_problems

PACKAGES = ("pytorch_lightning", "lightning.pytorch")
FABRICS = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}
ADVERSARY = BoundedAdversary(n=2, epsilon=0.05, nu=0.1)
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(params=PACKAGES)
def package(request):
    return pytest.importorskip(request.param)


def other(package):
    return pytest.importorskip(next(name for name in PACKAGES if name != package.__name__))


def module_of(package, *mixins, **members):
    """The same regressor, made of a package's LightningModule."""

    class Regressor(*mixins, package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = nn.functional.mse_loss(self(x), y)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    torch.manual_seed(5)
    return type("Variant", (Regressor,), members)()


def train(package, module, loader, *callbacks, val=None, **options):
    torch.manual_seed(1)
    trainer = package.Trainer(callbacks=list(callbacks), accelerator="cpu", **QUIET | {"max_epochs": 1} | options)
    trainer.fit(module, loader, val)
    return trainer


def same(bounds, others):
    pairs = zip(bounds.values(), others.values(), strict=True)
    return all(torch.equal(a.lower, b.lower) and torch.equal(a.upper, b.upper) for a, b in pairs)


# --- accepted --------------------------------------------------------------------------------------------------------

SETTINGS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped by value": {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
    "clipped by norm": {"gradient_clip_val": 0.05},
}


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_both_packages_have_the_same_bounds(options, loader):
    found = []
    for package in map(pytest.importorskip, PACKAGES):
        certified = CertifiedTraining(ADVERSARY)
        trainer = train(package, module_of(package), loader(size=10), certified, val=loader(), **options)
        found.append((certified.bounds, trainer.callback_metrics))
    (bounds, metrics), (others, other_metrics) = found
    assert same(bounds, others)
    assert metrics == other_metrics
    assert metrics["agt/val_certified_mse"] > metrics["agt/val_nominal_mse"]


def test_a_single_callback_needs_no_list(package, loader):
    certified = CertifiedTraining(ADVERSARY)
    package.Trainer(callbacks=certified, accelerator="cpu", max_epochs=1, **QUIET).fit(module_of(package), loader())
    assert certified.bounds.mean_width() > 0


def test_several_callbacks_share_a_trainer(package, loader):
    both = CertifiedTraining(ADVERSARY), CertifiedTraining(BoundedAdversary(n=1, nu=0.1))
    train(package, module_of(package), loader(), *both)
    assert both[0].bounds.mean_width() > both[1].bounds.mean_width()


def test_the_mixin_brings_its_own_callback(package, loader):
    brings = {"configure_certification": lambda self: CertifiedTraining(ADVERSARY)}
    module, certified = module_of(package, CertifiedModule, **brings), CertifiedTraining(ADVERSARY)
    train(package, module, loader())
    train(package, module_of(package), loader(), certified)
    assert same(module.parameter_bounds, certified.bounds)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["agt", "agt_ddp"])
def test_the_strategy_by_name(name, package, loader, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    certified, alone = CertifiedTraining(ADVERSARY), CertifiedTraining(ADVERSARY)
    ddp = {"strategy": name, "devices": 1, "use_distributed_sampler": False}
    try:
        train(package, module_of(package), loader(), certified, **ddp)
        with pytest.raises(RuntimeError, match="adversary"):
            train(package, module_of(package), loader(), **ddp)
    finally:
        torch.distributed.destroy_process_group()
    train(package, module_of(package), loader(), alone)
    assert same(certified.bounds, alone.bounds)


def test_checkpoints_are_whole_files(package, loader):
    trainer = train(package, module_of(package), loader(), CertifiedTraining(ADVERSARY))
    assert type(trainer.strategy.checkpoint_io) is AtomicCheckpointIO


# --- refused ---------------------------------------------------------------------------------------------------------


def choosing(callbacks):
    """A package's callbacks that change or choose parameters."""
    return [
        callbacks.EarlyStopping("loss"),
        callbacks.EMAWeightAveraging(),
        callbacks.WeightAveraging(),
        callbacks.StochasticWeightAveraging(swa_lrs=0.1),
        callbacks.ModelPruning("l1_unstructured", amount=0.5),
    ]


def test_callbacks_that_change_or_choose_parameters(package, loader):
    module = module_of(package)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    for callback in choosing(package.callbacks):
        with pytest.raises(UncertifiableError, match=f"`{type(callback).__name__}`"):
            train(package, module, loader(), callback, CertifiedTraining(ADVERSARY), max_epochs=2)
        pairs = zip(before, module.parameters(), strict=True)
        assert all(torch.equal(old, new) for old, new in pairs), callback


def test_callbacks_of_the_other_package(package, loader):
    """A Trainer calls any object with a callback's methods."""
    trainer = train(package, module_of(package), loader())
    callbacks = choosing(other(package).callbacks)
    trainer.callbacks += callbacks
    problems = "\n".join(trainer_problems(trainer, trainer.lightning_module))
    assert [kind for kind in map(type, callbacks) if f"`{kind.__name__}`" not in problems] == []


def test_a_rate_that_the_data_chose(package, loader, tmp_path):
    finder = package.callbacks.LearningRateFinder(num_training_steps=3)
    options = {"default_root_dir": tmp_path, "max_epochs": 9}
    with pytest.raises(UncertifiableError, match="`LearningRateFinder`"):
        train(package, module_of(package, lr=0.1), loader(), finder, CertifiedTraining(ADVERSARY), **options)
    module = module_of(package, lr=0.1)
    trainer = package.Trainer(callbacks=[CertifiedTraining(ADVERSARY)], accelerator="cpu", **QUIET, **options)
    importlib.import_module(f"{package.__name__}.tuner").Tuner(trainer).lr_find(module, loader(), num_training=3)
    with pytest.raises(UncertifiableError, match="lr_find"):
        trainer.fit(module, loader())


def test_a_batch_size_that_the_memory_chose(package, loader, tmp_path):
    """It does not depend on the numbers in the data, and trains on none of the callback's steps."""
    finder = package.callbacks.BatchSizeFinder(steps_per_trial=1, max_trials=1)
    data = loader().dataset
    loads = {"batch_size": 2, "train_dataloader": lambda self: DataLoader(data, self.batch_size)}
    loads["val_dataloader"] = lambda self: DataLoader(data, 8)
    module, certified = module_of(package, **loads), CertifiedTraining(ADVERSARY)
    train(package, module, None, finder, certified, default_root_dir=tmp_path)
    assert certified.engine.steps == 8 // module.batch_size
    assert certified.bounds.contains(module)


class Plugin:
    """A precision plugin of the user's."""


def test_a_precision_plugin(package, loader):
    precision = type("Halving", (Plugin, importlib.import_module(f"{package.__name__}.plugins").Precision), {})
    with pytest.raises(UncertifiableError, match="`Halving`"):
        train(package, module_of(package), loader(), CertifiedTraining(ADVERSARY), plugins=[precision()])


def test_gradients_that_are_clipped_by_hand(package, loader):
    def clip(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, 1.0, "norm")

    with pytest.raises(UncertifiableError, match="`configure_gradient_clipping` is overridden"):
        train(package, module_of(package, configure_gradient_clipping=clip), loader(), CertifiedTraining(ADVERSARY))


def test_accumulation_over_a_loader_that_starts_again(package):
    """The schedule accumulates in a later epoch only, when the shorter loader has started again."""

    def step(self, batch, batch_idx):
        (x, y), _ = batch
        return nn.functional.mse_loss(self(x), y)

    combined = importlib.import_module(f"{package.__name__}.utilities").CombinedLoader
    loaders = [DataLoader(TensorDataset(torch.ones(size, 3), torch.ones(size, 1)), 2) for size in (8, 4)]
    schedule = package.callbacks.GradientAccumulationScheduler({1: 2})
    with pytest.raises(UncertifiableError, match="starts again while gradients are accumulated"):
        train(
            package,
            module_of(package, training_step=step),
            combined(loaders, "max_size_cycle"),
            schedule,
            CertifiedTraining(ADVERSARY),
            max_epochs=2,
        )


def test_samplers_inside_of_wrappers(package):
    """Lightning wraps a sampler of the user's for several processes."""
    distributed = pytest.importorskip(f"{FABRICS[package.__name__]}.utilities.distributed")
    inner = RandomSampler(range(8), replacement=True)
    wrapper = distributed.DistributedSamplerWrapper(inner, num_replicas=1, rank=0)
    loader = SimpleNamespace(sampler=wrapper)
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(_combined_loader=SimpleNamespace(flattened=[loader])))
    assert draws_once(trainer)
    trainer.callbacks, trainer.accumulate_grad_batches = [], 1
    trainer.fit_loop._combined_loader._mode = "min_size"
    alone = SimpleNamespace(size=1, union=list)
    assert "Draw without replacement" in "\n".join(sampler_problems(trainer, alone))


def test_strategies(package):
    strategies = package.strategies
    processes = {"world_size": 2, "lightning_module": nn.Linear(1, 1)}
    compressed = strategies.DDPStrategy(ddp_comm_hook=print)
    assert "communication hook" in "\n".join(strategy_problems(SimpleNamespace(strategy=compressed, **processes)))
    assert strategy_problems(SimpleNamespace(strategy=strategies.DDPStrategy(), **processes)) == []
    parts = SimpleNamespace(strategy=strategies.FSDPStrategy(), **processes)
    assert "must be whole in every process" in "\n".join(strategy_problems(parts))


# --- the packages themselves -----------------------------------------------------------------------------------------


def test_a_version_that_is_not_known_is_refused(package, loader):
    trainer = package.Trainer(accelerator="cpu", **QUIET)
    assert package_problems(trainer, module_of(package)) == []
    for pair in ((object(), module_of(package)), (trainer, nn.Linear(1, 1))):
        assert "whose training loop is not known" in "\n".join(package_problems(*pair))


def test_a_hook_that_is_set_on_the_object_is_named(package, loader):
    """A copy of the module would run it on the module itself."""
    module, certified = module_of(package), CertifiedTraining(ADVERSARY)
    module.on_before_zero_grad = lambda optimizer: None
    train(package, module, loader(), certified)
    assert "it is set on the object" in "".join(certified.engine.stated[UNTRIED_HOOKS])
    assert base_of(module) is package.LightningModule


def test_the_copy_is_not_needed(monkeypatch):
    monkeypatch.setattr(packages, "COPY", None)
    assert len(of_both(importlib.import_module("lightning").Trainer)) == 1
    for broken in (ImportError, SimpleNamespace(__version__="2.5.9"), SimpleNamespace(__version__="dev")):
        monkeypatch.setattr(packages.importlib, "import_module", _importing(broken))
        assert packages._copy() is None


def _importing(result):
    def imported(name):
        if isinstance(result, type):
            raise result
        return result

    return imported


def _names_of_lightning(tree):
    """The names that a file imports from Lightning."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lightning":
            yield from (alias.asname or alias.name for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.asname or alias.name for alias in node.names if alias.name.split(".")[0] == "lightning")


def _outside_of_both(node, names):
    """The names of a set that an expression uses, besides those in calls of `of_both`."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "of_both":
        return
    if isinstance(node, ast.Name) and node.id in names:
        yield node.id
    for child in ast.iter_child_nodes(node):
        yield from _outside_of_both(child, names)


def test_every_check_by_class_is_of_both_packages():
    """`isinstance` with a class of one package would let the other's pass."""
    found = []
    for path in sorted(Path(agt_lightning.lightning.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        names = set(_names_of_lightning(tree))
        for node in ast.walk(tree):
            kinds = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("isinstance", "issubclass"):
                kinds = node.args[1:]
            elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot | ast.In | ast.NotIn):
                kinds = [node.left, *node.comparators]
            found += [f"{path.name}:{node.lineno} {name}" for kind in kinds for name in _outside_of_both(kind, names)]
    assert found == []
