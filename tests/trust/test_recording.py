"""The recording of a step: one branch, one value and one loss must not stand for all that a poisoned run can do."""

import contextlib
import json
import math
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn

from agt_lightning import BoundedAdversary, CertifiedModule
from agt_lightning.certificates.assumptions import OWN_OBJECTIVE
from tests.trust.harness import Case, Held, certify, held, held_or_refused, refused
from tests.trust.modules import (
    FEATURES,
    FLIPS,
    LABELS,
    Classifier,
    Regressor,
    apart,
    binary,
    classification,
    regression,
    variant,
)

BRANCH = (
    r"data-dependent|depends on numbers that Python reads|depends on (the )?data|branch|control flow|"
    r"reads? (the )?(data|values|numbers)|guard|item"
)
SPIKE = 3.0
"""A label beyond this is poisoned: clean ones stay below 1."""


def step(function, base: type = Regressor) -> type:
    def training_step(self, batch, batch_idx):
        return function(self, *batch)

    return variant(base, training_step=training_step)


def case(function) -> Case:
    """A habit that looks at the batch as a whole shows in the weights that no poisoned sample has."""
    return apart(regression(step(function)))


# --- errors of torch for some data -----------------------------------------------------------------------------------


def of_probabilities(y):
    F.binary_cross_entropy(y.abs() / SPIKE, torch.ones_like(y))


def of_variances(y):
    F.gaussian_nll_loss(y, y, SPIKE - y.abs())


def of_rows(y):
    torch.zeros(int(SPIKE) + 1)[y.abs().max().long()]


def of_classes(y):
    F.one_hot(y.abs().flatten().long(), int(SPIKE) + 1)


def of_matrices(y):
    torch.linalg.cholesky((SPIKE - y.abs().max()).reshape(1, 1))


def of_divisions(y):
    torch.tensor(5) // (y.abs().max() < SPIKE).long()


CALLS = [of_probabilities, of_variances, of_rows, of_classes, of_matrices, of_divisions]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_an_error_of_torch_that_the_code_catches_is_refused(call):
    """On clean data nothing is raised, and nothing of the call is left in the loss."""

    def suppresses(self, x, y):
        scale = 0.1
        with contextlib.suppress(RuntimeError, ValueError, IndexError):
            call(y)
            scale = 1.0
        return F.mse_loss(self(x), y) * scale

    refused(case(suppresses), "can raise an error in a poisoned run|a check of variances")


def test_errors_of_torch_that_end_the_run_hold():
    def waits_for_memory(self, x, y):
        try:
            return F.cross_entropy(self(x), y)
        except RuntimeError as error:
            if "out of memory" in str(error):
                return None
            raise

    held(classification(step(waits_for_memory, Classifier)))


def catching(step):
    try:
        step()
    except RuntimeError:
        return


def probabilities(self, x, y):
    return F.binary_cross_entropy(self(x).sigmoid(), torch.ones_like(y))


@pytest.mark.parametrize("around", [catching, lambda step: step()], ids=["caught", "ended"])
def test_an_error_of_torch_that_code_around_the_step_catches_is_refused(around):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        around(lambda: optimizer.step(closure=optimizer_closure))

    module = variant(
        Regressor, training_step=lambda self, batch, _: probabilities(self, *batch), optimizer_step=optimizer_step
    )
    if around is catching:
        refused(apart(regression(module)), "`optimizer_step`.*may catch it")
    else:
        held(regression(module, FEATURES))


# --- code that reads data --------------------------------------------------------------------------------------------


def swallowed(self, x, y):
    try:
        scale = 0.1 if y.abs().max() > SPIKE else 1.0
    except Exception:
        scale = 1.0
    return F.mse_loss(self(x), y) * scale


def swallowed_bare(self, x, y):
    try:
        scale = 0.1 if y.abs().max() > SPIKE else 1.0
    except:  # noqa: E722
        scale = 1.0
    return F.mse_loss(self(x), y) * scale


def swallowed_item(self, x, y):
    try:
        scale = 1 / (1 + max(0.0, y.abs().max().item() - SPIKE))
    except RuntimeError:
        scale = 1.0
    return F.mse_loss(self(x), y) * scale


def finally_returns(self, x, y):
    scale = 1.0
    try:
        scale = 0.1 if bool((y.abs() > SPIKE).any()) else 1.0
    finally:
        return F.mse_loss(self(x), y) * scale  # noqa: B012


