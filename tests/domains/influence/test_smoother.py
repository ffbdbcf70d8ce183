from dataclasses import replace

import pytest
import torch

from agt_lightning.domains.influence import SmootherInfluence
from agt_lightning.domains.influence.certified_flips import certified_flips
from agt_lightning.domains.influence.label_sets import LabelFlips
from agt_lightning.domains.influence.recorder import HeadRecorder
from agt_lightning.domains.sgd import SGDSettings
from agt_lightning.errors import UnsoundBoundError
from tests.domains.influence.attacks import strongest_flips
from tests.domains.influence.oracles import F64, class_labelings, read_classes

SHIFTS = pytest.mark.parametrize("shift", [0.0, 0.3, 2.0, "half"])


def problem(seed, samples=7, classes=3, dimension=4):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, dimension, generator=generator, dtype=F64)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    labels[:classes] = torch.arange(classes)
    queries = torch.cat([features + 0.3, torch.randn(6, dimension, generator=generator, dtype=F64)])
    return features, torch.eye(classes, dtype=F64)[labels], queries


def written_out(features, targets, queries, shift):
    """Outputs for labels (N, K), by loops."""
    outputs = torch.zeros(len(queries), targets.shape[1], dtype=F64)
    for row, query in enumerate(queries):
        influence = [float((query * other).sum()) for other in features]
        off = max(influence) / 2 if shift == "half" else shift
        for value, label in zip(influence, targets, strict=True):
            outputs[row] += (value - off) * label
    return outputs


def survived(features, targets, queries, shift):
    """Largest number of flips that never changes a prediction, by every labeling."""
    classes = targets.shape[1]
    own, nominal = targets.argmax(dim=1), read_classes(written_out(features, targets, queries, shift))
    influence = queries @ features.T
    off = influence.amax(dim=1, keepdim=True) / 2 if shift == "half" else shift
    labelings = class_labelings(classes, len(own))
    outputs = torch.einsum("qn,lnk->lqk", influence - off, torch.eye(classes, dtype=F64)[labelings])
    flips = (labelings != own).sum(dim=1, keepdim=True)
    return torch.where(read_classes(outputs) != nominal, flips, len(own) + 1).amin(dim=0) - 1


def check_exact(shift, seeds=range(3)):
    for seed in seeds:
        features, targets, queries = problem(seed)
        model = SmootherInfluence.class_sums(features, targets, shift)
        assert torch.allclose(model.outputs(queries), written_out(features, targets, queries, shift))
        certified = certified_flips(model, queries, LabelFlips.of_targets(targets))
        assert torch.equal(certified, survived(features, targets, queries, shift))


@SHIFTS
def test_certificate_is_exact(shift):
    check_exact(shift)


def test_a_shift_of_the_outputs_alone_is_noticed(monkeypatch):
    """Planted fault: flips are weighed by the influences before the shift."""
    raw = SmootherInfluence.influence
    monkeypatch.setattr(SmootherInfluence, "influence", lambda self, x: raw(replace(self, shift=0.0), x))
    with pytest.raises(AssertionError):
        check_exact(2.0, seeds=range(6))


def test_a_shift_of_the_influences_alone_is_noticed(monkeypatch):
    """Planted fault: the outputs are those before the shift."""
    predict = SmootherInfluence.predict
    monkeypatch.setattr(SmootherInfluence, "predict", lambda self, x: predict(replace(self, shift=0.0), x))
    with pytest.raises(AssertionError):
        check_exact(2.0)


def test_one_step_of_gradient_descent_from_zero_has_the_flips_of_class_sums():
    features, targets, queries = problem(5, samples=40, dimension=3)
    recorder = HeadRecorder(torch.zeros(3, 3), bias=False)
    slopes = torch.full((40,), 2 / 120, dtype=F64)
    recorder.append(features, targets, slopes, SGDSettings(0.7), ids=torch.arange(40))
    step, sums = recorder.influence(), SmootherInfluence.class_sums(features, targets)
    flips = LabelFlips.of_targets(targets)
    assert torch.equal(certified_flips(step, queries, flips), certified_flips(sums, queries, flips))


