"""A loss is recognised as the function it is, however it is written; what merely resembles one is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, CertifiedModel
from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.domains import head_loss, loss_formula
from agt_lightning.domains.head import HeadError
from agt_lightning.domains.head_loss import match_head_loss
from agt_lightning.domains.loss_check import require_same_function
from agt_lightning.domains.losses import (
    HeadLoss,
    HuberError,
    LogisticLoss,
    OutputBounds,
    SoftmaxLoss,
    SquaredError,
    softmax_limit,
)
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.propagation.objective import BoundedObjective
from agt_lightning.rounding import accumulated_roundoff
from agt_lightning.rules import RULES
from tests.domains.ball.test_poisoned_trainings import SCHEDULES, Training
from tests.domains.loss_forms import FORMS, Form, Loss, hot
from tests.engine.attacks import BATCH, CLASSES, FEATURES, data, network

SAME = 1e-12
"""Relative difference of bounds that are computed from the same numbers, up to their own rounding."""

ROUNDING = 1e-9

CLASS_KINDS = {"codes": "ce", "ce": "ce"}


def sample(kind: str) -> tuple[Tensor, Tensor]:
    return data(CLASS_KINDS.get(kind, kind), torch.Generator().manual_seed(2))[0]


def captured(loss: Loss, kind: str) -> BoundedObjective:
    torch.manual_seed(0)
    module = network(kind, (4,))
    return LossCapture(RULES).once(module, lambda m, batch: loss(m(batch[0]), batch[1]), sample(kind))


def matched(loss: Loss, kind: str) -> HeadLoss:
    return match_head_loss(captured(loss, kind)).loss


# --- forms that are known ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_function_is_recognised(form):
    written, by_torch = captured(form.written, form.kind), captured(form.by_torch, form.kind)
    own, other = match_head_loss(written), match_head_loss(by_torch)
    assert type(own.loss) is type(other.loss)
    weights = written.sample_weight(BATCH) / by_torch.sample_weight(BATCH)
    assert own.loss.scale * weights == pytest.approx(other.loss.scale, rel=1e-15)
    assert getattr(own.loss, "smoothing", 0.0) == pytest.approx(getattr(other.loss, "smoothing", 0.0), rel=1e-15)
    assert own.head.parameters == other.head.parameters
    assert (own.one_hot, own.target_is_label) == (other.one_hot, other.target_is_label)


def trained(loss: Loss, form: Form, adversary: BoundedAdversary, domains: tuple[str, ...], hidden: tuple[int, ...]):
    torch.manual_seed(1)
    module = network(form.kind, hidden)
    engine = AbstractGradientEngine(module, lambda m, batch: loss(m(batch[0]), batch[1]), adversary, domains=domains)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for batch in data(CLASS_KINDS.get(form.kind, form.kind), torch.Generator().manual_seed(3))[:2]:
        engine.step([batch], optimizer)
    return engine


def adversaries(form: Form) -> list[BoundedAdversary]:
    if form.kind in CLASS_KINDS:
        return [BoundedAdversary(n=1, epsilon=0.02), BoundedAdversary(n=1, nu=1, q=0)]
    return [BoundedAdversary(n=1, epsilon=0.02, p=2), BoundedAdversary(n=1, nu=0.1, q=2)]


def require_same(own: Tensor, other: Tensor) -> None:
    """Compare bounds relative to the largest of them."""
    assert float((own - other).abs().max()) <= SAME * float(other.abs().max())


@pytest.mark.thinned(5)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_ball_is_that_of_the_call(form):
    for adversary, hidden in zip(adversaries(form), ((), (4,)), strict=True):
        own = trained(form.written, form, adversary, ("ball",), hidden)
        other = trained(form.by_torch, form, adversary, ("ball",), hidden)
        radius = other.domains.in_use["ball"].radius
        assert radius > 1e-4
        assert own.domains.in_use["ball"].radius == pytest.approx(radius, rel=SAME)
        for name, box in other.box.items():
            require_same(own.box[name].lower, box.lower)
            require_same(own.box[name].upper, box.upper)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("form", [form for form in FORMS if form.kind in ("mse", "codes")], ids=str)
def test_the_influence_is_that_of_the_call(form):
    adversary = adversaries(form)[1]
    own = trained(form.written, form, adversary, ("influence",), ())
    other = trained(form.by_torch, form, adversary, ("influence",), ())
    x = torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(4)).double()
    bounds, expected = (
        CertifiedModel(e.module, e.bounds, sets=e.parameter_sets).bound_forward(x) for e in (own, other)
    )
    assert float(expected.width.min()) > 1e-4
    require_same(bounds.lower, expected.lower)
    require_same(bounds.upper, expected.upper)
    if form.kind == "codes":
        flips = [e.parameter_sets["influence"].labels.allowed for e in (own, other)]
        assert torch.equal(*flips)


ATTACKED = [
    ("y + (-f)", BoundedAdversary(n=2, nu=0.1, q=2)),
    ("half the sum", BoundedAdversary(n=1, epsilon=0.02, p=2)),
    ("log p and log(1 - p)", BoundedAdversary(n=1, epsilon=0.05)),
    ("binary_cross_entropy of a sigmoid", BoundedAdversary(n=1, nu=1, q=0)),
    ("kept axis", BoundedAdversary(n=1, nu=1, q=0)),
    ("softplus of the negative", BoundedAdversary(n=1, epsilon=0.05)),
    ("log_softmax", BoundedAdversary(n=2, epsilon=0.03)),
]


class Written(Training):
    """A training on a loss that is written by hand, attacked on torch's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scale = next(form.scale for form in FORMS if form.written is self.loss)
        self.attacks.loss = lambda parameters, x, y, whole=self.attacks.loss: scale * whole(parameters, x, y)


