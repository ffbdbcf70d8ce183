"""The first minute of the fuzzer, and what it is made of: every operation, attacks that find mistakes, seeds."""

import itertools
import math
import random
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning import ParameterBounds
from agt_lightning.interval import Interval
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.rules import RULES
from agt_lightning.rules.comparison import COMPARISONS
from tests.fuzz.attacks import Attacker
from tests.fuzz.blocks import BLOCKS, FAMILIES
from tests.fuzz.check import worst_violation
from tests.fuzz.examine import apart, fuzz
from tests.fuzz.facts import FactError, checked_facts
from tests.fuzz.faults import FAULTS, RUN
from tests.fuzz.networks import INPUTS, Network
from tests.fuzz.runs import Poisoning, trained
from tests.fuzz.trainings import LOSSES, training

aten = torch.ops.aten


@pytest.mark.slow
def test_random_poisoned_trainings_stay_inside():
    report = fuzz(seed=0, stride=1, count=5, minutes=5, trainings=6)
    assert not report.violations, "\n".join(report.violations)
    fine = {"certified trainings", "poisoned trainings", "trainings with several adversaries", "refused", "diverged"}
    assert set(report.counts) <= fine, report.stopped
    assert report.counts["certified trainings"] >= 4
    (shares,) = (shares for part, shares in report.shares.items() if part == ("all", "all"))
    assert sum(shares) / len(shares) > 0.2  # the attacks are not idle


OF_OTHERS = {
    aten.t.default: "of the batch itself it would move the samples' axis; parameters that are transposed need no rule",
    aten.numpy_T.default: "likewise",
    aten.to.dtype_layout: "no public function of torch records it",
    **dict.fromkeys(COMPARISONS, "of labels alone: tests/rules/test_comparison.py"),
}
"""Operations that no block has, and why."""