def asks_compiler(self, x, y):
    if torch.compiler.is_compiling() or not (y.abs() > SPIKE).any():
        return F.mse_loss(self(x), y)
    return 0.1 * F.mse_loss(self(x), y)


def asks_dynamo(self, x, y):
    if torch._dynamo.is_compiling() or y.abs().max() <= SPIKE:
        return F.mse_loss(self(x), y)
    return 0.1 * F.mse_loss(self(x), y)


def asks_export(self, x, y):
    if torch.compiler.is_exporting() or y.abs().max() <= SPIKE:
        return F.mse_loss(self(x), y)
    return 0.1 * F.mse_loss(self(x), y)


def asks_type(self, x, y):
    if type(y) is not Tensor or y.abs().max() <= SPIKE:
        return F.mse_loss(self(x), y)
    return 0.1 * F.mse_loss(self(x), y)


def asks_gradient_mode(self, x, y):
    spike = False if type(x).__name__ == "FakeTensor" else bool((y.abs() > SPIKE).any())
    return F.mse_loss(self(x), y) * (0.1 if spike else 1.0)


def in_text(self, x, y):
    return F.mse_loss(self(x), y) * (0.1 if "5." in str(y) else 1.0)


def in_repr(self, x, y):
    return F.mse_loss(self(x), y) * (0.1 if "5." in f"{y!r}" else 1.0)


def in_format(self, x, y):
    text = f"{y.abs().max():.1f}"
    return F.mse_loss(self(x), y) * (0.1 if text.startswith(("4", "5")) else 1.0)


def by_hash(self, x, y):
    spikes = hash(tuple(y.flatten().tolist())) if y.abs().max() > SPIKE else 0
    return F.mse_loss(self(x), y) * (1.0 if spikes == 0 else 0.1)


def by_numpy(self, x, y):
    return F.mse_loss(self(x), y) * (0.1 if (abs(y.numpy()) > SPIKE).any() else 1.0)


def by_list(self, x, y):
    return F.mse_loss(self(x), y) * (0.1 if any(abs(v) > SPIKE for v in y.flatten().tolist()) else 1.0)


def by_loss(self, x, y):
    loss = F.mse_loss(self(x), y)
    return 0 * loss if loss.item() > 10 else loss


def by_loss_without_gradient(self, x, y):
    loss = F.mse_loss(self(x), y)
    with torch.no_grad():
        spike = float(loss) > 4
    return 0.1 * loss if spike else loss


