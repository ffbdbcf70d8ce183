from itertools import product

import pytest
import torch

from agt_lightning.domains.influence import SmootherInfluence
from agt_lightning.domains.influence.certified_flips import certified_flips
from agt_lightning.domains.influence.label_sets import LabelFlips
from recipes.baselines import dpa
from recipes.baselines.ceiling import largest_flips

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])


def features(seed, samples):
    return torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_rarest_other_class_decides():
    assert largest_flips(LABELS, 3).tolist() == [2, 2, 3]


def test_class_sums_stay_below_it():
    for seed, shift in product(range(4), (0.0, 0.3, "half")):
        labels = torch.randint(0, 3, (30,), generator=torch.Generator().manual_seed(seed))
        model = SmootherInfluence.class_sums(features(seed, 30), torch.eye(3)[labels], shift)
        queries = features(seed + 10, 20)
        certified = certified_flips(model, queries, LabelFlips.of_targets(model.targets))
        assert bool((certified <= largest_flips(labels, 3)[model.outputs(queries).argmax(dim=1)]).all())


def test_votes_stay_below_it():
    """Nearest class means of two parts, whose votes are in favor of a class by much."""
    labels = torch.tensor([0, 1] * 20)
    x = torch.where(labels[:, None] == 0, 1.0, -1.0) + 0.1 * features(0, 40)
    heads = dpa.train_base_models(x, labels, torch.arange(40) % 5, 5, 2, steps=50)
    counts = dpa.votes(heads, x)
    assert bool((dpa.certified_flips(counts) <= largest_flips(labels, 2)[dpa.predicted(counts)]).all())


def test_it_is_attained_by_a_cluster_for_each_class():
    targets = torch.eye(2).repeat_interleave(10, dim=0)
    model = SmootherInfluence.class_sums(targets, targets, "half")
    certified = certified_flips(model, targets[:1].double(), LabelFlips.of_targets(model.targets))
    assert certified.tolist() == [int(largest_flips(targets.argmax(dim=1), 2)[0])] == [9]


@pytest.mark.parametrize("rule", ["plurality", "nearest"])
def test_exchanging_classes_on_half_of_the_samples_changes_predictions(rule):
    """The proof, carried out: of the two halves, one changes the prediction."""

    def predicted(labels):
        if rule == "plurality":
            return int(torch.bincount(labels, minlength=3).argmax())
        return int(labels[points.norm(dim=1).argsort()[:3]].mode().values)

    points = features(3, len(LABELS))
    before = predicted(LABELS)
    for rival in {0, 1, 2} - {before}:
        rows = ((before == LABELS) | (rival == LABELS)).nonzero().squeeze(1)
        size = (len(rows) + 1) // 2
        outcomes = []
        for part in (rows[:size], rows[size:]):
            labels = LABELS.clone()
            labels[part] = before + rival - labels[part]
            outcomes.append(predicted(labels) == before)
        assert not all(outcomes)