class AllAtOnce(nn.Module):
    """Blocks side by side on one input, and a linear layer."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks, self.last = nn.ModuleList(blocks), nn.Linear(len(blocks), 1)

    def forward(self, x):
        return self.last(torch.stack([block(x).flatten(1).sum(1) for block in self.blocks], 1))


@pytest.mark.slow
def test_blocks_and_losses_have_every_operation():
    used = _operations_of_losses()
    for shape in dict.fromkeys((*INPUTS, (4, 4, 4), (2, 2, 2, 2))):
        network = AllAtOnce(_fitting(shape)).double().eval()
        used |= _recorded(network, F.mse_loss, (torch.rand(3, *shape).double(), torch.rand(3, 1).double()))
    missing = {str(op) for op in RULES if op not in used} - {str(op) for op in OF_OTHERS}
    assert not missing


def _fitting(shape):
    """Return a module of each block that takes this shape."""
    fitting = []
    for block in dict.fromkeys(block for family in FAMILIES for block in family):
        module = block.build(random.Random(0), shape) if len(shape) in block.ranks else None
        try:
            if module is not None and module.eval()(torch.rand(3, *shape)).flatten(1).shape[1]:
                fitting.append(module)
        except (RuntimeError, IndexError, ValueError):
            continue  # such as a window that is larger than the image
    return fitting


def _operations_of_losses():
    used = set()
    for labels, criteria in LOSSES.items():
        y = {"class": torch.tensor([0, 2]), "soft": torch.rand(2, 3).double()}.get(labels, torch.rand(2, 1).double())
        outputs = 3 if labels in ("class", "soft") else 1
        for criterion in criteria.values():
            network = Network([torch.nn.Linear(3, 3)], 3, outputs).double()
            used |= _recorded(network, criterion, (torch.rand(2, 3).double(), y))
    embedding = Network([torch.nn.Embedding(5, 2)], 6, 1).double()
    return used | _recorded(embedding, F.mse_loss, (torch.randint(0, 5, (2, 3)), torch.rand(2, 1).double()))


def _recorded(network, criterion, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        objective = LossCapture(RULES).of(network, lambda m, b: criterion(m(b[0]), b[1]), batch)
    return {call.op for call in objective.program.graph.calls}


def test_a_wrong_fact_is_noticed():
    negative = torch.tensor([-1.0])
    with checked_facts():
        with pytest.raises(FactError, match="nonnegative"):
            Interval.trusted(negative, negative, nonnegative=True)
        with pytest.raises(FactError, match="ordered"):
            Interval.trusted(-negative, negative)


@pytest.mark.parametrize(
    ("lower", "upper", "value"),
    [(-1.0, 1.0, 1.5), (-1.0, 1.0, math.nan), (-1.0, 1.0, math.inf), (math.nan, math.nan, 0.0)],
)
def test_what_is_outside_or_no_number_is_a_violation(lower, upper, value):
    bounds = ParameterBounds({"w": Interval.trusted(torch.tensor([lower, 0.0]), torch.tensor([upper, 0.0]))})
    assert worst_violation([bounds], [[{"w": torch.tensor([value, 0.0])}]]) is not None
    assert worst_violation([bounds], []) is None


def test_a_seed_gives_the_same_training_again():
    first, again = (training(11) for _ in range(2))
    assert first.summary() == again.summary()
    assert all(torch.equal(*pair) for pair in zip(*(t.module().parameters() for t in (first, again)), strict=True))


def test_attacks_keep_to_the_adversary():
    """What the attacks draw is within ε and ν, up to the rounding of the data, and of at most n allowed samples."""
    checked = 0
    for seed in range(40):
        case = training(seed)
        if not hasattr(case.adversary, "epsilon"):
            continue
        for steps in Attacker(case, random.Random(seed)).poisoned(5):
            for poisoned, clean in zip(steps, case.steps, strict=True):
                checked += _changed(case, poisoned, clean)
    assert checked > 100


def _changed(case, poisoned, clean):
    """Check the micro-batches of one step, and return the number of changed samples."""
    changed, adversary = 0, case.adversary
    for (x, y, _), (clean_x, clean_y, mask) in zip(poisoned, clean, strict=True):
        moved = ((x != clean_x).flatten(1).any(1)) | (y != clean_y).reshape(len(y), -1).any(1)
        assert not bool((moved & ~mask).any())
        changed += int(moved.sum())
        if x.is_floating_point():
            apart = (x - clean_x).double().flatten(1)
            radius = torch.as_tensor(adversary.epsilon).double().expand(x.shape[1:]).flatten()
            units = apart[:, radius > 0] / radius[radius > 0]
            assert float(torch.linalg.vector_norm(units, ord=adversary.p, dim=1).max() if units.numel() else 0) < 1.001
        if y.is_floating_point() and adversary.q != 0:
            apart = (y - clean_y).double().reshape(len(y), -1)
            assert float(torch.linalg.vector_norm(apart, ord=adversary.q, dim=1).max()) <= adversary.nu * 1.001
    assert changed <= adversary.n
    return changed


def test_a_run_is_led_on_within_the_adversary():
    """Attacks that aim at bounds lead their target no less far, up to the rounding of the data, and keep to limits."""
    checked = further = 0
    for seed in range(40):
        case = training(seed)
        if not hasattr(case.adversary, "epsilon"):
            continue
        attacker = Attacker(case, random.Random(seed))
        *_, before = attacker.poisoned(3)
        target = attacker.target()
        after = attacker.led_on(target, before)
        reached = [target.of(trained(case, steps)[target.step]).double() for steps in (before, after)]
        assert reached[1] >= reached[0] - 1e-5 * (1 + reached[0].abs())
        further += int(reached[1] > reached[0])
        for poisoned, clean in zip(after, case.steps, strict=True):
            checked += _changed(case, poisoned, clean)
    assert checked > 40
    assert further > 10


def test_seeds_one_after_another_give_every_block():
    assert {training(seed).plan.given for seed in range(7, 7 + len(BLOCKS))} == set(BLOCKS)


@pytest.mark.slow
def test_bounds_of_several_adversaries_are_compared_with_those_of_each_alone():
    case = next(case for case in map(training, range(100)) if len(case.adversaries) == 3 and len(case.steps) == 1)
    certified = case.certified_for_each()
    assert apart(case, certified) == ""
    widened = {name: Interval(interval.lower - 1e-9, interval.upper) for name, interval in certified[2][-1].items()}
    certified[2][-1] = ParameterBounds(widened)
    assert apart(case, certified).startswith(str(case.adversaries[2]))


def test_some_trainings_have_several_adversaries_and_all_keep_their_own():
    drawn = [training(seed) for seed in range(60)]
    assert {len(case.adversaries) for case in drawn} == {1, 2, 3}
    for case in drawn:
        assert [alone.adversary for alone in case.alone()] == [*case.adversaries]
        assert case.adversary in case.adversaries


@pytest.mark.slow
def test_some_trainings_clip_the_mean_or_rest_some_layers():
    drawn = [training(seed) for seed in range(60)]
    assert any(case.clipping is not None for case in drawn)
    resting = [case for case in drawn if case.resting]
    assert resting
    for case in resting[:2]:
        names = {name for name, parameter in case.module().named_parameters() if parameter.requires_grad}
        assert all(step < names for step in case.resting), "something is trained at each step"
        certified = case.certified()
        for step, (before, after) in enumerate(itertools.pairwise(certified), 1):
            for name in case.resting[step]:
                assert torch.equal(before[name].lower, after[name].lower)
                assert torch.equal(before[name].upper, after[name].upper)


QUICK = (
    "exact sum: n - 1 samples",
    "features: half of ε",
    "Adam: middle of the moments",
    "several adversaries: one state for all",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_mistake_is_found_within_a_few_trainings(name):
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    for seed in range(300, 400):
        case = training(seed)
        if fault.may_matter(case, ["linear.default"]) and _notices(fault, case):
            return
    pytest.fail("No poisoned training left the bounds.")


def _notices(fault, case):
    poisoning = Poisoning.of(case, 6)
    return RUN in fault.found(case, poisoning, 6) and worst_violation(case.certified(), poisoning.runs) is None