@pytest.mark.parametrize(("name", "adversary"), ATTACKED, ids=[name for name, _ in ATTACKED])
def test_poisoned_trainings_stay_in_the_ball(name, adversary):
    hidden = (4,) if name in ("log p and log(1 - p)", "kept axis", "half the sum") else ()
    form = next(form for form in FORMS if form.name == name)
    training = Written(form.kind, adversary, hidden, SCHEDULES[0], ("ball",), 1, loss=form.written)
    assert training.run(epochs=1) > 0.02


def test_flipped_classes_stay_within_their_influence():
    form = next(form for form in FORMS if form.name == "one_hot of integers")
    engine = trained(form.written, form, BoundedAdversary(n=2, nu=1, q=0), ("influence",), ())
    x = torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(4)).double()
    bounds = CertifiedModel(engine.module, engine.bounds, sets=engine.parameter_sets).bound_forward(x)
    generator, reached = torch.Generator().manual_seed(5), []
    for _ in range(60):
        torch.manual_seed(1)
        module = network("codes", ())
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for features, y in data("ce", torch.Generator().manual_seed(3))[:2]:
            labels = y.clone()
            rows = torch.randperm(len(y), generator=generator)[:2]
            labels[rows] = torch.randint(0, CLASSES, (2,), generator=generator)
            optimizer.zero_grad()
            form.by_torch(module(features), labels).backward()
            optimizer.step()
        reached.append(module(x).detach())
    assert all(bounds.contains(outputs, ROUNDING) for outputs in reached)
    assert float(torch.stack(reached).std(dim=0).max()) > 0.01


def slope(loss: Loss, outputs: Tensor, target: Tensor) -> Tensor:
    outputs = outputs.clone().requires_grad_()
    return torch.autograd.grad(loss(outputs, target), outputs)[0]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_run_rounds_no_more_than_is_accounted_for(form):
    """Gradients in single precision against exact ones, up to the limits of the form."""
    bounded = captured(form.written, form.kind)
    loss, weight = match_head_loss(bounded).loss, bounded.sample_weight(BATCH)
    arithmetic, generator, checked = Arithmetic(torch.float32, torch.float64), torch.Generator().manual_seed(6), 0
    target = sample(form.kind)[1]
    for size in (1e-3, 0.1, 1.0, 5.0, 12.0, 15.0, 25.0, 80.0, 200.0) * 8:
        shape = (BATCH, bounded.graph.shapes[match_head_loss(bounded).head.output][1])
        outputs = (size * (2 * torch.rand(shape, generator=generator) - 1)).float()
        y = target.float() if target.is_floating_point() else target
        exact = slope(form.by_torch, outputs.double(), y.double() if y.is_floating_point() else y)
        run = slope(form.written, outputs, y).double()
        at = OutputBounds.around(outputs.double(), torch.zeros(BATCH).double())
        norm = exact.norm(dim=1)
        allowed = weight * loss.rounding(norm / weight, at, arithmetic) + accumulated_roundoff(8, torch.float32) * norm
        within = allowed.isfinite()
        checked += int(within.sum())
        assert bool(((run - exact).norm(dim=1)[within] <= allowed[within]).all())
    assert checked >= 100