@SHIFTS
def test_one_flip_more_changes_the_prediction_of_many_samples(shift):
    features, targets, queries = problem(3, samples=300, classes=5, dimension=3)
    model = SmootherInfluence.class_sums(features, targets, shift)
    flips = LabelFlips.of_targets(targets)
    for query, n in zip(queries[-4:], certified_flips(model, queries[-4:], flips).tolist(), strict=True):
        for count, changed in ((n, False), (n + 1, True)):
            attack = strongest_flips(model, query, count, flips)
            poisoned = targets.clone()
            poisoned[attack.samples] = torch.eye(5, dtype=F64)[attack.classes]
            before, after = (written_out(features, each, query[None], shift) for each in (targets, poisoned))
            assert (int(before.argmax()) != int(after.argmax())) is changed


def test_half_of_the_largest_influence_doubles_the_flips_of_a_cluster():
    """Balanced clusters: the mass of a class alone, or that of both, n = N_c / 2 and (N_c + N_k) / 2, up to ties."""
    targets = torch.eye(3, dtype=F64).repeat_interleave(20, dim=0)
    query, flips = targets[:1], LabelFlips.of_targets(targets)
    plain, half = (SmootherInfluence.class_sums(targets, targets, shift) for shift in (0.0, "half"))
    assert certified_flips(plain, query, flips).tolist() == [9]
    assert certified_flips(half, query, flips).tolist() == [19]


@SHIFTS
@pytest.mark.parametrize("scale", [1.0, 1e8])
def test_outputs_in_any_order_of_summation_are_within_the_errors(shift, scale):
    features, targets, queries = problem(2, samples=50, dimension=6)
    features, queries = features + scale, queries[-6:]  # what classes have in common
    model = SmootherInfluence.class_sums(features, targets, shift)
    predictions = model.predict(queries)
    slack = predictions.slack(1.0)
    for seed in range(5):
        rows = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
        columns = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        again = written_out(features[rows][:, columns], targets[rows], queries[:, columns], shift)
        assert bool(((again - predictions.outputs).abs() <= slack[:, None]).all())
    assert bool((slack < 1e-9 * scale * 50).all())


def test_influences_that_cancel_are_within_the_errors():
    """Products of 1e16 add up to numbers below 1e9, in another order to others."""
    features, targets, queries = problem(2, samples=50, dimension=6)
    signs = torch.tensor([1.0, -1.0] * 3, dtype=F64)
    features, queries = features + 1e8 * signs, queries[-6:] + 1e8
    model = SmootherInfluence.class_sums(features, targets, "half")
    predictions = model.predict(queries)
    slack = predictions.slack(1.0)
    for order in ([0, 2, 4, 1, 3, 5], [5, 3, 1, 0, 4, 2], [1, 0, 3, 2, 5, 4]):
        again = written_out(features[:, order], targets, queries[:, order], "half")
        assert bool(((again - predictions.outputs).abs() <= slack[:, None]).all())


def test_close_outputs_are_not_certified():
    """By rounding alone another class could be predicted."""
    features = torch.full((3, 1), 1e16, dtype=F64)
    targets = torch.eye(2, dtype=F64)[torch.tensor([0, 1, 1])]
    model = SmootherInfluence(lambda x: torch.tensor([[1e16, 1e16, -2.0]], dtype=F64), targets)
    assert certified_flips(model, features[:1], LabelFlips.of_targets(targets)).tolist() == [0]
    assert float(model.predict(features[:1]).slack(1.0)) > 2


def test_wrong_arguments_are_refused():
    features, targets, queries = problem(0)
    with pytest.raises(ValueError, match="a number or 'half', but got 'whole'"):
        SmootherInfluence.class_sums(features, targets, "whole")
    with pytest.raises(ValueError, match="`shift` to be finite"):
        SmootherInfluence.class_sums(features, targets, float("nan"))
    with pytest.raises(ValueError, match="targets of shape"):
        SmootherInfluence.class_sums(features, targets[:, 0])
    with pytest.raises(ValueError, match=r"influences of shape \(13, 7\)"):
        SmootherInfluence(lambda x: x, targets).outputs(queries)
    with pytest.raises(UnsoundBoundError, match="NaN or infinite"):
        SmootherInfluence(lambda x: x @ features.T / 0, targets).outputs(queries)
