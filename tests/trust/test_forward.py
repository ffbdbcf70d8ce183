"""Certificates of predictions: what `forward` reads, what it returns, and what a user reads off that."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import BoundedAdversary
from agt_lightning.errors import AgtError
from tests.trust.harness import Case, Held, Refused, certify, predictions_hold_or_refused
from tests.trust.modules import Classifier, Regressor, binary, classes, numbers, variant

FLIPS = BoundedAdversary(n=1, nu=1, q=0)
MOVES = BoundedAdversary(n=1, nu=0.5)

WRITTEN = r"changed (during|since|in) training|forward` reads|written|training (changed|wrote)|buffer|attribute"
DECIDES = r"threshold|logit|probabilit|classes|decide|label"


def inputs(size: int = 40) -> torch.Tensor:
    return 0.7 * torch.randn(size, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def largest(module, x):
    return module(x).argmax(dim=1)


def above(limit: float):
    return lambda module, x: (module(x) > limit).long().squeeze(1)


# --- what only forward reads -----------------------------------------------------------------------------------------


CLEAN = F.one_hot(classes()["y"], 3).double().mean(0)


class Slow(Classifier):
    """Hardly trains, so that its bounds are narrow and nearly everything is certified."""

    rate = 0.001


class AdjustsLogits(Slow):
    """Logit adjustment by the classes that were seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.ones(3, dtype=torch.float64))

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.counts += F.one_hot(batch[1], 3).sum(0)

    def forward(self, x):
        return self.net(x) - 3 * self.counts.log()


class AdjustsInStep(AdjustsLogits):
    def training_step(self, batch, batch_idx):
        self.counts.add_(F.one_hot(batch[1], 3).sum(0))
        return self.loss(batch)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass


class Keeps(AdjustsLogits):
    """Collects the data that come by; subclasses make something of them in the end."""

    def __init__(self):
        super().__init__()
        self.xs, self.ys = [], []

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.xs.append(batch[0])
        self.ys.append(batch[1])

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def shares(self):
        """How much more often each class was seen than on clean data: what one flipped label changes."""
        return 0.01 + 8 * (F.one_hot(torch.cat(self.ys), 3).double().mean(0) - CLEAN)


class Prototypes(Keeps):
    def __init__(self):
        super().__init__()
        self.register_buffer("means", torch.zeros(3, 3, dtype=torch.float64))

    def on_train_end(self):
        xs, ys = torch.cat(self.xs), torch.cat(self.ys)
        self.means = torch.stack([xs[ys == k].sum(0) / (1 + (ys == k).sum()) for k in range(3)])

    def forward(self, x):
        return 0.01 * self.net(x) + x @ self.means.T


class TensorAttribute(Keeps):
    shift = torch.zeros(3, dtype=torch.float64)

    def on_train_end(self):
        self.shift = self.shares()

    def forward(self, x):
        return self.net(x) - self.shift


class NumberAttribute(Keeps):
    shift = 0.0

    def on_train_end(self):
        self.shift = float(self.shares()[0])

    def forward(self, x):
        return self.net(x) - self.shift * torch.eye(3, dtype=torch.float64)[0]


class NumberOfSubmodule(NumberAttribute):
    def on_train_end(self):
        self.net.shift = float(self.shares()[0])

    def forward(self, x):
        return self.net(x) - getattr(self.net, "shift", 0.0) * torch.eye(3, dtype=torch.float64)[0]


class InList(NumberAttribute):
    def __init__(self):
        super().__init__()
        self.shifts = [0.0]

    def on_train_end(self):
        self.shifts[0] = float(self.shares()[0])

    def forward(self, x):
        return self.net(x) - self.shifts[0] * torch.eye(3, dtype=torch.float64)[0]


class InDict(InList):
    def __init__(self):
        super().__init__()
        self.shifts = {0: 0.0}


class InClosure(NumberAttribute):
    def __init__(self):
        super().__init__()
        self.shift_of = lambda: 0.0

    def on_train_end(self):
        shift = float(self.shares()[0])
        self.shift_of = lambda: shift

    def forward(self, x):
        return self.net(x) - self.shift_of() * torch.eye(3, dtype=torch.float64)[0]


class InObject(NumberAttribute):
    class Calibration:
        shift = 0.0

    def __init__(self):
        super().__init__()
        self.calibration = self.Calibration()

    def on_train_end(self):
        self.calibration.shift = float(self.shares()[0])

    def forward(self, x):
        return self.net(x) - self.calibration.shift * torch.eye(3, dtype=torch.float64)[0]


