"""Which entries of a batch are features and which are labels: guesses that leave an entry unmoved must not be silent.

The adversary moves *the features* and *the labels* of its samples. Whoever certifies names nothing, so each entry that
reaches the loss counts as what it is, or the training is refused with a request to name it.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import BoundedAdversary
from agt_lightning.errors import AgtError
from tests.trust.harness import Case, Refused, as_dict, certify, held, held_or_refused, require_reason
from tests.trust.modules import Regressor, binary, classes, numbers, regression, variant

ROLES = r"features=|labels?=|role|ambiguous|name (it|them|the)|discrete|integer"

FEATURES = BoundedAdversary(n=2, epsilon=0.1)
VALUES = BoundedAdversary(n=1, nu=1.0)
FLIPS = BoundedAdversary(n=1, nu=1, q=0)


def more(rows, **entries):
    """Add entries of standard normal values, shape by name."""
    generator = torch.Generator().manual_seed(11)
    made = {
        name: torch.randn(len(rows["y"]), *shape, generator=generator, dtype=torch.float64)
        for name, shape in entries.items()
    }
    return rows | made


class Model(Regressor):
    """A network with parts; subclasses write the loss of a dictionary."""

    rate = 0.05

    def network(self):
        return nn.ModuleDict({"enc": nn.Linear(3, 2), "head": nn.Linear(4, 1), "gate": nn.Linear(1, 1)})

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.grad_fn is None], lr=self.rate)


class LateFusion(Model):
    """Raw features join an encoding: the standard multimodal model."""

    def training_step(self, batch, batch_idx):
        joined = torch.cat([self.net["enc"](batch["x"]).relu(), batch["t"]], dim=1)
        return F.mse_loss(self.net["head"](joined), batch["y"])

    def network(self):
        return nn.ModuleDict({"enc": nn.Linear(3, 2), "head": nn.Linear(4, 1)})


class Added(LateFusion):
    """Raw features are added to an encoding."""

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net["head"]((self.net["enc"](batch["x"]) + batch["t"]).relu()), batch["y"])

    def network(self):
        return nn.ModuleDict({"enc": nn.Linear(3, 2), "head": nn.Linear(2, 1)})


class Gated(Added):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net["head"](self.net["enc"](batch["x"]) * batch["t"]), batch["y"])


class GatedBySigmoid(Added):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net["head"](self.net["enc"](batch["x"]) * batch["t"].sigmoid()), batch["y"])


class Residual(Added):
    """The last layer corrects a baseline that comes with the data."""

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net["head"](self.net["enc"](batch["x"])) + batch["t"][:, :1], batch["y"])


class Interpolated(Added):
    """A weight of each sample between two heads."""

    def training_step(self, batch, batch_idx):
        share = batch["t"][:, :1].sigmoid()
        one, two = self.net["enc"](batch["x"]).split(1, dim=1)
        return F.mse_loss(share * one + (1 - share) * two, batch["y"])

    def network(self):
        return nn.ModuleDict({"enc": nn.Linear(3, 2)})


class Temperature(Added):
    """A positive feature divides the encoding."""

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net["head"](self.net["enc"](batch["x"]) / (1 + batch["t"].square())), batch["y"])


FUSIONS = [LateFusion, Added, Gated, GatedBySigmoid, Residual, Interpolated, Temperature]


def fused(module: type, adversary=FEATURES, **changes) -> Case:
    data = more(numbers(), t=(2,))
    return Case(module, adversary, data, form=as_dict, features=("x", "t"), options={"max_epochs": 1}).but(**changes)


@pytest.mark.parametrize("module", FUSIONS)
def test_features_that_join_late(module):
    held_or_refused(fused(module), ROLES)


@pytest.mark.parametrize("module", FUSIONS)
def test_features_that_join_late_hold_if_named(module):
    held_or_refused(fused(module, settings={"features": ["x", "t"], "labels": ["y"]}), "has no bound rule|combines")


@pytest.mark.parametrize("module", [LateFusion, Gated])
def test_only_late_features_move(module):
    """An attack on the entry that was overlooked alone."""
    case = fused(module)

    def poison(epoch, index, rows):
        rows["t"][:2] += 0.1
        return rows

    held_or_refused(case.but(attacks=[poison]), ROLES, reach=0.01)


class Offset(Regressor):
    """Labels meet a parameter: a learned offset."""

    rate = 0.02

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.net.weight.data.mul_(0.1)

    def training_step(self, batch, batch_idx):
        return (batch["w"] * (self.net(batch["x"]) - (batch["y"] - self.offset)) ** 2).mean()


class Scaled(Offset):
    def training_step(self, batch, batch_idx):
        return (batch["w"] * (self.net(batch["x"]) - batch["y"] * (1 + self.offset)) ** 2).mean()


class Weighted(Regressor):
    """The weight of a sample is neither features nor label: whatever it counts as, the label must move."""

    rate = 0.02  # with weights of three and more, bounds of larger steps are too wide for any attack to reach far

    def training_step(self, batch, batch_idx):
        return (batch["w"] * (self.net(batch["x"]) - batch["y"]) ** 2).mean()


class WeightedPair(Weighted):
    def training_step(self, batch, batch_idx):
        x, y, w = batch
        return (w * F.mse_loss(self.net(x), y, reduction="none")).mean()


def weighted(module: type, adversary=VALUES, **changes) -> Case:
    rows = more(numbers(), w=(1,))
    return Case(module, adversary, rows | {"w": 3 + rows["w"].abs()}, form=as_dict).but(**changes)


@pytest.mark.parametrize("module", [Offset, Scaled, Weighted])
def test_weights_beside_labels(module):
    held_or_refused(weighted(module), ROLES)


@pytest.mark.parametrize("module", [Offset, Weighted])
def test_weights_beside_labels_hold_if_named(module):
    held(weighted(module, settings={"labels": ["y"]}))


def test_positions_name_entries_of_a_tuple():
    case = weighted(WeightedPair, form=lambda rows, *_: (rows["x"], rows["y"], rows["w"]))
    held(case.but(settings={"labels": [1], "features": [0]}))


class ImageAndNumbers(Regressor):
    """A quantized image beside a tensor of numbers."""

    def network(self):
        return nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        joined = torch.cat([batch["x"].double() / 255, batch["t"] / 10000], dim=1)
        return F.mse_loss(self.net(joined), batch["y"])


class ImageBesideNumbers(ImageAndNumbers):
    def network(self):
        return nn.ModuleDict({"image": nn.Linear(2, 1), "numbers": nn.Linear(2, 1)})

    def training_step(self, batch, batch_idx):
        image = self.net["image"](batch["x"].double() / 255)
        return F.mse_loss(image + self.net["numbers"](batch["t"] / 10000), batch["y"])


@pytest.mark.parametrize("module", [ImageAndNumbers, ImageBesideNumbers])
def test_a_quantized_image_beside_numbers(module):
    generator = torch.Generator().manual_seed(3)
    data = more(numbers(), t=(2,))
    data["t"] = 100 * data["t"]
    data["x"] = torch.randint(20, 200, (8, 2), generator=generator).to(torch.uint8)
    case = Case(module, BoundedAdversary(n=2, epsilon=8.0), data, form=as_dict, features=("x",))

    def poison(epoch, index, rows):
        rows["x"][:2] += 8
        return rows

    held_or_refused(case.but(attacks=[poison], options={"max_epochs": 1}), ROLES + "|uint8|integers", reach=0.001)


# --- models that need no question ------------------------------------------------------------------------------------


class Tabular(Regressor):
    """The standard tabular model: an embedding of categories beside numbers."""

    def network(self):
        return nn.ModuleDict({"emb": nn.Embedding(3, 2), "head": nn.Linear(4, 1)})

    def training_step(self, batch, batch_idx):
        joined = torch.cat([self.net["emb"](batch["c"]), batch["x"]], dim=1)
        return F.mse_loss(self.net["head"](joined), batch["y"])


class DeepTabular(Tabular):
    def network(self):
        return nn.ModuleDict({"emb": nn.Embedding(3, 2), "body": nn.Linear(4, 3), "head": nn.Linear(3, 1)})

    def training_step(self, batch, batch_idx):
        joined = torch.cat([self.net["emb"](batch["c"]), batch["x"]], dim=1)
        return F.mse_loss(self.net["head"](self.net["body"](joined).relu()), batch["y"])


def tabular(module: type, adversary) -> Case:
    data = numbers(inputs=2) | {"c": torch.arange(8) % 3}
    return Case(module, adversary, data, form=as_dict, options={"max_epochs": 1})


@pytest.mark.parametrize("module", [Tabular, DeepTabular])
def test_the_tabular_model_holds(module):
    held(tabular(module, VALUES))
    held_or_refused(tabular(module, FEATURES), ROLES + "|c'\\]", reach=0.01)


@pytest.mark.parametrize("module", [Tabular, DeepTabular])
def test_the_tabular_model_holds_with_named_features(module):
    held(tabular(module, FEATURES).but(settings={"features": ["x"]}), reach=0.01)


class Masked(Regressor):
    """A padding mask meets the predictions as labels do."""

    outputs = 1
    loss_of = staticmethod(F.binary_cross_entropy_with_logits)

    def training_step(self, batch, batch_idx):
        losses = self.loss_of(self.net(batch["x"]), batch["y"], reduction="none")
        return (losses * batch["m"]).mean()


class MaskedWeight(Masked):
    def training_step(self, batch, batch_idx):
        return self.loss_of(self.net(batch["x"]), batch["y"], weight=batch["m"])


def masked(module: type, **changes) -> Case:
    mask = torch.ones(8, 1, dtype=torch.float64)
    mask[3] = 0
    return Case(module, FLIPS, binary() | {"m": mask}, form=as_dict).but(**changes)


@pytest.mark.parametrize("module", [Masked, MaskedWeight])
def test_a_padding_mask_is_named_or_asked_for(module):
    held_or_refused(masked(module), "labels?=")
    held(masked(module, settings={"labels": ["y"]}))


class FromOne(Regressor):
    outputs = 3

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y - 1)


class OneAgainstAll(Regressor):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self.net(x), (y == 1).double()[:, None])


class LongSqueezed(Regressor):
    outputs = 3

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y[:, None].squeeze(1).long())


class OneHot(Regressor):
    outputs = 3

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self.net(x), F.one_hot(y, 3).double())


def flipped_among(values, size=3):
    """Every other label among the values, for the first sample of each batch."""

    def poison(step):
        def changed(epoch, index, rows):
            rows["y"][0] = values[(values.index(int(rows["y"][0])) + step) % len(values)]
            return rows

        return changed

    return [poison(step) for step in range(1, size)]


@pytest.mark.parametrize(
    ("module", "shift", "values"),
    [(FromOne, 1, [1, 2, 3]), (OneAgainstAll, 0, [0, 1]), (LongSqueezed, 0, [0, 1, 2]), (OneHot, 0, [0, 1, 2])],
)
def test_labels_that_are_changed_before_the_loss(module, shift, values):
    rows = classes(kinds=len(values))
    case = Case(module, FLIPS, rows | {"y": rows["y"] + shift}, attacks=flipped_among(values, len(values)))
    held_or_refused(case, r"labels?.*(before|target|loss)|y - 1|class")


def test_labels_from_one_are_certified():
    rows = classes()
    held(Case(FromOne, FLIPS, rows | {"y": rows["y"] + 1}, attacks=flipped_among([1, 2, 3])))


# --- roles are shown -------------------------------------------------------------------------------------------------


def test_roles_are_in_the_certificate(tmp_path):
    import json

    for number, case in enumerate([regression(adversary=FEATURES), weighted(Weighted, settings={"labels": ["y"]})]):
        folder = tmp_path / str(number)
        settings = {**case.settings, "dirpath": folder}
        held(case.but(settings=settings), reach=0)
        text = json.dumps(json.loads((folder / "certificate.json").read_text()))
        assert "features" in text
        assert "batch[" in text


BAD = [
    ({"labels": ["nothing"]}, "nothing"),
    ({"features": ["nothing"]}, "nothing"),
    ({"labels": [7]}, "7"),
    ({"labels": ["y"], "features": ["y"]}, "both|twice|y"),
]


@pytest.mark.parametrize(("settings", "reason"), BAD)
def test_names_that_fit_no_entry_are_refused(settings, reason):
    result = certify(weighted(Weighted, settings=settings))
    assert isinstance(result, Refused)
    assert "unexpected keyword" not in str(result.error)
    require_reason(result, reason, late=False, kinds=(AgtError, ValueError, TypeError))


# --- further roles ---------------------------------------------------------------------------------------------------


class Contrastive(Regressor):
    """Two views of a sample through one network."""

    def training_step(self, batch, batch_idx):
        return (self.net(batch["x"]) - self.net(batch["t"])).square().mean() + F.mse_loss(
            self.net(batch["x"]), batch["y"]
        )


class Distilled(Regressor):
    """Outputs of a teacher that come with the data: they are labels too."""

    def training_step(self, batch, batch_idx):
        out = self.net(batch["x"])
        return F.mse_loss(out, batch["y"]) + F.mse_loss(out, batch["t"][:, :1])


class Autoencoder(Regressor):
    outputs = 3

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch["x"]), batch["x"]) + F.mse_loss(self.net(batch["x"])[:, :1], batch["y"])


class Forecast(Regressor):
    """Part of a row is the label."""

    def network(self):
        return nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch["x"][:, :2]), batch["x"][:, 2:]) + 0 * batch["y"].sum()


class WeightFromFeatures(Regressor):
    def training_step(self, batch, batch_idx):
        return (batch["x"][:, :1].sigmoid() * (self.net(batch["x"]) - batch["y"]) ** 2).mean()


class TargetFromFeatures(Regressor):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch["x"]), batch["y"] + batch["x"][:, :1])


class Attention(Regressor):
    """A feature chooses the mixture of two heads that see the other one."""

    def network(self):
        return nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(3, 1), "choice": nn.Linear(2, 1)})

    def training_step(self, batch, batch_idx):
        share = self.net["choice"](batch["t"]).sigmoid()
        out = share * self.net["a"](batch["x"]) + (1 - share) * self.net["b"](batch["x"])
        return F.mse_loss(out, batch["y"])


FURTHER = [Contrastive, Distilled, Autoencoder, Forecast, WeightFromFeatures, TargetFromFeatures, Attention]


@pytest.mark.parametrize("module", FURTHER)
@pytest.mark.parametrize("adversary", [FEATURES, BoundedAdversary(n=2, epsilon=0.05, nu=0.5)], ids=["features", "both"])
def test_entries_of_several_roles(module, adversary):
    data = more(numbers(), t=(3,) if module is Contrastive else (2,))
    features = (
        ("x",) if module in (Distilled, Autoencoder, Forecast, WeightFromFeatures, TargetFromFeatures) else ("x", "t")
    )
    case = Case(module, adversary, data, form=as_dict, features=features, options={"max_epochs": 1})
    held_or_refused(case, ROLES + "|combines|no bound rule|once as labels|batch entries", reach=0.005)


def test_a_label_hidden_in_an_argument():
    """`pos_weight` from the batch's labels: a statistic of all of them."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        weight = (1 - y).sum() / (1 + y.sum())
        return F.binary_cross_entropy_with_logits(self.net(x), y, pos_weight=weight)

    held_or_refused(
        Case(variant(Regressor, training_step=training_step), FLIPS, binary()), "samples|batch|combine|reduce"
    )


def test_two_loaders_are_two_entries():
    """Rows of two loaders are poisoned together as one sample."""

    class Two(Regressor):
        def training_step(self, batch, batch_idx):
            (a, y), (b, z) = batch
            return F.mse_loss(self.net(a), y) + F.mse_loss(self.net(b), z)

    def form(rows, epoch, index):
        return (rows["x"], rows["y"]), (rows["t"], rows["z"])

    data = more(numbers(), t=(3,), z=(1,))
    held(Case(Two, FEATURES, data, form=form, features=("x", "t")), reach=0.005)
