"""Refusals name the true cause, where it is and a way out; every way out that is named here is one that trains."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from agt_lightning import BoundedAdversary, CertifiedTraining, UnboundedAdversary, UncertifiableError

FEATURES = BoundedAdversary(n=1, epsilon=0.05)


@pytest.fixture
def problems(fit, loader):
    """The reasons for which a training is refused; empty if it is not."""

    def run(module, *callbacks, kind="number", data=None, adversary=FEATURES, **options):
        try:
            fit(module, loader(kind) if data is None else data, *callbacks, CertifiedTraining(adversary), **options)
        except UncertifiableError as error:
            return list(error.problems)
        return []

    return run


@pytest.fixture
def stepping(regressor, classifier):
    """A module whose training step is a function of itself and the batch."""

    def make(step, net=None, kind="number", **members):
        def training_step(self, batch, batch_idx):
            return step(self, *batch)

        base = regressor if kind == "number" else classifier
        module = type("Steps", (base,), {"training_step": training_step, **members})()
        module.net = module.net if net is None else net
        return module

    return make


def squared(self, x, y):
    return F.mse_loss(self(x), y)


# --- losses of the whole batch, in other shapes ---------------------------------------------------------------------

TOTALS = {
    "stacked": lambda s, x, y: torch.stack([squared(s, x, y), F.l1_loss(s(x), y)]).mean(),
    "with constant factors": lambda s, x, y: (
        torch.stack([squared(s, x, y), F.l1_loss(s(x), y)]) * torch.tensor([0.3, 0.7])
    ).sum(),
    "one of several": lambda s, x, y: torch.stack([F.l1_loss(s(x), y), squared(s, x, y)])[1],
    "repeated": lambda s, x, y: squared(s, x, y).expand(2)[0],
    "viewed": lambda s, x, y: squared(s, x, y).view(1)[0],
    "at least one axis": lambda s, x, y: torch.atleast_1d(squared(s, x, y)).sum(),
    "by output": lambda s, x, y: F.mse_loss(s(x), y, reduction="none").mean(0)[0],
}
SPELLED_OUT = {
    "stacked": lambda s, x, y: 0.5 * squared(s, x, y) + 0.5 * F.l1_loss(s(x), y),
    "with constant factors": lambda s, x, y: 0.3 * squared(s, x, y) + 0.7 * F.l1_loss(s(x), y),
}


@pytest.mark.parametrize("name", TOTALS)
def test_numbers_of_the_whole_batch_change_their_shape(name, fit, loader, stepping):
    bounds = []
    for step in (TOTALS[name], SPELLED_OUT.get(name, squared)):
        certified = CertifiedTraining(FEATURES)
        torch.manual_seed(3)
        fit(stepping(step), loader(), certified)
        bounds.append(certified.bounds)
    for name, interval in bounds[0].items():
        torch.testing.assert_close(interval.lower, bounds[1][name].lower)
        torch.testing.assert_close(interval.upper, bounds[1][name].upper)


def test_the_largest_of_several_losses_is_no_sum(problems, stepping):
    (first, *_) = problems(stepping(lambda s, x, y: torch.stack([squared(s, x, y), F.l1_loss(s(x), y)]).max()))
    assert "`aten.max`" in first
    assert "not a mean or sum" in first


@pytest.mark.slow
def test_factors_after_the_mean(problems, stepping, regressor):
    factors = torch.tensor([1.0, 2.0, 3.0])

    def late(s, x, y):
        return (F.mse_loss(s(x), x, reduction="none").mean(0) * factors).sum()

    def early(s, x, y):
        return (F.mse_loss(s(x), x, reduction="none") * factors).mean(0).sum()

    net = nn.Linear(3, 3)
    assert "Multiply them by their factors before that" in "\n".join(problems(stepping(late, net)))
    assert problems(stepping(early, net)) == []


# --- constants and parameters ---------------------------------------------------------------------------------------


class Positions(nn.Module):
    """A table of positions that is looked up, or met as it is."""

    def __init__(self, *, looked_up):
        super().__init__()
        self.table, self.head, self.looked_up = nn.Embedding(3, 2), nn.Linear(6, 1), looked_up

    def forward(self, x):
        rows = self.table(torch.arange(3)) if self.looked_up else self.table.weight
        return self.head((x[:, :, None] + rows).flatten(1))


@pytest.mark.parametrize("looked_up", [True, False])
def test_a_table_of_positions_is_no_obstacle(looked_up, problems, stepping):
    assert problems(stepping(squared, Positions(looked_up=looked_up))) == []


ROWS = {
    "zeros": lambda s, x, rows: torch.zeros(rows, 1),
    "like a parameter": lambda s, x, rows: s.net[0].weight.new_zeros(rows, 1),
    "like the data": lambda s, x, rows: x.new_ones(rows, 1),
}


@pytest.mark.parametrize("make", ROWS.values(), ids=ROWS)
def test_constants_with_a_row_for_each_sample_are_no_obstacle(make, problems, stepping):
    assert problems(stepping(lambda s, x, y: F.mse_loss(s(x) + make(s, x, len(x)), y))) == []


@pytest.mark.slow
def test_a_penalty_on_weights_is_no_obstacle(problems, stepping):
    def penalized(s, x, y):
        return squared(s, x, y) + 0.01 * sum(p.abs().sum() for p in s.parameters())

    assert problems(stepping(penalized)) == []


# --- losses ---------------------------------------------------------------------------------------------------------

UNKNOWN = {"multilabel_margin_loss": lambda s, x, y: F.multilabel_margin_loss(s(x), y.long() * 0 - 1)}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_loss_without_a_rule(name, problems, stepping):
    (reason,) = problems(stepping(UNKNOWN[name]))
    assert f"`aten.{name}`" in reason
    assert "is a loss that has no bound rule" in reason


def test_a_loss_that_is_written_out(problems, stepping):
    assert problems(stepping(lambda s, x, y: (y.abs() * (y.abs() - s(x))).mean())) == []


@pytest.mark.slow
def test_weights_by_class(problems, stepping, loader):
    weights = torch.tensor([1.0, 2.0, 3.0])
    weighted = stepping(lambda s, x, y: F.cross_entropy(s(x), y, weight=weights, label_smoothing=0.1), kind="class")
    (reason,) = problems(weighted, kind="class")
    assert "Leave `weight` or `label_smoothing` out" in reason
    assert (
        problems(stepping(lambda s, x, y: F.cross_entropy(s(x), y, weight=weights), kind="class"), kind="class") == []
    )
    x, y = loader("class").dataset.tensors
    by_sample = DataLoader(TensorDataset(x, y, weights[y]), batch_size=4)
    out = stepping(lambda s, x, y, w: (w * F.cross_entropy(s(x), y, reduction="none")).mean(), kind="class")
    assert problems(out, data=by_sample) == []


# --- the samples' axis ----------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, *, own):
        super().__init__()
        self.up, self.head, self.own = nn.Linear(1, 4), nn.Linear(4, 1), own
        self.layer = nn.Linear(4, 12) if own else nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        h = self.up(x[..., None])
        return self.head((self._own(h) if self.own else self.layer(h, h, h, need_weights=False)[0]).mean(1))

    def _own(self, h):
        parts = (part.unflatten(2, (2, 2)).transpose(1, 2) for part in self.layer(h).chunk(3, dim=2))
        return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("own", [True, False])
def test_attention_with_the_samples_first_is_no_obstacle(own, problems, stepping):
    assert problems(stepping(squared, Attention(own=own))) == []


class Normalized(nn.Module):
    """A kind of layer on two lines."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.second, self.inner, self.head = layer(3), layer(4), nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        h = self.inner(self.first(x))
        h = self.second(h).relu()
        return self.head(h)


