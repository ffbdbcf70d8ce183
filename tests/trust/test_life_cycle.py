"""More than one `fit`, and other weights than those of the last step: bounds belong to one run and to its end."""

import contextlib
import copy
import json
import re

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import BoundedAdversary, CertifiedModel, CertifiedModule, CertifiedTraining, ParameterBounds
from agt_lightning.errors import AgtError, BoundsMismatchError
from tests.trust.harness import (
    LEAST_WIDTH,
    QUIET,
    Batches,
    Case,
    held,
    held_or_refused,
    made,
    measured,
    parameters,
    seed_everything,
    standard_attacks,
)
from tests.trust.modules import FEATURES, LABELS, Classifier, Regressor, classification, regression, variant

MESSAGE = r"resume|new `?CertifiedTraining|checkpoint|again|last step|weights|parameters|bounds"


def trainer(*callbacks, **options) -> L.Trainer:
    return L.Trainer(callbacks=list(callbacks), **QUIET | {"max_epochs": 1} | options)


class Story:
    """The same sequence of fits on clean data with certificate, and on poisoned data without it."""

    def __init__(self, case: Case, script) -> None:
        self.case, self.script = case, script

    def run(self, *ours, poison=None) -> L.LightningModule:
        module = made(self.case)
        seed_everything()
        self.script(module, Batches(self.case, poison), list(ours))
        return module

    def tried(self, certified) -> tuple[L.LightningModule | None, str]:
        try:
            return self.run(certified), ""
        except AgtError as error:
            return None, str(error)

    def check(self, reason: str = MESSAGE) -> None:
        certified = CertifiedTraining(self.case.adversary)
        module, error = self.tried(certified)
        if module is None:
            assert re.search(reason, error), f"another reason: {error}"
            return
        clean = parameters(self.run())
        runs = [clean, parameters(module)]
        runs += [parameters(self.run(poison=poison)) for poison in standard_attacks(self.case)[:4]]
        found = measured(certified.bounds, clean, runs)
        assert found["outside"] == 0, f"outside by {found['outside']:.3g} (width {found['width']:.3g})"
        assert found["reach"] > 0.01


# --- fit again -------------------------------------------------------------------------------------------------------


LONG = 5
"""Epochs of a first training, after which a poisoned run is farther away than one more epoch takes it."""


def twice_the_same(module, data, ours):
    """The second call makes no step."""
    one = trainer(*ours, max_epochs=LONG)
    one.fit(module, data)
    one.fit(module, data)


def more_epochs(module, data, ours):
    one = trainer(*ours, max_epochs=LONG)
    one.fit(module, data)
    one.fit_loop.max_epochs = LONG + 1
    one.fit(module, data)


def a_new_trainer(module, data, ours):
    trainer(*ours, max_epochs=LONG).fit(module, data)
    trainer(*ours).fit(module, data)


def a_new_trainer_for_nothing(module, data, ours):
    trainer(*ours, max_epochs=LONG).fit(module, data)
    trainer(*ours, max_epochs=0).fit(module, data)


def no_batches(module, data, ours):
    trainer(*ours, max_epochs=LONG).fit(module, data)
    trainer(*ours, limit_train_batches=0).fit(module, data)


def a_fast_run_after(module, data, ours):
    trainer(*ours, max_epochs=LONG).fit(module, data)
    trainer(*ours, fast_dev_run=1).fit(module, data)


def uncertified_between(module, data, ours):
    """A step in between that no certificate saw."""
    trainer(*ours, max_epochs=LONG).fit(module, data)
    trainer().fit(module, data)
    trainer(*ours).fit(module, data)


def uncertified_before(module, data, ours):
    """Pretraining on the same data without certificate, in the same process."""
    trainer(*ours, max_epochs=LONG).fit(module, data)
    module.load_state_dict({name: 0.9 * value for name, value in module.state_dict().items()})
    trainer(*ours).fit(module, data)


def interrupted(module, data, ours):
    """Ctrl-C, and on."""

    class Interrupts(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 7 and not getattr(pl_module, "interrupted", False):
                pl_module.interrupted = True
                raise RuntimeError("interrupted")

    one = trainer(*ours, Interrupts(), max_epochs=LONG)
    with pytest.raises(RuntimeError, match="interrupted"):
        one.fit(module, data)
    trainer(*ours).fit(module, data)


def other_optimizer(module, data, ours):
    trainer(*ours, max_epochs=LONG).fit(module, data)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.5)
    trainer(*ours).fit(module, data)


