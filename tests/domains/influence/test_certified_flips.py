from dataclasses import replace

import pytest
import torch

from agt_lightning.domains.influence import certified_flips as certified_flips_module
from agt_lightning.domains.influence.certified_flips import certified_flips
from agt_lightning.domains.influence.label_sets import LabelFlips, LabelRange
from agt_lightning.domains.influence.recorder import HeadRecorder
from agt_lightning.domains.influence.target_encoding import TargetEncoding
from agt_lightning.domains.sgd import SGDSettings
from agt_lightning.errors import UncertifiableError
from tests.domains.influence.attacks import strongest_flips
from tests.domains.influence.oracles import (
    F64,
    Training,
    choices_of_all_positions,
    codewords,
    random_queries,
    random_training,
    read_classes,
    split_steps,
    survived_flips,
)

OPTIONS = [{}, {"momentum": 0.8, "dampening": 0.3}, {"momentum": 0.6, "nesterov": True, "weight_decay": 0.1}]
QUERIES = random_queries(20)


def flips_of(training: Training, influence, **restrictions) -> LabelFlips:
    classes = 2 if training.targets.shape[1] == 1 else training.targets.shape[1]
    return LabelFlips.of_targets(
        influence.targets, TargetEncoding(codewords(classes, binary=classes == 2)), **restrictions
    )


def check_exact(training: Training) -> None:
    """No number of flips that is certified, and the next number always, changes a prediction of some training."""
    influence = training.recorded()
    certified = certified_flips(influence, QUERIES, flips_of(training, influence))
    expected = survived_flips(training, QUERIES)
    assert bool((certified <= expected).all()), "a certificate is broken by a training"
    assert bool((certified >= expected).all()), "no training reaches the certificate"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("classes", "samples"), [(2, 7), (3, 6)])
def test_certificate_is_exact(classes, samples, options):
    for seed in range(4):
        check_exact(random_training(seed, classes=classes, samples=samples, **options))


def test_oracle_sees_different_numbers():
    """The comparison above is not of constants."""
    found = torch.cat([survived_flips(random_training(seed), QUERIES) for seed in range(4)])
    assert set(found.tolist()) >= {0, 1, 2}


@pytest.mark.parametrize("shift", [-1, 1])
def test_counting_one_more_or_one_less_is_noticed(shift, monkeypatch):
    training = random_training(1)
    check_exact(training)
    counted = certified_flips_module._certified
    monkeypatch.setattr(certified_flips_module, "_certified", lambda *arguments: counted(*arguments) + shift)
    with pytest.raises(AssertionError, match="broken" if shift > 0 else "reaches"):
        check_exact(training)


def test_forgetting_the_clean_label_is_noticed(monkeypatch):
    """With |a| for every sample, as if every s_i were 0, the certificate is wrong."""
    training = random_training(1)
    flat = LabelRange(torch.ones(6, dtype=F64), torch.ones(6, dtype=F64))
    monkeypatch.setattr(LabelFlips, "range", lambda self, direction: flat)
    with pytest.raises(AssertionError):
        check_exact(training)


def test_samples_that_cannot_be_poisoned():
    for seed in range(4):
        training, allowed = random_training(seed), torch.tensor([True, False, True, True, False, True])
        influence = training.recorded(poisonable=allowed)
        certified = certified_flips(influence, QUERIES, flips_of(training, influence))
        assert torch.equal(certified, survived_flips(training, QUERIES, allowed))


def test_no_number_of_flips_is_all_samples():
    training = random_training(0)
    influence = training.recorded(poisonable=torch.zeros(6, dtype=torch.bool))
    assert certified_flips(influence, QUERIES, flips_of(training, influence)).tolist() == [0] * 20
    far = flips_of(training, training.recorded(), target_classes=())
    assert certified_flips(training.recorded(), QUERIES, far).tolist() == [6] * 20