CLIPPED = UnboundedAdversary(n=1, kappa=1.0)


@pytest.mark.slow
def test_batch_normalization_has_ways_out(problems, stepping):
    found = problems(stepping(squared, Normalized(nn.BatchNorm1d)), adversary=CLIPPED)
    assert "), so no sample has a gradient of its own that could be clipped" in "\n".join(found)
    assert "Use `BoundedAdversary`, or use `GroupNorm`" in "\n".join(found)
    assert problems(stepping(squared, Normalized(nn.BatchNorm1d))) == []
    assert problems(stepping(squared, Normalized(lambda size: nn.GroupNorm(1, size))), adversary=CLIPPED) == []


def test_a_reason_with_two_places_is_given_once(problems, stepping):
    (reason,) = problems(stepping(squared, Normalized(lambda size: nn.Threshold(0.5, 0.0))))
    assert reason.count("has no bound rule") == 1
    assert "`h = self.inner(self.first(x))`, test_messages.py:" in reason
    assert "`h = self.second(h).relu()` has" in reason


@pytest.mark.slow
def test_batch_normalization_under_two_names(problems, stepping):
    module = stepping(squared, nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1)))
    module.norm = module.net[1]
    (reason,) = problems(module)
    assert "`net.1` and `norm` are one layer of batch normalization in training mode" in reason
    module = stepping(squared, module.net, on_train_epoch_start=lambda self: self.norm.eval())
    module.norm = module.net[1]
    assert problems(module) == []