def a_copy_of_the_module(module, data, ours):
    """A copy with the trained weights is trained on, and its weights are put back."""
    trainer(*ours, max_epochs=LONG).fit(module, data)
    other = copy.deepcopy(module)
    trainer(*ours).fit(other, data)
    module.load_state_dict(other.state_dict())


def frozen_in_between(module, data, ours):
    trainer(*ours, max_epochs=LONG).fit(module, data)
    module.net.bias.requires_grad_(False)
    trainer(*ours).fit(module, data)


SCRIPTS = [
    twice_the_same,
    more_epochs,
    a_new_trainer,
    a_new_trainer_for_nothing,
    no_batches,
    a_fast_run_after,
    uncertified_between,
    uncertified_before,
    interrupted,
    other_optimizer,
    a_copy_of_the_module,
    frozen_in_between,
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.filterwarnings("ignore:.*limit_train_batches.*:UserWarning", "ignore:`trainer.fit` stopped:UserWarning")
def test_fit_again(script):
    Story(regression(adversary=BoundedAdversary(n=1, nu=1.0)), script).check()


def test_a_new_callback_on_a_certified_module():
    """The second callback would begin with a point, where poisoned runs already differ."""

    def script(module, data, ours):
        trainer(*[CertifiedTraining(LABELS) for _ in ours], max_epochs=LONG).fit(module, data)
        trainer(*ours).fit(module, data)

    Story(regression(), script).check()


class Mixed(CertifiedModule, Regressor):
    """The mixin makes a new callback for each fit."""

    def configure_certification(self):
        return CertifiedTraining(LABELS)


def test_fit_again_with_the_mixin():
    case = regression(Mixed)

    def script(module, data, module_only):
        trainer(max_epochs=LONG).fit(module, data)
        trainer().fit(module, data)

    try:
        module = Story(case, script).run()
    except AgtError:
        return
    plain_case = regression()
    plain = Story(plain_case, script)
    clean = parameters(plain.run())
    runs = [parameters(plain.run(poison=poison)) for poison in standard_attacks(plain_case)[:4]]
    found = measured(module.parameter_bounds, clean, [clean, *runs])
    assert found["outside"] == 0, f"outside by {found['outside']:.3g} (width {found['width']:.3g})"


def test_a_fit_without_steps_leaves_files_alone(tmp_path):
    case = regression()
    certified = CertifiedTraining(case.adversary, dirpath=tmp_path)
    module, one = made(case), trainer(certified)
    one.fit(module, Batches(case))
    before = (tmp_path / "certificate.json").read_text()
    with contextlib.suppress(AgtError):
        one.fit(module, Batches(case))
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert record["steps"] == json.loads(before)["steps"] == 2
    assert ParameterBounds.load(tmp_path / "bounds.safetensors").mean_width() > 0


@pytest.mark.parametrize("options", [{"max_epochs": 0}, {"limit_train_batches": 0}, {"max_steps": 0}])
@pytest.mark.filterwarnings("ignore:.*limit_train_batches.*:UserWarning", "ignore:`trainer.fit` stopped:UserWarning")
def test_a_first_fit_without_steps_certifies_the_start(options, tmp_path):
    case = regression()
    certified = CertifiedTraining(case.adversary, dirpath=tmp_path)
    module = made(case)
    trainer(certified, **options).fit(module, Batches(case))
    if (tmp_path / "certificate.json").exists():
        assert json.loads((tmp_path / "certificate.json").read_text())["steps"] == 0
        assert ParameterBounds.load(tmp_path / "bounds.safetensors").contains(module)


def test_going_on_equals_one_long_training():
    """Two epochs in two fits have bounds that contain those of one, or the second fit is refused."""
    case = regression(adversary=BoundedAdversary(n=1, nu=1.0))
    whole = CertifiedTraining(case.adversary)
    trainer(whole, max_epochs=2).fit(made(case), Batches(case))
    parts, module = CertifiedTraining(case.adversary), made(case)
    trainer(parts).fit(module, Batches(case))
    try:
        trainer(parts).fit(module, Batches(case))
    except AgtError:
        return
    for name, interval in whole.bounds.items():
        assert (parts.bounds[name].lower <= interval.lower + LEAST_WIDTH).all()
        assert (parts.bounds[name].upper >= interval.upper - LEAST_WIDTH).all()


# --- other weights ---------------------------------------------------------------------------------------------------


def trained(case: Case, **options):
    certified, module = CertifiedTraining(case.adversary), made(case)
    one = trainer(certified, **{"max_epochs": 2} | options)
    seed_everything()
    one.fit(module, Batches(case))
    return certified, module, one


WRONG = (BoundsMismatchError, AgtError)


def shrunk(module):
    for parameter in module.parameters():
        parameter.mul_(1 - 1e-3)


def averaged(module):
    for parameter in module.parameters():
        parameter.copy_((parameter + parameter.mean()) / 2 + 0.5 * (parameter - parameter.mean()))
        parameter.add_(1e-6)


def rounded(module):
    for parameter in module.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


def swapped(module):
    weight = module.net.weight
    weight.copy_(weight.flip(1))


@pytest.mark.parametrize("change", [shrunk, averaged, rounded, swapped], ids=lambda change: change.__name__)
def test_weights_changed_by_hand_are_refused(change):
    certified, module, _ = trained(regression())
    certified.certified_model(module)
    with torch.no_grad():
        change(module)
    with pytest.raises(WRONG):
        certified.certified_model(module)
    with pytest.raises(WRONG):
        certified.certified_model()


def test_weights_changed_after_the_model_was_made_are_refused():
    certified, module, _ = trained(regression())
    model = certified.certified_model(module)
    x = torch.zeros(2, 3, dtype=torch.float64)
    model.bound_forward(x)
    with torch.no_grad():
        shrunk(module)
    with pytest.raises(WRONG):
        model.bound_forward(x)


def test_the_untouched_copy_is_accepted():
    certified, module, _ = trained(regression())
    other = made(regression())
    other.load_state_dict(module.state_dict())
    assert certified.certified_model(other).bounds.contains(other)
    assert certified.certified_model(copy.deepcopy(module)).bounds.contains(module)


class Scored(Classifier):
    """Validates by a score that falls, so that the first checkpoint is the best."""

    def validation_step(self, batch, batch_idx):
        self.log("score", float(self.current_epoch))

    def test_step(self, batch, batch_idx):
        pass


def loader(case: Case) -> DataLoader:
    return DataLoader(TensorDataset(case.data["x"], case.data["y"]), batch_size=case.batch_size)


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*:UserWarning", "ignore:.*ckpt_path.*:UserWarning")
@pytest.mark.parametrize("door", ["test", "validate", "load_state_dict"])
def test_the_best_checkpoint_is_not_the_last_step(door, tmp_path):
    case = classification(Scored)
    certified, module = CertifiedTraining(case.adversary), made(case)
    best = ModelCheckpoint(tmp_path, monitor="score", mode="min")
    one = trainer(certified, best, max_epochs=3, enable_checkpointing=True, num_sanity_val_steps=0)
    one.fit(module, Batches(case), loader(case))
    certified.certified_model(module)
    if door == "test":
        one.test(module, loader(case), ckpt_path="best", verbose=False)
    elif door == "validate":
        one.validate(module, loader(case), ckpt_path="best", verbose=False)
    else:
        module.load_state_dict(torch.load(best.best_model_path, weights_only=False)["state_dict"])
    with pytest.raises(WRONG):
        certified.certified_model(module)


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*:UserWarning", "ignore:.*ckpt_path.*:UserWarning")
def test_testing_with_the_best_checkpoint_does_not_spoil_the_bounds(tmp_path):
    case = classification(Scored)
    certified, module = CertifiedTraining(case.adversary), made(case)
    best = ModelCheckpoint(tmp_path, monitor="score", mode="min")
    one = trainer(certified, best, max_epochs=2, enable_checkpointing=True, num_sanity_val_steps=0)
    one.fit(module, Batches(case), loader(case))
    last = copy.deepcopy(module.state_dict())
    one.test(module, loader(case), ckpt_path="best", verbose=False)
    module.load_state_dict(last)
    assert certified.certified_model(module).bounds.contains(module)


def test_bounds_from_a_file_belong_to_their_weights(tmp_path):
    case = regression()
    certified = CertifiedTraining(case.adversary, dirpath=tmp_path)
    module = made(case)
    trainer(certified).fit(module, Batches(case))
    bounds = ParameterBounds.load(tmp_path / "bounds.safetensors")
    CertifiedModel(module, bounds)
    with torch.no_grad():
        shrunk(module)
    with pytest.raises(WRONG):
        CertifiedModel(module, ParameterBounds.load(tmp_path / "bounds.safetensors"))


class Averages(L.Callback):
    """Keeps an average and puts it into the module when training has ended."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.swap)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = [p.detach().clone() for p in pl_module.parameters()]
        old = getattr(self, "mean", now)
        self.mean = [(a + b) / 2 for a, b in zip(old, now, strict=True)]

    def swap(self, trainer, pl_module):
        with torch.no_grad():
            for p, mean in zip(pl_module.parameters(), self.mean, strict=True):
                p.copy_(mean)


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end", "teardown"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_an_average_swapped_in_after_training(hook, side):
    case = regression()
    average = Averages("on_fit_end" if hook == "teardown" else hook)
    certified, module = CertifiedTraining(case.adversary), made(case)
    callbacks = [average, certified] if side == "before" else [certified, average]
    try:
        trainer(*callbacks, max_epochs=2).fit(module, Batches(case))
    except AgtError:
        return
    with pytest.raises(WRONG):
        certified.certified_model(module)


# --- honest code -----------------------------------------------------------------------------------------------------


def initialize(self):
    with torch.no_grad():
        for parameter in self.parameters():
            parameter.fill_(0.1)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "setup"])
def test_initialization_in_a_hook_is_certified(hook):
    method = (lambda self, stage: initialize(self)) if hook == "setup" else initialize
    held(regression(variant(Regressor, **{hook: method})))


class Initializes(L.Callback):
    def __init__(self, hook: str) -> None:
        setattr(self, hook, lambda trainer, module: initialize(module))


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_start"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_initialization_by_a_callback(hook, side):
    case = regression(**{side: lambda: [Initializes(hook)]}, options={"max_epochs": 1})
    if hook == "on_train_epoch_start":
        held_or_refused(case, "changed|initializ|optimizer left|between", late=True)
    else:
        held(case)


class HeadOnly(Regressor):
    """The optimizer has the head alone; the backbone is not frozen, so its gradients pile up."""

    hidden = 4

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[2].parameters(), lr=0.1)


def test_parameters_without_an_optimizer_are_constant_or_named():
    held_or_refused(regression(HeadOnly), r"requires_grad_\(False\)|freeze|no (param )?group|not in|optimizer")


def test_an_optimizer_of_the_head_with_frozen_backbone_is_certified():
    def frozen(self):
        Regressor.__init__(self)
        self.net[0].requires_grad_(False)

    held(regression(variant(HeadOnly, __init__=frozen)))


class Scalable(Regressor):
    """Has the batch size where the tuner looks for it."""

    batch_size = 2

    def train_dataloader(self):
        rows = regression().data
        return DataLoader(TensorDataset(rows["x"], rows["y"]), batch_size=self.batch_size)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fit_after_scale_batch_size(tmp_path):
    torch.manual_seed(0)
    certified, module = CertifiedTraining(LABELS), Scalable()
    one = trainer(certified, max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=True)
    Tuner(one).scale_batch_size(module, mode="power", max_trials=1, steps_per_trial=1)
    one.fit(module)
    assert certified.bounds.contains(module)
    assert certified.bounds.mean_width() > 0.01


def test_fit_from_the_start_after_a_refused_resume(tmp_path):
    case = regression()
    plain = trainer(default_root_dir=tmp_path)
    plain.fit(made(case), Batches(case))
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    certified = CertifiedTraining(case.adversary)
    with pytest.raises(AgtError):
        trainer(certified, max_epochs=2).fit(made(case), Batches(case), ckpt_path=tmp_path / "plain.ckpt")
    module = made(case)
    trainer(certified).fit(module, Batches(case))
    assert certified.bounds.contains(module)
    assert certified.bounds.mean_width() > 0.01


def test_two_certificates_of_one_training():
    """Both hold, both can be resumed, and both are logged under names of their own; or two are refused."""
    case = regression()
    both = [CertifiedTraining(LABELS), CertifiedTraining(FEATURES)]
    module = made(case)
    one = trainer(*both)
    try:
        one.fit(module, Batches(case))
    except AgtError:
        return
    assert all(each.bounds.contains(module) for each in both)
    assert len([name for name in one.callback_metrics if "mean_width" in name]) == 2


def test_mixin_and_callback_of_the_trainer():
    """Lightning drops the Trainer's; whoever asks that one hears the truth."""
    case = regression(Mixed)
    mine = CertifiedTraining(FEATURES)
    module = made(case)
    try:
        trainer(mine).fit(module, Batches(case))
    except AgtError:
        return
    with pytest.raises((RuntimeError, AgtError), match="configure_certification|replaced|dropped|Lightning|module"):
        _ = mine.bounds