def check_batch_exact(training: Training, queries) -> None:
    """The same for fresh labels at every step, n positions of each."""
    influence = training.recorded()
    certified = certified_flips(influence, queries, flips_of(training, influence), budget="batch")
    table = codewords(2, binary=True)
    chosen = choices_of_all_positions(training, 2)
    heads = training.heads_of_steps(split_steps(training, table[chosen]))
    own = (training.targets[torch.cat(list(training.batches)), 0] > 0).long()
    counts = torch.stack([part.sum(dim=1) for part in split_steps(training, (chosen != own).long())]).amax(dim=0)
    nominal = read_classes(training.outputs(training.targets[None], queries))
    altered = read_classes(training.evaluated(heads, queries)) != nominal
    most = max(len(batch) for batch in training.batches)
    needed = torch.where(altered, counts[:, None], most + 1).amin(dim=0)
    assert torch.equal(certified, needed - 1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_budget_of_every_batch_is_exact(options):
    for seed in range(3):
        check_batch_exact(random_training(seed, classes=2, samples=5, **options), QUERIES)


def test_lower_midpoint_of_zero_and_one():
    """With targets 0 and 1 the class is f > 1/2; an affine change of targets and start leaves certificates alone."""
    training = random_training(2, classes=2)
    influence = training.recorded()
    certified = certified_flips(influence, QUERIES, flips_of(training, influence))

    halved = _HalvedTargets(training.features, (training.targets + 1) / 2, training.batches, training.rates)
    other = halved.recorded()
    zero_one = LabelFlips.of_targets(other.targets)
    assert zero_one.encoding.codewords.tolist() == [[0.0], [1.0]]
    assert torch.equal(certified_flips(other, QUERIES, zero_one), certified)


class _HalvedTargets(Training):
    @property
    def initial(self):
        start = super().initial / 2
        start[:, -1] += 0.5
        return start


@pytest.mark.parametrize("seed", range(6))
def test_attack_of_one_flip_more_succeeds_in_training(seed):
    training = random_training(seed, samples=40, momentum=0.7, weight_decay=0.01)
    influence = training.recorded()
    labels = flips_of(training, influence)
    queries = random_queries(20, seed)
    certified = certified_flips(influence, queries, labels)
    numbers = training.sample_of(influence)
    nominal = read_classes(training.outputs(training.targets[None], queries))[0]
    for query, n in enumerate(certified.tolist()):
        if n == 40:
            continue
        for flipped in (n, n + 1):
            attack = strongest_flips(influence, queries[query], flipped, labels)
            targets = training.targets.clone()
            targets[numbers[attack.samples]] = torch.eye(3, dtype=F64)[attack.classes]
            outputs = training.outputs(targets[None], queries[[query]])[0, 0]
            assert len(attack.samples) <= flipped
            margin = float(outputs[nominal[query]] - outputs[attack.rival])
            assert margin == pytest.approx(attack.margin, abs=1e-10)
            assert (int(outputs.argmax()) != int(nominal[query])) == (flipped > n)


def test_none_of_a_thousand_attacks_beats_the_certificate():
    training = random_training(11, samples=40, momentum=0.7)
    influence = training.recorded()
    queries = random_queries(60)
    certified = certified_flips(influence, queries, flips_of(training, influence))
    generator = torch.Generator().manual_seed(0)
    nominal = read_classes(training.outputs(training.targets[None], queries))[0]
    closeness = torch.cdist(queries, training.features)
    for query, n in enumerate(certified.tolist()):  # from greedy, the nearest samples, to random
        targets = training.targets.repeat(1000, 1, 1)
        noise = torch.rand(1000, 40, generator=generator, dtype=F64) * torch.linspace(0, 5, 1000, dtype=F64)[:, None]
        victims = (closeness[query] + noise).argsort(dim=1)[:, :n]
        written = torch.eye(3, dtype=F64)[torch.randint(3, victims.shape, generator=generator)]
        targets.scatter_(1, victims[..., None].expand(-1, -1, 3), written)
        assert bool((read_classes(training.outputs(targets, queries[[query]])) == nominal[query]).all())


def test_restricted_classes_never_certify_less():
    training = random_training(3)
    influence = training.recorded()
    everything = certified_flips(influence, QUERIES, flips_of(training, influence))
    restricted = certified_flips(
        influence, QUERIES, flips_of(training, influence, source_classes=(0,), target_classes=(1,))
    )
    assert bool((restricted >= everything).all())
    assert bool((restricted > everything).any())


def test_tie_is_not_certified():
    training = Training(torch.zeros(2, 0, dtype=F64), torch.tensor([[1.0], [-1.0]], dtype=F64), [], [])
    influence = _mean(training)
    assert certified_flips(influence, torch.zeros(1, 0), LabelFlips.of_targets(influence.targets)).tolist() == [0]


def _mean(training: Training):
    """One step from zero with rate 1 makes the bias the mean of the labels."""
    recorder = HeadRecorder(torch.zeros(1, 1), bias=True)
    count = len(training.targets)
    recorder.append(
        training.features, training.targets, torch.full((count,), 1 / count), SGDSettings(1.0), ids=torch.arange(count)
    )
    return recorder.influence()


def test_margin_that_flips_use_up_exactly_is_not_certified():
    """Three of four labels are 1: the margin 1/2 falls to 0 by one flip."""
    labels = torch.tensor([[1.0], [1.0], [1.0], [-1.0]], dtype=F64)
    influence = _mean(Training(torch.zeros(4, 0, dtype=F64), labels, [], []))
    flips_ = LabelFlips.of_targets(labels)
    assert certified_flips(influence, torch.zeros(1, 0), flips_).tolist() == [0]
    more = torch.cat([labels, torch.ones(1, 1, dtype=F64)])
    influence = _mean(Training(torch.zeros(5, 0, dtype=F64), more, [], []))
    assert certified_flips(influence, torch.zeros(1, 0), LabelFlips.of_targets(more)).tolist() == [1]
    assert certified_flips(influence, torch.zeros(1, 0), LabelFlips.of_targets(more), tolerance=0.3).tolist() == [0]


def test_chunks_do_not_matter():
    training = random_training(5)
    influence = training.recorded()
    labels = flips_of(training, influence)
    for budget in ("dataset", "batch"):
        whole = certified_flips(influence, QUERIES, labels, budget=budget)
        assert torch.equal(certified_flips(influence, QUERIES, labels, budget=budget, memory=1), whole)


def test_unknown_identity_is_refused():
    influence = replace(random_training(0).recorded(), problem="Expected ids.")
    labels = flips_of(random_training(0), influence)
    with pytest.raises(UncertifiableError, match="Expected ids"):
        certified_flips(influence, QUERIES, labels)
    assert len(certified_flips(influence, QUERIES, labels, budget="batch")) == 20