class EndsInTraining:
    """A step that switches the network to `eval` for its accuracy, and back."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.net.eval()
        loss = F.mse_loss(self(x), y)
        with torch.no_grad():
            self.log("mean", self(x).mean())
        self.net.train()
        return loss


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:It looks like your `.eval.:UserWarning")
def test_a_second_pass_without_gradients(problems, regressor):
    module = type("Twice", (EndsInTraining, regressor), {})()
    module.net.insert(1, nn.BatchNorm1d(5))
    assert problems(module) == []


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_words_cannot_be_moved(problems, stepping):
    net = nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(6, 1))
    words = torch.arange(24).reshape(8, 3) % 9
    data = DataLoader(TensorDataset(words, torch.ones(8, 1)), batch_size=4)
    (reason,) = problems(stepping(squared, net), data=data)
    assert "poison labels instead, by `nu`" in reason
    assert problems(stepping(squared, net), data=data, adversary=BoundedAdversary(n=1, nu=0.1)) == []


@pytest.mark.parametrize("drop_last", [False, True])
def test_loaders_of_which_one_ends_with_a_smaller_batch(drop_last, problems, regressor):
    def step(self, batch, batch_idx):
        return F.mse_loss(self(batch["a"][0]), batch["a"][1]) + F.mse_loss(self(batch["b"][0]), batch["b"][1])

    sets = {name: TensorDataset(torch.randn(size, 3), torch.randn(size, 1)) for name, size in (("a", 8), ("b", 10))}
    loaders = {name: DataLoader(data, 4, drop_last=drop_last) for name, data in sets.items()}
    module = type("Joins", (regressor,), {"training_step": step})()
    found = problems(module, data=CombinedLoader(loaders, "max_size_cycle"))
    assert [reason for reason in found if "`drop_last=True`" not in reason] == []
    assert len(found) == int(not drop_last)


class Record:
    """A batch that is no container."""

    def __init__(self, x, y):
        self.x, self.y = x, y


def test_an_object_is_named(problems, regressor, loader):
    reads = {"training_step": lambda self, batch, batch_idx: F.mse_loss(self(batch.x), batch.y)}
    text = "\n".join(problems(type("Reads", (regressor,), reads)(), data=loader(adapt=Record)))
    assert "reads `batch`, which is no tensor (Record)" in text
    assert "weight_decay" not in text


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_step_that_cannot_be_recorded_hides_no_other_reason(problems, stepping):
    def guarded(s, x, y):
        sorted(y.flatten().tolist())
        return squared(s, x, y)

    module = stepping(guarded, configure_optimizers=lambda self: torch.optim.NAdam(self.parameters()))
    text = "\n".join(problems(module))
    assert "test_messages.py" in text
    assert "`sorted(y.flatten().tolist())`" in text
    assert "TORCH_LOGS" not in text
    assert "`NAdam` has no bounds" in text


@pytest.mark.filterwarnings("ignore:You passed .Trainer.accelerator:UserWarning")
def test_half_precision_on_a_cpu_is_one_reason(problems, stepping):
    (reason,) = problems(stepping(squared), precision="16-mixed")
    assert "'bf16-mixed'" in reason
    assert "for '16-mixed' on a CPU" in reason


@pytest.mark.parametrize("enabled", [True, False])
def test_autocast_that_is_switched_off(enabled, problems, stepping):
    def cast(s, x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = s(x)
        return F.mse_loss(out.float(), y)

    found = problems(stepping(cast))
    assert len(found) == int(enabled)
    assert all("mixed precision" in reason for reason in found)


def test_a_module_without_forward(fit, loader, regressor):
    def step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), batch[1])

    module, certified = type("Blind", (regressor,), {"training_step": step, "forward": nn.Module().forward})(), None
    module.forward = lambda x: nn.Module()(x)
    certified = CertifiedTraining(FEATURES)
    fit(module, loader(), certified)
    with pytest.raises(UncertifiableError, match=r"Give the module a method `forward\(self, x\)`"):
        certified.certified_model(module).bound_forward(torch.zeros(2, 3))


@pytest.mark.slow
def test_prints_are_those_of_training(problems, stepping, capsys):
    def chatty(s, x, y):
        loss = squared(s, x, y)
        print(f"loss {loss}")  # noqa: T201
        return loss

    assert problems(stepping(chatty)) == []
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("loss")]
    assert len(printed) == 2  # one for each batch
    assert all(float(line.split()[1]) > 0 for line in printed)