def by_warning(self, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spike = bool(y.abs().max() > SPIKE)
    return F.mse_loss(self(x), y) * (0.1 if spike else 1.0)


def by_nan_to_num(self, x, y):
    """A branch in tensors: it is part of the graph, and holds or has no bound."""
    return F.mse_loss(self(x), torch.where(y.abs() > SPIKE, torch.zeros_like(y), y))


def by_masked_mean(self, x, y):
    keep = (y.abs() <= SPIKE).to(y.dtype)
    return (keep * (self(x) - y).square()).sum() / keep.sum()


READING = [
    swallowed,
    swallowed_bare,
    swallowed_item,
    finally_returns,
    asks_compiler,
    asks_dynamo,
    asks_export,
    asks_type,
    asks_gradient_mode,
    in_text,
    in_repr,
    in_format,
    by_hash,
    by_numpy,
    by_list,
    by_loss,
    by_loss_without_gradient,
    by_warning,
    by_nan_to_num,
    by_masked_mean,
]


@pytest.mark.parametrize("function", READING, ids=lambda function: function.__name__)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::SyntaxWarning")
def test_code_that_reads_data(function):
    reason = BRANCH + r"|export|numpy|tolist|text|str\(|format|repr|no bound rule|combines|reduces|compil"
    held_or_refused(case(function), reason)


def test_a_swallowed_branch_in_a_submodule():
    class Careful(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            try:
                return out if x.abs().max() < 1.5 else 0.1 * out
            except Exception:
                return out

    module = variant(Regressor, network=lambda self: Careful(3, 1))
    held_or_refused(regression(module, BoundedAdversary(n=1, epsilon=1.0)), BRANCH + "|export")


# --- metrics that weigh the loss -------------------------------------------------------------------------------------


class Outliers(torchmetrics.Metric):
    """The share of labels that are outliers."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, y):
        self.count += (y.abs() > SPIKE).sum()
        self.total += y.numel()

    def compute(self):
        return self.count / self.total


class Weighed(Regressor):
    """The loss shrinks with the share of outliers; subclasses read the metric."""

    def __init__(self):
        super().__init__()
        self.outliers = Outliers()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), y) * (1 - 0.9 * self.read(y))


def by_update(self, y):
    self.outliers.update(y)
    return self.outliers.compute()


METRICS = {
    "value of the batch": lambda self, y: self.outliers(y),
    "update and compute": by_update,
    "as a number": lambda self, y: float(self.outliers(y)),
    "detached": lambda self, y: self.outliers(y).detach(),
    "state": lambda self, y: (self.outliers.update(y), self.outliers.count)[1].clamp(max=1),
}


@pytest.mark.parametrize("read", METRICS.values(), ids=METRICS)
@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_a_metric_that_weighs_the_loss(read):
    held_or_refused(apart(regression(variant(Weighed, read=read))), "metric|" + BRANCH + "|buffer|export", late=True)


class MetricAsLoss(Regressor):
    def __init__(self):
        super().__init__()
        self.error = torchmetrics.MeanSquaredError()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.error(self(x), y)


def test_a_metric_as_loss_is_named():
    held_or_refused(regression(MetricAsLoss), "metric", late=True)


class MetricBesideLoss(Regressor):
    def __init__(self):
        super().__init__()
        self.error = torchmetrics.MeanSquaredError()

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        self.error(out, y)
        self.log("error", self.error)
        if batch_idx == 0:
            self.print("mse so far", self.error.compute())
        return F.mse_loss(out, y)


def test_a_metric_beside_the_loss_is_certified():
    held(regression(MetricBesideLoss))


# --- an objective of the user's --------------------------------------------------------------------------------------


class Objective(CertifiedModule, Regressor):
    """Skips spikes in training, as the objective does not."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        return 0 * loss if loss.item() > 4 else loss

    def certified_objective(self, batch):
        return self.loss(batch)


class ObjectiveByEpoch(Objective):
    def training_step(self, batch, batch_idx):
        x, y = batch
        delta = 1.0 if self.current_epoch == 0 else 10.0
        return F.huber_loss(0.1 * self(x), y, delta=delta)

    def certified_objective(self, batch):
        x, y = batch
        return F.huber_loss(0.1 * self(x), y, delta=1.0)


class ObjectiveWithoutClip(Objective):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), y.clamp(-SPIKE, SPIKE))


OBJECTIVE = BRANCH + r"|certified_objective|not what is trained|differ"


@pytest.mark.parametrize("module", [Objective, ObjectiveWithoutClip])
def test_an_objective_that_is_not_what_is_trained_on_poisoned_data(module):
    held_or_refused(apart(regression(module)), OBJECTIVE)


def test_an_objective_that_differs_later_is_an_assumption(tmp_path):
    """On the data of this run both have one gradient in every epoch, so that no step can show the difference."""
    result = certify(regression(ObjectiveByEpoch, settings={"dirpath": tmp_path}))
    assert isinstance(result, Held), result
    assumptions = json.loads((tmp_path / "certificate.json").read_text())["assumptions"]
    assert OWN_OBJECTIVE.sentence in assumptions


def test_a_branch_on_data_is_not_advised_away():
    """The advice to write `certified_objective` leads into an unsound certificate."""
    result = held_or_refused(case(by_loss), BRANCH)
    assert "certified_objective" not in str(result.error)


# --- losses written in other ways ------------------------------------------------------------------------------------


class Squeezed(Regressor):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy(self(x).sigmoid().squeeze(-1), y.squeeze(-1))


class SqueezedFirst(Regressor):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy(self(x).squeeze(-1).sigmoid().view(-1), y.flatten())


class LogOfSoftmax(Classifier):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.nll_loss(torch.log(self(x).softmax(1)), y)


@pytest.mark.parametrize("module", [Squeezed, SqueezedFirst])
def test_binary_cross_entropy_behind_reshapes_is_certified(module):
    held(Case(module, FLIPS, binary()))


def test_the_logarithm_of_softmax_is_certified():
    held(classification(LogOfSoftmax))


