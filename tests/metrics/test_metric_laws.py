"""Laws that every certified metric obeys, class against function."""

import copy
import math
import pickle

import matplotlib
import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from agt_lightning.errors import UnsoundBoundError
from agt_lightning.metrics import (
    BackdoorAccuracy,
    CertifiedAccuracy,
    CertifiedCrossEntropy,
    CertifiedMSE,
    CertifiedRate,
    TargetedAttackSuccess,
)
from agt_lightning.metrics.functional import (
    backdoor_accuracy,
    certified_accuracy,
    certified_cross_entropy,
    certified_mse,
    certified_rate,
    targeted_attack_success,
)

matplotlib.use("Agg")

SAFE = ((0, 1), (1,), (2, 0))


def regression_batch(size: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    lower = torch.randn(size, 2, generator=generator, dtype=dtype)
    return lower, lower + 1, torch.randn(size, 2, generator=generator, dtype=dtype)


def class_batch(size: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    lower = 2 * torch.randn(size, 3, generator=generator, dtype=dtype)
    return lower, lower + 0.5, torch.randint(3, (size,), generator=generator)


def binary_batch(size: int, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    lower = 2 * torch.randn(size, 1, generator=generator, dtype=dtype)
    return lower, lower + 0.5, torch.randint(2, (size, 1), generator=generator).to(dtype)


# class, its arguments, function, batches, value for no samples
CASES = {
    "CertifiedAccuracy": (CertifiedAccuracy, {}, certified_accuracy, class_batch, 0.0),
    "CertifiedAccuracy binary": (CertifiedAccuracy, {}, certified_accuracy, binary_batch, 0.0),
    "BackdoorAccuracy": (BackdoorAccuracy, {}, backdoor_accuracy, class_batch, 0.0),
    "CertifiedRate": (CertifiedRate, {}, lambda lower, upper, _: certified_rate(lower, upper), class_batch, 0.0),
    "CertifiedMSE": (CertifiedMSE, {}, certified_mse, regression_batch, math.inf),
    "CertifiedCrossEntropy": (CertifiedCrossEntropy, {}, certified_cross_entropy, class_batch, math.inf),
    "CertifiedCrossEntropy binary": (CertifiedCrossEntropy, {}, certified_cross_entropy, binary_batch, math.inf),
    "TargetedAttackSuccess": (TargetedAttackSuccess, {}, targeted_attack_success, class_batch, 1.0),
    "TargetedAttackSuccess safe": (
        TargetedAttackSuccess,
        {"safe_classes": SAFE},
        lambda *batch: targeted_attack_success(*batch, SAFE),
        class_batch,
        1.0,
    ),
}


class Case:
    """One metric, its function and fresh batches."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.cls, self.arguments, self.function, self._draw, self.empty = CASES[name]
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(0)

    def metric(self, **kwargs: object) -> Metric:
        return self.cls(**self.arguments, **kwargs)

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        return self._draw(size, self._generator, self.dtype)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def concatenate(batches: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == ()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_batches_add_up_to_the_function_of_all(name: str, dtype: torch.dtype) -> None:
    case = Case(name, dtype)
    metric = case.metric()
    batches = [case.batch(size) for size in (7, 1, 0, 12)]
    for batch in batches:
        metric.update(*batch)
    assert_equal(metric.compute(), case.function(*concatenate(batches)))


def test_forward_returns_the_batch_and_keeps_the_total(case: Case) -> None:
    metric = case.metric()
    batches = [case.batch(size) for size in (5, 9)]
    for batch in batches:
        assert_equal(metric(*batch), case.function(*batch))
    assert_equal(metric.compute(), case.function(*concatenate(batches)))


def test_no_samples_give_the_conservative_value(case: Case) -> None:
    metric = case.metric()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric.compute().item() == case.empty
    metric.update(*case.batch(0))
    assert metric.compute().item() == case.empty


def test_reset_forgets(case: Case) -> None:
    metric = case.metric()
    metric.update(*case.batch(9))
    metric.reset()
    batch = case.batch(5)
    metric.update(*batch)
    assert_equal(metric.compute(), case.function(*batch))


@pytest.mark.parametrize("copied", [copy.deepcopy, Metric.clone, lambda metric: pickle.loads(pickle.dumps(metric))])
def test_a_copy_goes_on_by_itself(case: Case, copied) -> None:
    metric, batches = case.metric(), [case.batch(5), case.batch(6)]
    metric.update(*batches[0])
    restored = copied(metric)
    restored.update(*batches[1])
    assert_equal(metric.compute(), case.function(*batches[0]))
    assert_equal(restored.compute(), case.function(*concatenate(batches)))


def test_states_of_two_processes_merge(case: Case) -> None:
    first, second, batches = case.metric(), case.metric(), [case.batch(5), case.batch(6)]
    first.update(*batches[0])
    second.update(*batches[1])
    first.merge_state(second)
    assert_equal(first.compute(), case.function(*concatenate(batches)))


def test_compute_gathers_every_process(case: Case) -> None:
    other, batches = case.metric(), [case.batch(5), case.batch(6)]
    other.update(*batches[1])
    waiting = [getattr(other, name) for name in other._defaults]

    def gather(state: Tensor, group: object) -> list[Tensor]:
        return [state, waiting.pop(0)]

    metric = case.metric(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    metric.update(*batches[0])
    assert_equal(metric.compute(), case.function(*concatenate(batches)))
    assert waiting == []


def test_float_conversion_keeps_the_precision_of_the_states(case: Case) -> None:
    metric, batch = case.metric(), case.batch(9)
    metric.half()
    metric.update(*batch)
    assert {state.dtype for state in metric.metric_state.values()} <= {torch.long, torch.float64}
    assert_equal(metric.compute(), case.function(*batch))


def test_update_refuses_what_is_no_bound(case: Case) -> None:
    lower, upper, target = case.batch(4)
    metric = case.metric()
    with pytest.raises(UnsoundBoundError, match="Expected `lower` <= `upper`"):
        metric.update(upper, lower, target)
    with pytest.raises(ValueError, match="Expected `lower` and `upper` of one shape"):
        metric.update(lower, upper[:3], target)


def test_a_refused_batch_leaves_no_trace(case: Case) -> None:
    metric, batch = case.metric(), case.batch(4)
    metric.update(*batch)
    with pytest.raises(UnsoundBoundError):
        metric.update(batch[1], batch[0], batch[2])
    assert_equal(metric.compute(), case.function(*batch))


def test_unknown_arguments_raise(case: Case) -> None:
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `spam`"):
        case.metric(spam=1)


def test_plot_of_one_and_of_several_values(case: Case) -> None:
    metric = case.metric()
    values = [metric(*case.batch(5)) for _ in range(3)]
    figure, axes = metric.plot()
    assert axes.get_ylim()[0] <= metric.plot_lower_bound
    assert metric.plot(values, ax=axes)[1] is axes
    matplotlib.pyplot.close(figure)


def test_class_attributes(case: Case) -> None:
    is_loss = case.empty == math.inf
    assert case.cls.full_state_update is False
    assert case.cls.is_differentiable is is_loss
    assert case.cls.higher_is_better is (case.empty == 0.0)
    assert (case.cls.plot_lower_bound, case.cls.plot_upper_bound) == (0.0, None if is_loss else 1.0)
