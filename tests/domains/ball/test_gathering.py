"""A step of several micro-batches and processes, put together from what each of them has."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.aggregation import SampleSet
from agt_lightning.distributed.group import SingleProcess
from agt_lightning.domains.ball import gathering
from agt_lightning.domains.ball.gathering import step_data
from agt_lightning.domains.losses import LabelPerturbation
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.labels import ClassLabels

INPUTS = torch.randn(3, 2, dtype=torch.float64)
TARGET = Interval.point(torch.randn(3, 1, dtype=torch.float64))
BOUNDS = Interval(INPUTS[:, :1] - 1, INPUTS[:, :1] + 1)
NOTHING = torch.zeros(3, dtype=torch.float64)
CLEAN = {
    "inputs": INPUTS,
    "layer/0": INPUTS[:, :1],
    "target": TARGET,
    "input_error": NOTHING,
    "target_error": NOTHING,
}
POISON = {"clean": TARGET, "poisoned": TARGET, "half_widths": torch.full((1, 2), 0.1, dtype=torch.float64), "p": "2.0"}
BATCH = CLEAN | POISON
RADIUS = {"label_radius": torch.tensor([0.5], dtype=torch.float64)}


class Two(SingleProcess):
    """This process and another one, whose message is this one's, changed."""

    def __init__(self, change):
        self.change = change

    @property
    def size(self):
        return 2

    def gather(self, message):
        return message, self.change(dict(message))


def joined(*batches, processes=None):
    processes = processes or SingleProcess()
    count = 3 * len(batches) * processes.size
    samples = SampleSet(torch.full((count,), 1 / count, dtype=torch.float64))
    step = SimpleNamespace(processes=processes, samples=samples, chosen=samples, adversary=SimpleNamespace(n=2))
    return step_data(step, batches)


def of_two(change, *batches):
    return joined(*(batches or [BATCH]), processes=Two(change))


def without(name):
    return lambda message: {key: value for key, value in message.items() if key != name}


def check_order(data):
    assert torch.equal(data.samples.inputs, torch.cat([INPUTS, -INPUTS]))
    assert data.target.shape == (6, 1)
    assert data.poison.n == 2
    assert torch.equal(data.poison.rows, torch.arange(6))
    assert torch.equal(data.poison.features.half_widths, POISON["half_widths"])


def test_samples_stand_one_process_after_another():
    check_order(of_two(lambda message: message | {"0/inputs": -INPUTS}))


def test_samples_stand_one_micro_batch_after_another():
    check_order(joined(BATCH, BATCH | {"inputs": -INPUTS}))


def test_micro_batches_of_one_process_stand_before_those_of_the_next():
    data = of_two(lambda message: message | {"0/inputs": 3 * INPUTS}, BATCH, BATCH | {"inputs": 2 * INPUTS})
    assert torch.equal(data.samples.inputs, torch.cat([INPUTS, 2 * INPUTS, 3 * INPUTS, 2 * INPUTS]))


def test_one_micro_batch_is_not_copied():
    data = joined(BATCH)
    assert data.samples.inputs is INPUTS
    assert data.target is TARGET
    assert data.poison.features.half_widths is POISON["half_widths"]


def test_the_larger_perturbation_counts():
    other = torch.full((3, 2), 0.3, dtype=torch.float64)
    for data in (
        of_two(lambda message: message | {"0/half_widths": other}),
        joined(BATCH, BATCH | POISON | {"half_widths": other}),
    ):
        half_widths = data.poison.features.half_widths
        assert bool((half_widths[3:] == 0.3).all())
        assert bool((half_widths[:3] >= 0.1).all())


def test_samples_that_cannot_be_poisoned_have_no_part_in_the_poison():
    data = joined(CLEAN, BATCH)
    assert len(data.samples.inputs) == 6
    assert data.poison.labels.clean.shape == (3, 1)
    assert joined(CLEAN).poison is None


def test_the_largest_change_of_labels_counts():
    other = {"label_radius": torch.tensor([0.7], dtype=torch.float64)}
    assert joined(BATCH | RADIUS, BATCH | other).poison.labels.radius == 0.7


def test_bounds_that_some_batch_lacks_are_left_out():
    bounds = {"bounds/0": BOUNDS, "poisoned_bounds/0": BOUNDS}
    data = joined(BATCH | bounds, BATCH | bounds)
    assert data.samples.layer_bounds[0].shape == (6, 1)
    assert data.poison.layer_bounds[0].shape == (6, 1)
    data = joined(BATCH | bounds, BATCH)
    assert data.samples.layer_bounds is None
    assert data.poison.layer_bounds is None


def test_class_labels_keep_what_can_be_flipped():
    form = '{"flippable": true, "sources": [0, 2], "targets": null}'
    index = torch.tensor([0, 1, 2])
    batch = {name: BATCH[name] for name in ("inputs", "layer/0", "input_error", "target_error")} | {
        f"{name}/{part}": entry
        for name in ("target", "clean", "poisoned")
        for part, entry in (("index", index), ("form", form))
    }
    labels = joined(batch, batch).poison.labels.poisoned
    assert isinstance(labels, ClassLabels)
    assert torch.equal(labels.index, torch.cat([index, index]))
    assert (labels.flippable, labels.sources, labels.targets) == (True, (0, 2), None)


@pytest.mark.parametrize("change", [without("0/half_widths"), lambda message: message | {"0/p": "1.0"}])
def test_processes_that_disagree_about_features_are_refused(change):
    with pytest.raises(UnsoundBoundError, match="same adversary"):
        of_two(change)


@pytest.mark.parametrize("more", [{"scale": torch.ones(1, 2, dtype=torch.float64)}, RADIUS])
def test_a_limit_that_one_process_has_alone_is_refused(more):
    (name,) = more
    with pytest.raises(UnsoundBoundError, match="same adversary"):
        of_two(without(f"0/{name}"), BATCH | more)


@pytest.mark.parametrize("q", [1, 2])
def test_labels_are_as_far_as_their_stored_type_takes_them(q, monkeypatch):
    """Beside 1000, the nearest number to 1000 + 4e-5 in single precision is 6e-5 away."""
    radii = []
    monkeypatch.setattr(gathering, "LabelPerturbation", lambda *of: radii.append(of[2]) or LabelPerturbation(*of))
    module = nn.Linear(1, 1)
    engine = AbstractGradientEngine(
        module,
        lambda m, batch: nn.functional.mse_loss(m(batch[0]), batch[1]),
        BoundedAdversary(n=1, nu=4e-5, q=q),
        domains=("ball",),
    )
    label = torch.full((1, 1), 1000.0)
    engine.step([(torch.ones(1, 1), label)], torch.optim.SGD(module.parameters(), lr=0.1))
    assert radii[0] >= float(label + 4e-5) - 1000 > 4e-5


def test_sums_over_all_samples_take_more_roundings_than_those_of_micro_batches():
    data = joined(*[BATCH] * 20)
    assert data.sum_roundings < 60 <= data.own_roundings
    assert joined(BATCH).own_roundings == joined(BATCH).sum_roundings
