import math
from itertools import product

import pytest
import torch

from agt_lightning.domains.influence.label_bounds import margin_bounds, prediction_bounds
from agt_lightning.domains.influence.label_sets import LabelBall, LabelFlips
from agt_lightning.domains.influence.target_encoding import TargetEncoding
from tests.domains.influence.oracles import (
    F64,
    Training,
    choices_of_all_positions,
    class_labelings,
    codewords,
    random_queries,
    random_training,
    split_steps,
)

QUERIES = random_queries(6)
EXACT = 1e-10
OPTIONS = [{}, {"momentum": 0.8, "dampening": 0.3}, {"momentum": 0.6, "nesterov": True, "weight_decay": 0.1}]


def check_attained(bounds, values) -> None:
    """The bounds contain all values (L, ...) and are reached by some."""
    assert bool((values >= bounds.lower).all())
    assert bool((values <= bounds.upper).all())
    assert torch.allclose(values.amin(dim=0), bounds.lower, rtol=0, atol=EXACT)
    assert torch.allclose(values.amax(dim=0), bounds.upper, rtol=0, atol=EXACT)


@pytest.mark.parametrize("n", [0, 1, 2, 9])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_predictions_for_the_data_set(options, n):
    training, nu = random_training(1, classes=2, samples=5, **options), 0.3
    influence = training.recorded()
    moves = torch.tensor(list(product([-nu, 0.0, nu], repeat=5)), dtype=F64)
    moves = moves[(moves != 0).sum(dim=1) <= n]
    outputs = training.outputs(training.targets + moves[..., None], QUERIES)
    check_attained(prediction_bounds(influence, QUERIES, n, LabelBall(influence.targets, nu)), outputs)


def outputs_of_every_batch_choice(training: Training, moves, n: int):
    """Outputs for all choices of n moved positions in each step."""
    chosen = choices_of_all_positions(training, len(moves))
    few = torch.stack([(part != 0).sum(dim=1) <= n for part in split_steps(training, chosen)]).all(dim=0)
    clean = training.targets[torch.cat(list(training.batches))]
    return training.evaluated(training.heads_of_steps(split_steps(training, clean + moves[chosen[few]])), QUERIES)


@pytest.mark.parametrize("n", [0, 1, 2, 9])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_predictions_for_every_batch(options, n):
    training, nu = short(random_training(1, classes=2, samples=5, **options)), 0.3
    influence = training.recorded()
    outputs = outputs_of_every_batch_choice(training, torch.tensor([[0.0], [nu], [-nu]], dtype=F64), n)
    bounds = prediction_bounds(influence, QUERIES, n, LabelBall(influence.targets, nu), budget="batch")
    check_attained(bounds, outputs)


def short(training: Training) -> Training:
    """Three steps of two or three positions, one sample in two of them."""
    batches = [torch.tensor([0, 1]), torch.tensor([2, 3, 4]), torch.tensor([1, 4])]
    return Training(training.features, training.targets, batches, training.rates[:3], training.options)


def test_fault_of_one_position_is_noticed():
    training = short(random_training(1, classes=2, samples=5))
    influence = training.recorded()
    labels = LabelBall(influence.targets, 0.3)
    outputs = outputs_of_every_batch_choice(training, torch.tensor([[0.0], [0.3], [-0.3]], dtype=F64), 2)
    for wrong in (1, 3):
        with pytest.raises(AssertionError):
            check_attained(prediction_bounds(influence, QUERIES, wrong, labels, budget="batch"), outputs)
    with pytest.raises(AssertionError):
        check_attained(prediction_bounds(influence, QUERIES, 2, labels), outputs)


@pytest.mark.parametrize(
    ("q", "extremes"),
    [
        (math.inf, [[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]),
        (1, [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]),
        (2, [[0.5**0.5, -(0.5**0.5)], [-(0.5**0.5), 0.5**0.5], [1.0, 0.0], [-1.0, 0.0]]),
    ],
)
def test_margins_of_regression_balls(q, extremes):
    nu, n = 0.4, 2
    training = random_training(2, samples=4)
    training = training.with_targets(training.targets[:, :2] + 0.1)
    influence, encoding = training.recorded(), TargetEncoding.one_hot(2)
    options = nu * torch.tensor([[0.0, 0.0], *extremes], dtype=F64)
    chosen = class_labelings(len(options), 4)
    chosen = chosen[(chosen != 0).sum(dim=1) <= n]
    outputs = training.outputs(training.targets + options[chosen], QUERIES)
    classes = torch.zeros(len(QUERIES), dtype=torch.int64)
    bounds = margin_bounds(influence, QUERIES, classes, n, LabelBall(influence.targets, nu, q), encoding)
    check_attained(bounds, outputs[..., :1] - outputs)


@pytest.mark.parametrize("n", [0, 1, 2, 6])
def test_margins_of_flips_for_the_data_set(n):
    training = random_training(4, momentum=0.5)
    influence = training.recorded()
    labels = LabelFlips.of_targets(influence.targets)
    labelings = class_labelings(3, 6)
    labelings = labelings[(labelings != training.targets.argmax(dim=1)).sum(dim=1) <= n]
    outputs = training.outputs(codewords(3, binary=False)[labelings], QUERIES)
    classes = torch.tensor([0, 1, 2, 0, 1, 2])
    bounds = margin_bounds(influence, QUERIES, classes, n, labels, labels.encoding)
    check_attained(bounds, outputs.gather(2, classes[None, :, None].expand(len(outputs), -1, 1)) - outputs)


@pytest.mark.parametrize("n", [1, 2])
def test_margins_of_flips_for_every_batch(n):
    training = short(random_training(4, classes=2, samples=5, weight_decay=0.1))
    influence = training.recorded(poisonable=torch.tensor([True, True, False, True, True]))
    labels = LabelFlips.of_targets(influence.targets)
    chosen = choices_of_all_positions(training, 2)
    positions = torch.cat(list(training.batches))
    own = (training.targets[positions, 0] > 0).long()
    changed = chosen != own
    allowed = ~changed[:, positions == 2].any(dim=1)
    few = torch.stack([part.sum(dim=1) <= n for part in split_steps(training, changed)]).all(dim=0)
    heads = training.heads_of_steps(split_steps(training, codewords(2, binary=True)[chosen[allowed & few]]))
    outputs = training.evaluated(heads, QUERIES)[..., 0]
    bounds = margin_bounds(
        influence, QUERIES, torch.ones(6, dtype=torch.int64), n, labels, labels.encoding, budget="batch"
    )
    check_attained(bounds, torch.stack([outputs, torch.zeros_like(outputs)], dim=-1))


def test_chunks_do_not_matter():
    influence = random_training(0).recorded()
    labels, classes = LabelFlips.of_targets(influence.targets), torch.tensor([0, 1, 2, 0, 1, 2])
    whole = (
        prediction_bounds(influence, QUERIES, 2, labels),
        margin_bounds(influence, QUERIES, classes, 2, labels, labels.encoding),
    )
    for memory in (1, 1000):
        parts = (
            prediction_bounds(influence, QUERIES, 2, labels, memory=memory),
            margin_bounds(influence, QUERIES, classes, 2, labels, labels.encoding, memory=memory),
        )
        for one, other in zip(whole, parts, strict=True):
            assert torch.allclose(one.lower, other.lower, rtol=0, atol=EXACT)
            assert torch.allclose(one.upper, other.upper, rtol=0, atol=EXACT)
