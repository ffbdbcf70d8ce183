import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.baselines.dpa import (
    certified_flips,
    class_sum_models,
    partition,
    predicted,
    train_base_models,
    votes,
    with_bias,
)

EXACT = 1e-12  # float64 products in another order


def data(seed, samples=60, inputs=3, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    centers = torch.randn(classes, inputs, generator=generator, dtype=torch.float64)
    return centers[labels] + torch.randn(samples, inputs, generator=generator, dtype=torch.float64), labels


def worst_ballot(counts, classes, n):
    """Every prediction that n models can bring about by voting otherwise: slow and plain."""
    reached = {tuple(counts)}
    for _ in range(n):
        reached |= {
            tuple(v - (k == a) + (k == b) for k, v in enumerate(ballot))
            for ballot in reached
            for a in range(classes)
            for b in range(classes)
            if ballot[a] > 0
        }
    return {max(range(classes), key=lambda k: (ballot[k], -k)) for ballot in reached}


@given(st.lists(st.integers(0, 6), min_size=2, max_size=4).filter(any))
@settings(deadline=None, max_examples=60)
def test_certificate_is_exact_for_ballots(counts):
    ballots = torch.tensor([counts])
    flips, winner = int(certified_flips(ballots)), int(predicted(ballots))
    assert worst_ballot(counts, len(counts), min(flips, 3)) == {winner}
    if flips < 3:
        assert worst_ballot(counts, len(counts), flips + 1) != {winner}


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_no_poisoned_partition_changes_a_certified_prediction(seed):
    generator = torch.Generator().manual_seed(seed)
    features, labels = data(seed)
    x, parts = torch.randn(20, 3, generator=generator, dtype=torch.float64), 9
    part = partition(features, parts)
    counts = votes(train_base_models(features, labels, part, parts, 4, 30), x)
    flips, winner = certified_flips(counts), predicted(counts)
    for n in (1, 2, 3):
        for target in range(4):
            # One label in each of n parts would do; all labels of n parts is more than the certificate grants.
            chosen = torch.randperm(parts, generator=generator)[:n]
            poisoned = torch.where(torch.isin(part, chosen), target, labels)
            after = predicted(votes(train_base_models(features, poisoned, part, parts, 4, 30), x))
            assert bool((after == winner)[flips >= n].all())


def test_first_class_wins_among_equals():
    assert predicted(torch.tensor([[3, 3, 1], [1, 4, 4]])).tolist() == [0, 1]


def test_rival_of_lower_index_needs_one_vote_less():
    # Class 1 against 0: 5 to 2, a gap of 2 after the tie break; class 0 against 1: a gap of 3.
    assert certified_flips(torch.tensor([[2, 5], [5, 2], [4, 7], [7, 4]])).tolist() == [1, 1, 1, 1]
    assert certified_flips(torch.tensor([[3, 5], [5, 3]])).tolist() == [0, 1]


def test_parts_depend_on_the_sample_alone():
    features, _ = data(0)
    part = partition(features, 7)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(1))
    assert torch.equal(partition(features[order], 7), part[order])
    assert torch.equal(partition(features[:10], 7), part[:10])
    assert set(part.tolist()) == set(range(7))


def test_batched_models_are_those_of_a_plain_loop():
    features, labels = data(3)
    part = partition(features, 5)
    heads = train_base_models(features, labels, part, 5, 4, 20)
    for k, head in enumerate(heads):
        x, y = with_bias(features[part == k]), labels[part == k]
        rate = 2 / x.square().sum(dim=1).mean()
        weight = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
        for _ in range(20):
            (gradient,) = torch.autograd.grad(F.cross_entropy(x @ weight, y), weight)
            weight = (weight - rate * gradient).detach().requires_grad_()
        assert float((weight.detach() - head).abs().max()) < EXACT


def test_a_flip_moves_only_the_model_of_its_part():
    features, labels = data(4)
    part = partition(features, 5)
    flipped = labels.clone()
    flipped[7] = (flipped[7] + 1) % 4
    before, after = (train_base_models(features, y, part, 5, 4, 20) for y in (labels, flipped))
    moved = [k for k in range(5) if not torch.equal(before[k], after[k])]
    assert moved == [int(part[7])]


def test_an_empty_part_votes_for_class_0():
    features, labels = data(5)
    heads = train_base_models(features, labels, torch.zeros(60, dtype=torch.long), 2, 4, 5)
    assert torch.equal(heads[1], torch.zeros_like(heads[1]))
    assert bool((votes(heads, features)[:, 0] >= 1).all())


def test_class_sums_of_each_part_alone():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    labels, part = torch.arange(40) % 4, torch.arange(40) % 7
    heads = class_sum_models(features, labels, part, 8, 4)
    assert heads.shape == (8, 4, 4)
    for k in range(8):
        for c in range(4):
            expected = features[(part == k) & (labels == c)].sum(dim=0)
            assert torch.allclose(heads[k, :3, c], expected)
    assert torch.equal(heads[:, 3], torch.zeros(8, 4, dtype=torch.float64))
