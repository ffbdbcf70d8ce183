"""`gradient_clip_val`: the bounds clip what Lightning clips, and prove it at every step."""

import pytest
import torch
from torch import nn

from agt_lightning import BoundedAdversary, CertifiedTraining, UnboundedAdversary, UncertifiableError
from agt_lightning.aggregation.mean_clipping import MeanNormClipping, MeanValueClipping
from agt_lightning.interval import Interval
from agt_lightning.lightning.checks import mean_clipping

ROUNDING = 1e-9
ADVERSARY = BoundedAdversary(n=1, epsilon=0.05, nu=0.05)


def twins(regressor, count=2, **options):
    made = []
    for _ in range(count):
        torch.manual_seed(0)
        made.append(regressor(**options).double())
    return made


@pytest.mark.thinned(3)
@pytest.mark.parametrize("algorithm", ["norm", "value", None])
@pytest.mark.parametrize("limit", [0.05, 100.0])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
def test_training_is_the_plain_one_and_inside(optimizer, limit, algorithm, fit, loader, regressor):
    plain, module = twins(regressor)
    for each in (plain, module):
        each.configure_optimizers = lambda each=each: optimizer(each.parameters(), lr=0.01)
    options = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm, "max_epochs": 3}
    fit(plain, loader(dtype=torch.float64), **options)
    certified = CertifiedTraining(ADVERSARY)
    fit(module, loader(dtype=torch.float64), certified, **options)
    pairs = zip(plain.parameters(), module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert certified.bounds.contains(module)
    assert certified.bounds.mean_width() > 0


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_without_an_adversary_the_box_is_a_point(algorithm, fit, loader, regressor):
    (module,) = twins(regressor, 1)
    certified = CertifiedTraining(BoundedAdversary(n=0))
    clip = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": algorithm}
    fit(module, loader(dtype=torch.float64), certified, max_epochs=3, **clip)
    assert certified.bounds.mean_width() < ROUNDING


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_float32_raises_no_false_alarm(algorithm, fit, loader, regressor):
    for seed in range(3):
        torch.manual_seed(seed)
        module = regressor(hidden=32)
        certified = CertifiedTraining(BoundedAdversary(n=seed, epsilon=0.01))
        clip = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": algorithm}
        fit(module, loader(), certified, max_epochs=3, **clip)
        assert certified.bounds.contains(module)


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_clipping_twice_under_an_unbounded_adversary(clip, fit, loader, regressor):
    """The mean of the gradients that were clipped per sample is clipped again."""
    loose, tight = twins(regressor)
    boxes = []
    for module, limit in ((loose, None), (tight, 0.01)):
        certified = CertifiedTraining(UnboundedAdversary(n=1, kappa=0.1, clip=clip))
        fit(module, loader(dtype=torch.float64), certified, gradient_clip_val=limit)
        assert certified.bounds.contains(module)
        boxes.append(certified.bounds)
    assert boxes[1].mean_width() < boxes[0].mean_width()


def test_a_hook_that_changes_gradients_before_clipping_raises(fit, loader, regressor):
    class Scales(regressor):
        def on_before_optimizer_step(self, optimizer):
            for parameter in self.parameters():
                parameter.grad *= 0.99

    with pytest.raises(UncertifiableError, match="writes to gradients"):
        fit(Scales(), loader(), CertifiedTraining(ADVERSARY), gradient_clip_val=0.01)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_poisoned_runs_with_clipping_stay_inside(algorithm, fit, regressor):
    """Full-batch steps on data moved within the adversary's means: one sample per step, anywhere in its ball."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    batches = [(x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)]
    start, module = twins(regressor)
    certified = CertifiedTraining(BoundedAdversary(n=1, epsilon=0.2, nu=0.3))
    options = {"gradient_clip_val": 0.2, "gradient_clip_algorithm": algorithm}
    fit(module, torch.utils.data.DataLoader(batches, batch_size=None), certified, **options)
    for run in range(200):
        poisoned = nn.Sequential(*[layer for layer in twins(regressor, 1)[0].net])
        optimizer = torch.optim.SGD(poisoned.parameters(), lr=0.1)
        for bx, by in batches:
            noise_x, noise_y = (torch.rand(t.shape, generator=generator, dtype=t.dtype) * 2 - 1 for t in (bx[0], by[0]))
            if run % 2:
                noise_x, noise_y = noise_x.sign(), noise_y.sign()
            bad_x, bad_y = bx.clone(), by.clone()
            victim = int(torch.randint(0, 4, (), generator=generator))
            bad_x[victim] += 0.2 * noise_x
            bad_y[victim] += 0.3 * noise_y
            optimizer.zero_grad()
            nn.functional.mse_loss(poisoned(bad_x), bad_y).backward()
            if algorithm == "norm":
                nn.utils.clip_grad_norm_(poisoned.parameters(), 0.2)
            else:
                nn.utils.clip_grad_value_(poisoned.parameters(), 0.2)
            optimizer.step()
        for name, parameter in poisoned.named_parameters():
            assert certified.bounds[f"net.{name}"].contains(parameter.detach(), ROUNDING)


def boxes(generator, width):
    shapes = {"w": (3, 2), "b": (2,)}
    result = {}
    for name, shape in shapes.items():
        center, radius = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        result[name] = Interval(center - width * radius.abs(), center + width * radius.abs())
    return result


@pytest.mark.parametrize("limit", [0.1, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("width", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("kind", [MeanNormClipping, MeanValueClipping])
def test_bounds_contain_what_torch_makes_of_every_gradient(kind, width, limit):
    generator = torch.Generator().manual_seed(0)
    clipping = kind(limit)
    for _ in range(5):
        gradients = boxes(generator, width)
        bounds = clipping.bounds(gradients)
        reached = dict.fromkeys(bounds, 0.0)
        for run in range(100):
            twin = {}
            for name, box in gradients.items():
                share = torch.rand(box.shape, generator=generator, dtype=torch.float64)
                twin[name] = torch.zeros_like(share)
                twin[name].grad = box.lower + (share.round() if run % 2 else share) * box.width
            clipping.clip(list(twin.values()))
            for name, value in twin.items():
                assert bounds[name].contains(value.grad, 1e-12)
                reached[name] = max(reached[name], float((value.grad - bounds[name].center).abs().max()))
        assert all(float(bounds[name].radius.max()) <= 2 * reach + 1e-9 for name, reach in reached.items())


def test_norm_bounds_are_attained():
    """The upper end of an entry: itself at its end, the others at their smallest, or largest, magnitude."""
    box = Interval(torch.tensor([-1.0, 2.0], dtype=torch.float64), torch.tensor([3.0, 5.0], dtype=torch.float64))
    bounds = MeanNormClipping(1.0).bounds({"w": box})["w"]
    for entry, others, expected in ((3.0, 2.0, bounds.upper[0]), (-1.0, 2.0, bounds.lower[0])):
        twin = torch.zeros(2, dtype=torch.float64)
        twin.grad = torch.tensor([entry, others], dtype=torch.float64)
        nn.utils.clip_grad_norm_([twin], 1.0)
        assert float(twin.grad[0]) == pytest.approx(float(expected), rel=1e-12)


def test_limits_that_lightning_ignores_are_ignored(fit):
    assert mean_clipping(fit.trainer(gradient_clip_val=0)) is None
    assert mean_clipping(fit.trainer()) is None
    assert mean_clipping(fit.trainer(gradient_clip_val=2)) == MeanNormClipping(2.0)