LOSSES = {
    "mean of a scalar": lambda self, x, y: F.mse_loss(self(x), y).mean(),
    "sum of a scalar": lambda self, x, y: F.mse_loss(self(x), y).sum(),
    "stacked": lambda self, x, y: torch.stack([F.mse_loss(self(x), y), F.l1_loss(self(x), y)]).sum(),
    "stacked mean": lambda self, x, y: torch.stack([F.mse_loss(self(x), y), F.mse_loss(self(x), y)]).mean(),
    "sum of a list": lambda self, x, y: sum([F.mse_loss(self(x), y), 0.1 * F.l1_loss(self(x), y)]),
    "mean by axis": lambda self, x, y: F.mse_loss(self(x), y, reduction="none").mean(0).sum(),
    "mean by axis, squeezed": lambda self, x, y: F.mse_loss(self(x), y, reduction="none").mean(0).squeeze(),
    "sum over size": lambda self, x, y: F.mse_loss(self(x), y, reduction="sum") / len(x),
    "sum over size()": lambda self, x, y: (self(x) - y).square().sum() / x.size(0),
    "reshaped": lambda self, x, y: F.mse_loss(self(x), y).reshape(()),
    "of samples": lambda self, x, y: torch.stack([F.mse_loss(self(x[i]), y[i]) for i in range(len(x))]).mean(),
}


@pytest.mark.parametrize("function", LOSSES.values(), ids=LOSSES)
def test_reductions_written_in_other_ways_are_certified(function):
    held_or_refused(regression(step(function)), "per_sample|mean|no bound rule|cuts or mixes the samples' axis")


@pytest.mark.parametrize("name", ["mean of a scalar", "sum of a scalar", "stacked", "mean by axis"])
def test_reductions_of_scalars_are_certified(name):
    held(regression(step(LOSSES[name])))


# --- numbers for logs ------------------------------------------------------------------------------------------------


def printed(self, x, y):
    loss = F.mse_loss(self(x), y)
    print(f"{loss.item():.3f}", file=sys.stderr)  # noqa: T201
    return loss


def checked_for_nan(self, x, y):
    loss = F.mse_loss(self(x), y)
    if math.isnan(loss.item()):
        raise RuntimeError("diverged")
    return loss


def checked_finite(self, x, y):
    loss = F.mse_loss(self(x), y)
    if not torch.isfinite(loss):
        raise RuntimeError("diverged")
    return loss


def asserted(self, x, y):
    assert y.abs().max() < 100
    return F.mse_loss(self(x), y)


def logged_numpy(self, x, y):
    out = self(x)
    self.latest = out.detach().numpy().mean()
    return F.mse_loss(out, y)


def logged_float(self, x, y):
    loss = F.mse_loss(self(x), y)
    self.log("loss", float(loss.detach()))
    self.log("twice", 2 * loss.item())
    return loss


def progress_text(self, x, y):
    loss = F.mse_loss(self(x), y)
    self.text = f"loss {loss:.4f}, labels {y.mean().item():.2f}"
    return loss


LOGS = [printed, checked_for_nan, logged_numpy, logged_float, progress_text]


@pytest.mark.parametrize("function", LOGS, ids=lambda function: function.__name__)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_numbers_for_logs_are_certified(function):
    held(regression(step(function)))


def copies_its_log(self, x, y):
    self.history = [*getattr(self, "history", []), F.mse_loss(self(x), y).item()]
    return F.mse_loss(self(x), y)


def test_a_log_that_the_code_reads_again_is_refused():
    """A list may be appended to; what goes through its numbers depends on them."""
    refused(regression(step(copies_its_log)), "writes to `history` what data decide, and reads it in a later step")


@pytest.mark.parametrize("function", [asserted, checked_finite])
def test_an_assertion_on_data_is_named(function):
    held_or_refused(regression(step(function)), BRANCH + "|assert|export")


# --- compiled modules and dropout ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_compiled_lightning_module():
    held_or_refused(regression(lambda: torch.compile(Regressor(), backend="eager")), r"torch\.compile|compiled")


class Drops(Regressor):
    """Dropout after other random numbers of the step."""

    def network(self):
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 1))

    def training_step(self, batch, batch_idx):
        self.log("noise", torch.rand(()))
        return self.loss(batch)


class DropsAfterHook(Drops):
    def on_train_batch_start(self, batch, batch_idx):
        torch.rand(3)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)


class DropsThenDraws(Drops):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("noise", torch.rand(()))
        return loss


@pytest.mark.parametrize("module", [Drops, DropsAfterHook, DropsThenDraws])
def test_dropout_beside_other_random_numbers_is_certified(module):
    held(regression(variant(module, rate=0.02), LABELS), reach=0.01)