# --- forms that merely resemble them -------------------------------------------------------------------------------


def focal(f: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(f)
    return -((1 - p).detach() ** 2 * y * p.log()).mean()


NEAR_MISSES: list[tuple[str, str, Loss]] = [
    ("squared twice", "mse", lambda f, y: (((f - y) ** 2) ** 2).mean()),
    ("absolute value", "mse", lambda f, y: (f - y).abs().mean()),
    ("absolute value times itself", "mse", lambda f, y: ((f - y).abs() * (f - y)).mean()),
    ("cube", "mse", lambda f, y: ((f - y) ** 3).mean()),
    ("detached outputs", "mse", lambda f, y: ((f.detach() - y) ** 2).mean() + 0 * f.sum()),
    ("half detached", "mse", lambda f, y: ((f - y) * (f.detach() - y)).mean()),
    ("two targets", "mse", lambda f, y: ((f - y) * (f - y**2)).mean()),
    ("sum of outputs and target", "mse", lambda f, y: ((f + y) ** 2).mean()),
    ("scaled outputs", "mse", lambda f, y: ((2 * f - y) ** 2).mean()),
    ("an offset", "mse", lambda f, y: ((f - y - 1) ** 2).mean()),
    ("outputs of a sigmoid", "mse", lambda f, y: ((f.sigmoid() - y) ** 2).mean()),
    ("penalty of the outputs", "mse", lambda f, y: ((f - y) ** 2).mean() + 0.1 * (f**2).mean()),
    ("penalty of their sizes", "mse", lambda f, y: ((f - y) ** 2).mean() + 0.1 * f.mean()),
    ("two losses", "mse", lambda f, y: ((f - y) ** 2).mean() + F.huber_loss(f, y)),
    ("a difference of losses", "mse", lambda f, y: 2 * ((f - y) ** 2).mean() - F.mse_loss(f, y)),
    ("weights of samples", "mse", lambda f, y: (y[:, :1].abs().expand_as(f) * (f - y) ** 2).mean()),
    ("weights of sums", "mse", lambda f, y: (y[:, 0].abs() * ((f - y) ** 2).sum(1)).mean()),
    ("weights of outputs", "mse", lambda f, y: (f.new_tensor([1.0, 2.0, 3.0]) * (f - y) ** 2).mean()),
    ("some outputs", "mse", lambda f, y: ((f[:, :2] - y[:, :2]) ** 2).mean()),
    ("another order of outputs", "mse", lambda f, y: ((f.flip(1) - y) ** 2).mean()),
    ("a mean of outputs", "mse", lambda f, y: ((f.mean(1) - y[:, 0]) ** 2).mean()),
    ("one target for all outputs", "mse", lambda f, y: ((f - y[:, :1]) ** 2).mean()),
    ("square of a sum", "mse", lambda f, y: ((f - y).sum(1) ** 2).mean()),
    ("root of a sum", "mse", lambda f, y: ((f - y) ** 2).sum(1).sqrt().mean()),
    ("half precision", "mse", lambda f, y: ((f.half() - y.half()) ** 2).mean()),
    ("half precision of the square", "mse", lambda f, y: ((f - y) ** 2).half().double().mean()),
    ("sum in half precision", "mse", lambda f, y: ((f - y) ** 2).sum(1, dtype=torch.float16).double().mean()),
    ("dropout", "mse", lambda f, y: ((F.dropout(f, 0.5, training=True) - y) ** 2).mean()),
    ("clamped", "mse", lambda f, y: ((f.clamp(-9, 9) - y) ** 2).mean()),
    ("a factor too many", "mse", lambda f, y: ((f - y) ** 2 * 3 * 3 * 3 * 3 * 3 * 3).mean()),
    ("negative", "mse", lambda f, y: -((f - y) ** 2).mean()),
    ("targets of all samples", "mse", lambda f, y: ((f - torch.ones(len(f), 3).double()) ** 2).mean() + 0 * y.sum()),
    ("a data dependent summand", "mse", lambda f, y: ((f - y) ** 2 + y.abs()).mean()),
    ("one factor of a sum", "mse", lambda f, y: ((f - y) ** 2).mean() + 0.0 * f.abs().mean()),
    ("log of a shifted sigmoid", "bce", lambda f, y: -(y * (f.sigmoid() + 1e-8).log()).mean()),
    ("one half", "bce", lambda f, y: -(y * F.logsigmoid(f)).mean()),
    ("weighted classes", "bce", lambda f, y: -(2 * y * F.logsigmoid(f) + (1 - y) * F.logsigmoid(-f)).mean()),
    ("the wrong sign", "bce", lambda f, y: -(y * F.logsigmoid(f) + (1 - y) * F.logsigmoid(f)).mean()),
    ("other signs", "bce", lambda f, y: F.softplus(-(2 * y - 1) * f).mean()),
    ("another curve", "bce", lambda f, y: (F.softplus(f, beta=2) - y * f).mean()),
    ("an early threshold", "bce", lambda f, y: (F.softplus(f, threshold=1) - y * f).mean()),
    ("the square of a target", "bce", lambda f, y: -(y * F.logsigmoid(f) + (1 - y**2) * F.logsigmoid(-f)).mean()),
    ("weighted", "bce", lambda f, y: (y.abs() * (F.softplus(f) - y * f)).mean()),
    ("weighted call", "bce", lambda f, y: (y * F.binary_cross_entropy_with_logits(f, y, reduction="none")).mean()),
    ("focal", "bce", focal),
    (
        "the other probability",
        "bce",
        lambda f, y: -(y * (1 - f.sigmoid()).log() + (1 - y) * (-f).sigmoid().log()).mean(),
    ),
    ("two times one minus", "bce", lambda f, y: -(y * f.sigmoid().log() + (1 - y) * (2 - f.sigmoid()).log()).mean()),
    ("over samples", "ce", lambda f, y: -(hot(y, f) * F.log_softmax(f, dim=0)).sum(1).mean()),
    ("softmax of a softmax", "ce", lambda f, y: F.cross_entropy(f.softmax(1), y)),
    ("a temperature", "ce", lambda f, y: -(hot(y, f) * F.log_softmax(f / 2, dim=1)).sum(1).mean()),
    ("shifted classes", "ce", lambda f, y: (f.exp().sum(1).log() - (f * hot(y, f).flip(1)).sum(1)).mean()),
    ("twice the label", "ce", lambda f, y: (f.exp().sum(1).log() - 2 * (f * hot(y, f)).sum(1)).mean()),
    ("half the label", "ce", lambda f, y: (f.exp().sum(1).log() - 0.5 * (f * hot(y, f)).sum(1)).mean()),
    ("no label", "ce", lambda f, y: -F.log_softmax(f, dim=1).sum(1).mean() + 0 * y.sum()),
    ("a probability", "ce", lambda f, y: -(hot(y, f) * f.softmax(1)).sum(1).mean()),
    ("a square of one", "ce", lambda f, y: ((hot(y, f) * F.log_softmax(f, dim=1)).sum(1) ** 2).mean()),
    ("weights of classes", "ce", lambda f, y: -((y + 1)[:, None] * hot(y, f) * F.log_softmax(f, 1)).sum(1).mean()),
    (
        "an entropy beside it",
        "ce",
        lambda f, y: F.cross_entropy(f, y) - (f.softmax(1) * F.log_softmax(f, 1)).sum(1).mean(),
    ),
    ("a log-sum-exp too many", "ce", lambda f, y: F.cross_entropy(f, y) + f.exp().sum(1).log().mean()),
    ("negative smoothing", "ce", lambda f, y: 1.5 * F.cross_entropy(f, y) + 0.5 * F.log_softmax(f, 1).mean(1).mean()),
    ("a mean of exponentials", "ce", lambda f, y: (f.exp().mean(1).log() - (f * hot(y, f)).sum(1)).mean()),
    ("samples as classes", "ce", lambda f, y: (f.exp().sum(1, keepdim=True).log() - (f * hot(y, f)).sum(1)).mean()),
    ("two kinds", "ce", lambda f, y: F.cross_entropy(f, y) + F.binary_cross_entropy_with_logits(f, hot(y, f))),
    ("squares of two classes", "ce", lambda f, y: F.mse_loss(f, hot(y, f)) + F.mse_loss(f, hot(2 - y, f))),
    ("probabilities of the batch", "mse", lambda f, y: -(y.softmax(1) * F.log_softmax(f, 1)).sum(1).mean()),
]


@pytest.mark.parametrize(("kind", "loss"), [near[1:] for near in NEAR_MISSES], ids=[near[0] for near in NEAR_MISSES])
def test_what_resembles_a_loss_is_refused(kind, loss):
    with pytest.raises(HeadError):
        matched(loss, kind)


def test_a_target_for_each_pair_of_samples_is_refused():
    """``(b, 1) - (b,)`` has b² elements."""
    module = nn.Linear(FEATURES, 1).double()
    batch = torch.randn(BATCH, FEATURES).double(), torch.randn(BATCH).double()
    for loss in (lambda f, y: ((f - y) ** 2).mean(), lambda f, y: -(y * F.logsigmoid(f)).mean(), F.mse_loss):
        bounded = LossCapture(RULES).once(module, lambda m, b, loss=loss: loss(m(b[0]), b[1]), batch)
        with pytest.raises(HeadError, match=r"shape|known function"):
            match_head_loss(bounded)


def test_the_message_names_the_call_and_the_known_forms():
    with pytest.raises(HeadError, match=r"`aten.abs` at .*test_loss_forms.py.*mse_loss or \(f - y\)\*\*2"):
        matched(lambda f, y: (f - y).abs().mean(), "mse")


# --- the comparison with the graph ---------------------------------------------------------------------------------

WRONG = [
    ("mse", SquaredError(0.34)),
    ("mse", SquaredError(1 / 3 * (1 + 1e-6))),
    ("mse", HuberError(2 / 3, 3.0)),
    ("huber", SquaredError(1 / 6)),
    ("huber", HuberError(1 / 3, 0.31)),
    ("bce", SquaredError(1.0)),
    ("bce", LogisticLoss(1.001)),
    ("ce", SoftmaxLoss(1.0, smoothing=1e-3)),
    ("ce", SoftmaxLoss(0.999)),
]


@pytest.mark.parametrize(("kind", "wrong"), WRONG, ids=[f"{kind}-{type(w).__name__}" for kind, w in WRONG])
def test_another_function_is_noticed(kind, wrong):
    bounded = captured(Form("", kind, F.mse_loss).by_torch, kind)
    pattern = match_head_loss(bounded)
    require_same_function(bounded, pattern.head.output, pattern.loss, pattern.target)
    with pytest.raises(UnsoundBoundError, match="recognised as, but they differ"):
        require_same_function(bounded, pattern.head.output, wrong, pattern.target)


def test_a_dependence_on_anything_else_is_noticed():
    bounded = captured(lambda f, y: ((f - y) ** 2 * y.exp()).mean(), "mse")
    target, output = bounded.graph.calls[-1].inputs[0], bounded.graph.calls[2].name
    with pytest.raises((UnsoundBoundError, HeadError)):
        require_same_function(bounded, output, SquaredError(1 / 3), next(iter(bounded.objective.labels)) or target)


READER = loss_formula._Reader
reduced, added, residual = READER._reduced, READER._added, READER._residual
log_probability, relative, softmax_loss = READER._log_probability, loss_formula._relative, head_loss._softmax_loss


def means_as_sums(self, call, weight):
    return [(name, weight, factors) for name, _, factors in reduced(self, call, weight)]


def differences_as_sums(self, call, weight, factors):
    return [(name, weight, more) for name, _, more in added(self, call, weight, factors)]


def signs_lost(self, call):
    read = log_probability(self, call)
    return None if read is None else (abs(read[0]), *read[1:])


def scales_lost(self, name):
    part = residual(self, name)
    return None if part is None else loss_formula.ResidualPart(abs(part.coefficient) ** 0, part.target, 0)


def first_term_alone(graph, term, first):
    return relative(graph, first, first)


def any_residual(self, call):
    """A sum read as a difference."""
    left, right = (argument.name for argument in (call.arguments["self"], call.arguments["other"]))
    return loss_formula.Fraction(1), right if left in self.dependent else left


def smoothing_forgotten(formula, lse, linear):
    found = softmax_loss(formula, lse, linear)
    return head_loss._LossOfTarget(SoftmaxLoss(found.loss.scale), found.target)


def every_factor_once(self, call):
    left = call.arguments["self"]
    constant = self._number(call, call.arguments["other"])
    return None if constant is None else (left.name, abs(constant) ** 0)


FAULTS = [
    ("means as sums", READER, "_reduced", means_as_sums, "r * r, mean of means"),
    ("differences as sums", READER, "_added", differences_as_sums, "softplus"),
    ("signs lost", READER, "_log_probability", signs_lost, "two terms"),
    ("scales lost", READER, "_residual", scales_lost, "scaled residual"),
    ("first term alone", loss_formula, "_relative", first_term_alone, "nll_loss and uniform"),
    ("sums as differences", READER, "_difference", any_residual, "sum of outputs and target"),
    ("smoothing forgotten", head_loss, "_softmax_loss", smoothing_forgotten, "smoothed one_hot"),
    ("factors lost", READER, "_scaled", every_factor_once, "scaled residual"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_in_the_matcher_is_noticed(fault, monkeypatch):
    """Such a matcher takes a loss for another one, and the comparison with the graph ends the training."""
    _, place, name, broken, victim = fault
    losses = {form.name: (form.kind, form.written) for form in FORMS}
    losses |= {near: (kind, loss) for near, kind, loss in NEAR_MISSES}
    kind, loss = losses[victim]
    bounded = captured(loss, kind)
    monkeypatch.setattr(place, name, broken)
    with pytest.raises((UnsoundBoundError, HeadError)):
        match_head_loss(bounded)


# --- outputs at which a form is something else in floating point ---------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("log p and log(1 - p)", 30.0),
        ("binary_cross_entropy of a sigmoid", 30.0),
        ("softplus", 21.0),
        ("log of a sum", 707.0),
    ],
)
def test_the_ball_ends_where_a_form_is_computed_otherwise(name, size):
    form = next(form for form in FORMS if form.name == name)
    x, y = sample(form.kind)
    for bias, ends in ((size, True), (size / 3, False)):
        torch.manual_seed(0)
        module = network(form.kind, ())
        module[0].bias.data.fill_(bias)
        engine = AbstractGradientEngine(
            module,
            lambda m, batch: form.written(m(batch[0]), batch[1]),
            BoundedAdversary(n=1, epsilon=1e-3),
            domains=("ball",),
        )
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
        if ends:
            with pytest.raises(UncertifiableError, match=r"its radius is inf|can reach zero"):
                engine.step([(x, y)], optimizer)
        else:
            engine.step([(x, y)], optimizer)
            assert math.isfinite(engine.domains.in_use["ball"].radius)


def test_a_logarithm_of_a_softmax_keeps_its_limit_inside_nll_loss():
    written = matched(lambda f, y: F.nll_loss(f.softmax(1).log(), y), "ce")
    assert written.limits == (softmax_limit,)
    assert matched(lambda f, y: F.nll_loss(F.log_softmax(f, 1), y), "ce").limits == ()