class SwitchedOn(NumberAttribute):
    """A branch that a training within the limits may have chosen."""

    strict = False

    def on_train_end(self):
        self.strict = bool(self.shares()[0] > 0.5)

    def forward(self, x):
        out = self.net(x)
        return out.flip(1) if self.strict else out


class PatchedForward(NumberAttribute):
    """`forward` itself is replaced when training has ended."""

    def on_train_end(self):
        shift = float(self.shares()[0])
        self.forward = lambda x: self.net(x) - shift * torch.eye(3, dtype=torch.float64)[0]

    def forward(self, x):
        return self.net(x)


class NewLayer(Keeps):
    """A layer that is added in the end."""

    def on_train_end(self):
        self.calibration = nn.Linear(3, 3).double()
        with torch.no_grad():
            self.calibration.weight.copy_(torch.eye(3))
            self.calibration.bias.copy_(-self.shares())

    def forward(self, x):
        out = self.net(x)
        return self.calibration(out) if hasattr(self, "calibration") else out


class Standardizes(Keeps):
    """Statistics of batch normalization, recomputed from the training data in the end."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False).double().eval()

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def on_train_end(self):
        self.norm.running_mean = self.shares()

    def forward(self, x):
        return self.norm(self.net(x))


class NonPersistent(AdjustsLogits):
    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.ones(3, dtype=torch.float64), persistent=False)


FORWARD_ONLY = [
    AdjustsLogits,
    AdjustsInStep,
    NonPersistent,
    Prototypes,
    TensorAttribute,
    NumberAttribute,
    NumberOfSubmodule,
    InList,
    InDict,
    InClosure,
    InObject,
    PatchedForward,
    Standardizes,
]


def flips(module: type) -> Case:
    return Case(module, FLIPS, classes())


@pytest.mark.parametrize("module", FORWARD_ONLY)
def test_what_only_forward_reads(module):
    predictions_hold_or_refused(flips(module), inputs(), largest, WRITTEN + "|compare")


@pytest.mark.xfail(
    strict=False, reason="on clean data nothing changes: documented, attributes are the same in every run"
)
def test_a_branch_that_clean_data_leave_alone():
    predictions_hold_or_refused(flips(SwitchedOn), inputs(), largest, WRITTEN)


def test_a_layer_that_is_added_in_the_end():
    result = certify(flips(NewLayer))
    if isinstance(result, Refused):
        assert isinstance(result.error, AgtError)
        return
    with pytest.raises(AgtError):
        result.certified.certified_model(result.module)


class TiesInTheEnd(Classifier):
    """The number of parameters is another one after the last step."""

    def network(self):
        return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))

    def on_train_end(self):
        self.net[2].weight = self.net[0].weight


def test_weights_that_are_tied_in_the_end():
    result = certify(flips(TiesInTheEnd))
    assert isinstance(result, Refused)
    assert isinstance(result.error, AgtError), repr(result.error)
    assert "net.2.weight" in str(result.error)


def test_a_threshold_chosen_on_training_data():
    class Threshold(Regressor):
        rate = 0.001

        def __init__(self):
            super().__init__()
            self.threshold, self.ys = 0.0, []

        def loss(self, batch):
            x, y = batch
            return F.binary_cross_entropy_with_logits(self(x), y)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.ys.append(batch[1])

        def on_train_end(self):
            self.threshold = 0.01 + 8 * float(torch.cat(self.ys).mean() - binary()["y"].mean())

        def forward(self, x):
            return self.net(x) - self.threshold

    predictions_hold_or_refused(Case(Threshold, FLIPS, binary()), inputs(), above(0.0), WRITTEN)


@pytest.mark.parametrize("module", [AdjustsLogits, TensorAttribute, NumberAttribute])
def test_written_after_fit_by_hand(module):
    """Calibration after training, from training data again."""
    honest = variant(module, on_train_end=lambda self: None, on_train_batch_end=lambda self, *args: None)
    result = certify(flips(honest))
    assert isinstance(result, Held)
    with torch.no_grad():
        if module is AdjustsLogits:
            result.module.counts.fill_(3.0)
        else:
            result.module.shift = torch.full((3,), 2.0, dtype=torch.float64) if module is TensorAttribute else 2.0
    with pytest.raises(AgtError, match=WRITTEN):
        result.certified.certified_model(result.module).certify(inputs())


class Constant(Slow):
    """Reads buffers and attributes that nothing writes."""

    scale = 2.0

    def __init__(self):
        super().__init__()
        self.register_buffer("prior", torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
        self.config = {"shift": 0.5}
        self.seen = 0

    def training_step(self, batch, batch_idx):
        self.seen = self.seen + 1
        return self.loss(batch)

    def forward(self, x):
        return self.scale * self.net(x) - self.prior + self.config["shift"]


def test_constants_that_forward_reads_are_certified():
    certification = predictions_hold_or_refused(flips(Constant), inputs(), largest, "nothing")
    assert certification is not None
    assert certification.certified.any()


# --- what outputs mean -----------------------------------------------------------------------------------------------


class Probability(Regressor):
    """`forward` returns probabilities."""

    def forward(self, x):
        return self.net(x).sigmoid()

    def loss(self, batch):
        x, y = batch
        return F.binary_cross_entropy(self(x), y)


class ZeroOne(Regressor):
    """0/1 targets with squared error, as in least squares classification."""


class ProbabilityBySquares(Probability):
    def loss(self, batch):
        x, y = batch
        return F.mse_loss(self(x), y)


class Logit(Regressor):
    def loss(self, batch):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y)


class LogitInLoss(Probability):
    """Logits in the loss, probabilities from `forward`."""

    def loss(self, batch):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self.net(x), y)


class SignedByHinge(Regressor):
    def loss(self, batch):
        x, y = batch
        return F.relu(1 - (2 * y - 1) * self(x)).mean()


class Tanh(Regressor):
    def forward(self, x):
        return self.net(x).tanh()

    def loss(self, batch):
        x, y = batch
        return F.mse_loss(self(x), 2 * y - 1)


class NegativeLogit(Regressor):
    """The class is where the output is negative."""

    def forward(self, x):
        return -self.net(x)

    def loss(self, batch):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self.net(x), y)


class HalvedProbability(Probability):
    def forward(self, x):
        return self.net(x).sigmoid() / 2

    def loss(self, batch):
        x, y = batch
        return F.binary_cross_entropy(2 * self(x), y)


ONE_OUTPUT = {
    "probability": (Probability, 0.5),
    "0/1 targets": (ZeroOne, 0.5),
    "probability by squares": (ProbabilityBySquares, 0.5),
    "logit": (Logit, 0.0),
    "logit in the loss": (LogitInLoss, 0.5),
    "hinge": (SignedByHinge, 0.0),
    "tanh": (Tanh, 0.0),
    "halved probability": (HalvedProbability, 0.25),
}


def moderate(module: type) -> Case:
    """Labels flip where the loss takes them as classes; elsewhere they move as far."""
    moves = module in (ZeroOne, ProbabilityBySquares, SignedByHinge, Tanh)
    return Case(variant(module, rate=0.05), BoundedAdversary(n=1, nu=1.0) if moves else FLIPS, binary())


@pytest.mark.parametrize(("module", "limit"), ONE_OUTPUT.values(), ids=ONE_OUTPUT)
def test_one_output(module, limit):
    """Labels are where a user sees them, or the user is asked for a threshold."""
    predictions_hold_or_refused(moderate(module), inputs(), above(limit), DECIDES + "|reduces|no bound|aten")


@pytest.mark.parametrize(("module", "limit"), ONE_OUTPUT.values(), ids=ONE_OUTPUT)
def test_one_output_with_a_threshold(module, limit):
    predictions_hold_or_refused(moderate(module), inputs(), above(limit), "reduces|no bound|aten", threshold=limit)


def test_the_threshold_decides():
    certification = predictions_hold_or_refused(moderate(ZeroOne), inputs(), above(0.0), "nothing", threshold=0.0)
    assert certification is not None
    assert certification.certified.any()
    assert 0 < int(certification.label.sum()) < 40


def test_a_negated_logit():
    """Whether class 1 is above or below is nothing that can be guessed; the sign of `forward` must not be trusted."""
    predictions_hold_or_refused(
        moderate(NegativeLogit), inputs(), lambda module, x: (module.net(x) > 0).long().squeeze(1), DECIDES
    )


def test_plain_regression_has_no_classes():
    case = Case(Regressor, MOVES, numbers())
    result = certify(case)
    assert isinstance(result, Held)
    with pytest.raises((AgtError, ValueError), match=DECIDES):
        result.certified.certified_model(result.module).certify(inputs())


def test_regression_of_several_values_has_no_classes():
    data = numbers()
    case = Case(variant(Regressor, outputs=3), MOVES, data | {"y": data["x"].flip(1)})
    result = certify(case)
    assert isinstance(result, Held)
    with pytest.raises((AgtError, ValueError), match=DECIDES):
        result.certified.certified_model(result.module).certify(inputs())


def test_labels_of_several_kinds_have_no_largest():
    """Multi-label: each output decides for itself."""
    data = classes()
    targets = torch.stack([data["x"][:, k] > 0 for k in range(3)], dim=1).double()
    case = Case(variant(Logit, outputs=3, rate=0.05), BoundedAdversary(n=0), data | {"y": targets})
    result = certify(case)
    assert isinstance(result, Held)
    model = result.certified.certified_model(result.module)
    with pytest.raises((AgtError, ValueError), match=DECIDES):
        model.certify(inputs())
    each = model.certify(inputs(), threshold=0.0)
    assert torch.equal(each.label, (result.module(inputs()) > 0).long())


# --- softmax and the like --------------------------------------------------------------------------------------------


def ending(function, loss=None):
    members = {"forward": lambda self, x: function(self.net(x)), "loss": loss or on_logits, "rate": 0.05}
    return variant(Classifier, **members)


def on_logits(self, batch):
    x, y = batch
    return F.cross_entropy(self.net(x), y)


def on_log_probabilities(self, batch):
    x, y = batch
    return F.nll_loss(self(x), y)


SEVERAL = {
    "logits": ending(lambda z: z),
    "softmax": ending(lambda z: z.softmax(1)),
    "log_softmax": ending(lambda z: z.log_softmax(1), on_log_probabilities),
    "temperature": ending(lambda z: (z / 3).softmax(1)),
    "sigmoids": ending(lambda z: z.sigmoid()),
    "scaled": ending(lambda z: 5 * z),
    "normalized": ending(lambda z: z - z.mean(1, keepdim=True)),
}
NOT_LOGITS = {
    "negated": (ending(lambda z: -z), lambda module, x: module.net(x).argmax(1)),
    "flipped": (ending(lambda z: z.flip(1)), lambda module, x: module.net(x).argmax(1)),
    "distances": (ending(lambda z: (z - 1).abs()), lambda module, x: module(x).argmin(1)),
    "uncertainty": (ending(lambda z: 1 - z.softmax(1)), lambda module, x: module(x).argmin(1)),
}


@pytest.mark.parametrize("module", SEVERAL.values(), ids=SEVERAL)
def test_several_outputs(module):
    predictions_hold_or_refused(flips(module), inputs(), largest, DECIDES + "|no bound|aten")


@pytest.mark.parametrize(("module", "decide"), NOT_LOGITS.values(), ids=NOT_LOGITS)
def test_outputs_whose_largest_is_not_the_class(module, decide):
    """`certify` cannot know; it must not certify what the training did not compare with labels."""
    predictions_hold_or_refused(flips(module), inputs(), decide, DECIDES + "|no bound|aten")


def test_classes_themselves_are_refused():
    module = ending(lambda z: z.argmax(1))
    predictions_hold_or_refused(flips(module), inputs(), lambda module, x: module(x), "argmax|integer|classes|bound")


# --- several tensors -------------------------------------------------------------------------------------------------


class Named(Classifier):
    """Features come first in what `forward` returns."""

    rate = 0.05

    def network(self):
        return nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 3)})

    def forward(self, x):
        hidden = self.net["body"](x)
        return self.packed(hidden, self.net["head"](hidden.relu()))

    def logits(self, x):
        return self.net["head"](self.net["body"](x).relu())

    def packed(self, hidden, logits):
        return {"features": hidden, "logits": logits}

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self.logits(x), y)


PACKED = {
    "dict": lambda self, hidden, logits: {"features": hidden, "logits": logits},
    "dict, logits first": lambda self, hidden, logits: {"logits": logits, "features": hidden},
    "tuple": lambda self, hidden, logits: (hidden, logits),
    "list": lambda self, hidden, logits: [hidden, logits],
    "nested": lambda self, hidden, logits: {"aux": {"features": hidden}, "logits": logits},
    "with loss": lambda self, hidden, logits: {"loss": hidden.square().mean(), "logits": logits},
}


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)
def test_several_tensors(packed):
    decide = lambda module, x: module.logits(x).argmax(1)  # noqa: E731
    case = flips(variant(Named, packed=packed))
    predictions_hold_or_refused(case, inputs(), decide, r"output=|several|more than one|tensors")


@pytest.mark.parametrize(
    ("name", "output"), [("dict", "logits"), ("dict, logits first", "logits"), ("tuple", 1), ("list", 1)]
)
def test_one_of_several_tensors_is_named(name, output):
    result = certify(flips(variant(Named, packed=PACKED[name])))
    assert isinstance(result, Held)
    certification = result.certified.certified_model(result.module, output=output).certify(inputs())
    assert torch.equal(certification.label, result.module.logits(inputs()).argmax(1))


@pytest.mark.parametrize("output", ["nothing", 7])
def test_an_output_that_is_not_there_is_refused(output):
    result = certify(flips(Named))
    with pytest.raises((AgtError, ValueError, KeyError, IndexError), match=str(output)):
        result.certified.certified_model(result.module, output=output).certify(inputs())


# --- integer inputs --------------------------------------------------------------------------------------------------


class Image(Classifier):
    rate = 0.05

    def forward(self, x):
        return self.net(x.double() / 255)

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self.net(x), y)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("door", ["certify", "margins", "bound_forward", "deciding_domains"])
def test_integer_inputs_have_no_ball(dtype, door):
    result = certify(flips(Image))
    assert isinstance(result, Held)
    model = result.certified.certified_model(result.module)
    x = torch.randint(0, 127, (5, 3), generator=torch.Generator().manual_seed(1)).to(dtype)
    arguments = (x, torch.zeros(5, dtype=torch.long)) if door == "margins" else (x,)
    getattr(model, door)(*arguments)
    with pytest.raises((ValueError, AgtError), match="float|epsilon"):
        getattr(model, door)(*arguments, epsilon=60)


def test_float_inputs_have_a_ball():
    result = certify(flips(Image))
    model = result.certified.certified_model(result.module)
    x = torch.randint(0, 127, (40, 3), generator=torch.Generator().manual_seed(1)).double()
    near = model.certify(x, epsilon=60)
    corners = [
        x + 60 * torch.tensor(signs, dtype=x.dtype) for signs in [(1, 1, 1), (-1, 1, -1), (1, -1, 1), (-1, -1, 1)]
    ]
    for corner in corners:
        assert not (near.certified & (result.module(corner).argmax(1) != near.label)).any()


# --- margins ---------------------------------------------------------------------------------------------------------


def model_of(module: type, data):
    result = certify(Case(variant(module, rate=0.05), FLIPS, data))
    assert isinstance(result, Held)
    return result.certified.certified_model(result.module)


def test_margins_of_one_logit_keep_samples_apart():
    model = model_of(Logit, binary())
    x = inputs(5)
    flat = model.margins(x, torch.tensor([0, 1, 0, 1, 1]))
    assert flat.shape == (5, 2)
    column = model.margins(x, torch.tensor([[0], [1], [0], [1], [1]]))
    assert column.shape == (5, 2)
    assert torch.equal(flat.lower, column.lower)


BAD = {
    "too large": torch.tensor([7, 0, 0, 0, 0]),
    "negative": torch.tensor([-1, 0, 0, 0, 0]),
    "ignored": torch.tensor([-100, 0, 0, 0, 0]),
    "fractions": torch.tensor([0.7, 0, 0, 0, 0]),
    "another size": torch.tensor([0, 1]),
    "one for all": torch.tensor(1),
    "a matrix": torch.zeros(5, 3, dtype=torch.long),
}


@pytest.mark.parametrize("target", BAD.values(), ids=BAD)
@pytest.mark.parametrize(("module", "data"), [(Logit, binary()), (Classifier, classes())], ids=["one", "three"])
def test_margins_of_targets_that_are_no_classes(module, data, target):
    model = model_of(module, data)
    with pytest.raises((ValueError, TypeError, AgtError), match="target|class|label|shape|Expected"):
        model.margins(inputs(5), target)


# --- messages of forward ---------------------------------------------------------------------------------------------


class TwoInputs(Classifier):
    def forward(self, x, scale):
        return self.net(x) * scale

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self.net(x), y)


class DropsOut(Classifier):
    def forward(self, x):
        return F.dropout(self.net(x), 0.5)

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self.net(x), y)


class Branches(Classifier):
    def forward(self, x):
        return self.net(x) if x.sum() > 0 else -self.net(x)

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self.net(x), y)


@pytest.mark.parametrize("module", [TwoInputs, DropsOut, Branches])
def test_problems_of_forward_are_not_those_of_training(module):
    model = model_of(module, classes())
    with pytest.raises(AgtError) as caught:
        model.certify(inputs(5))
    assert "This training" not in str(caught.value)
    assert "certified_objective" not in str(caught.value)
    if module is DropsOut:
        assert "training=" in str(caught.value) or "random" in str(caught.value)
