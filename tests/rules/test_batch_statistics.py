"""Batch normalization in training mode: bounds of both passes contain every run with at most n poisoned samples."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agt_lightning.arithmetic.floating_point import Arithmetic
from agt_lightning.capture import capture, reached
from agt_lightning.interval import Interval
from agt_lightning.propagation import Program
from agt_lightning.propagation.running_statistics import running_of, statistics_update
from agt_lightning.rules import RULES, batch_statistics
from agt_lightning.rules.batch_statistics import BatchRows, Moments
from tests.faults import Fault, require_checks_pass

B = 5
ROUNDING = 1e-9
CASES = [
    (BatchRows(B, None, 1), (2,), 0.02),
    (BatchRows(B, torch.tensor([0, 3, 4]), 2), (1, 3), 0.3),
    (BatchRows(B, torch.tensor([1, 2]), 4), (2,), 3.0),
]
"""Rows of both passes, shape of a sample, and size of the boxes: narrow, moderate, and wider than the data."""


def positions(rows):
    return list(range(B)) if rows.poisonable is None else rows.poisonable.tolist()


def subsets(rows):
    """All sets of at most n poisonable samples."""
    places = positions(rows)
    return [set(s) for size in range(min(rows.n, len(places)) + 1) for s in itertools.combinations(places, size)]


def test_sums_over_the_batch_are_the_largest_over_all_sets():
    generator = torch.Generator().manual_seed(0)
    for rows, _, _ in CASES:
        places = positions(rows)
        values = torch.randint(-3, 4, (B + len(places), 2), generator=generator).double()  # small integers: with ties
        totals, total = rows.totals(values), rows.total(values)

        def largest(allowed, rows=rows, values=values, places=places):
            sums = [
                sum(values[B + places.index(i)] if i in s else values[i] for i in range(B))
                for s in subsets(rows)
                if allowed(s)
            ]
            return torch.stack(sums).amax(dim=0)

        assert torch.equal(total, largest(lambda s: True))
        for i in range(B):
            assert torch.equal(totals[i], largest(lambda s, i=i: i not in s)), i
        for k, i in enumerate(places):
            assert torch.equal(totals[B + k], largest(lambda s, i=i: i in s)), i


class Layer(nn.Module):
    """One layer with parameters of its own."""

    def __init__(self, channels, kind):
        super().__init__()
        self.norm = kind(channels, dtype=torch.float64)


def program_of(shape):
    owner = Layer(shape[0], nn.BatchNorm1d)
    graph = capture(owner, lambda leaves: owner.norm(leaves[0]), [torch.randn(B, *shape, dtype=torch.float64)])
    everything = reached(graph, set(graph.parameters) | set(graph.leaves))
    return Program.build(graph, RULES, samples=reached(graph, set(graph.leaves)), trainable=everything, mixes=True)


def boxes(rows, shape, radius, generator):
    """Return clean and poisoned boxes of a batch, as the rows of both passes."""

    def noise(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    center = noise(B, *shape)
    poisoned = center[positions(rows)] + 2 * radius * noise(len(positions(rows)), *shape)
    centers = torch.cat([center, poisoned])
    radii = radius * torch.rand(centers.shape, generator=generator, dtype=torch.float64)
    return Interval(centers - radii, centers + radii)


def drawn(box, rows, chosen, generator, corner):
    """Return a batch of a run that poisons the chosen samples, and the row of each."""
    places = positions(rows)
    at = [B + places.index(i) if i in chosen else i for i in range(B)]
    share = torch.rand(B, *box.shape[1:], generator=generator, dtype=torch.float64)
    share = share.round() if corner else share
    return box.lower[at] + share * (box.upper - box.lower)[at], at


def require_inside(bounds, value, what):
    excess = float(torch.maximum(bounds.lower - value, value - bounds.upper).max())
    assert excess <= ROUNDING, f"{what} outside by {excess:.3g}"


def check_containment():
    """Draw runs with every set of poisoned samples; compare with torch's own layer."""
    generator = torch.Generator().manual_seed(1)
    for rows, shape, radius in CASES:
        program = program_of(shape)
        (name,) = program.mixing
        rule, site = program.among(name, rows), program.sites[name]
        x, g = boxes(rows, shape, radius, generator), boxes(rows, shape, radius, generator)
        gain, bias = (Interval(c - 0.1, c + 0.1) for c in torch.randn(2, shape[0], generator=generator).double())
        inputs = [x, gain, bias]
        output, towards = rule.forward(site, inputs), rule.backward(site, g, inputs, x)[0]
        of_gain = rule.parameter_gradient(site, 1, g, inputs).block(0, shape[0])
        update = statistics_update(program, name, running_of(program)[name], inputs, rows)
        for chosen, corner in itertools.product(subsets(rows), [True, False, True]):
            batch, at = drawn(x, rows, chosen, generator, corner)
            upstream, _ = drawn(g, rows, chosen, generator, corner)
            weights = [gain.lower + 0.2 * torch.rand(shape[0], generator=generator).round().double() for _ in "ab"]
            weights[1] = weights[1] - gain.lower + bias.lower
            leaves = [leaf.requires_grad_() for leaf in (batch, *weights)]
            mean, variance = torch.zeros(shape[0]).double(), torch.zeros(shape[0]).double()
            result = F.batch_norm(batch, mean, variance, *weights, training=True, momentum=1.0, eps=1e-5)
            gradient, total, _ = torch.autograd.grad(result, leaves, upstream)
            require_inside(output[at], result.detach(), "output")
            require_inside(towards[at], gradient, "gradient")
            require_inside(of_gain[:, at].mapped(lambda bound: bound.sum(dim=1)), total, "gradient of the gain")
            require_inside(update.mean, mean, "mean")
            require_inside(update.variance, variance, "variance")


def check_points():
    """Where samples are points before and after poisoning, means and deviations are attained by some set."""
    generator = torch.Generator().manual_seed(5)
    for rows, shape, _ in CASES:
        places = positions(rows)
        values = torch.randn(B + len(places), shape[0], 2, generator=generator, dtype=torch.float64)
        values[0], values[2] = 1.0, -1.0
        values[B + len(places) - 1] = 1.0  # poison that keeps a distance to the mean on its other side
        values[1], values[3], values[4] = 1.0, -1.0, -1.0
        moments = Moments(Interval.point(values), rows)
        deviations, variance = moments.deviation(moments.x), moments.variance
        found = {row: [] for row in range(len(values))}
        for chosen in subsets(rows):
            at = [B + places.index(i) if i in chosen else i for i in range(B)]
            batch = values[at]
            mean = batch.mean(dim=(0, 2))[:, None]
            spread = (batch - mean).square().mean(dim=(0, 2))[:, None]
            require_inside(variance[at], spread.expand(B, *spread.shape), "variance")
            require_inside(moments.average, mean, "mean")
            for row, value in zip(at, batch - mean, strict=True):
                found[row].append(value)
        for row, each in found.items():
            most, least = torch.stack(each).amax(dim=0), torch.stack(each).amin(dim=0)
            attained = torch.allclose(deviations.upper[row], most) and torch.allclose(deviations.lower[row], least)
            assert attained, f"deviations of row {row} outside by something, or loose"


def test_poison_of_points_is_bounded_exactly():
    check_points()


def test_every_set_of_poisoned_samples_is_contained():
    check_containment()


def test_boxes_of_no_width_have_the_values_of_torch():
    program = program_of((2,))
    (name,) = program.mixing
    rule, site = program.rules[name], program.sites[name]
    x, g = torch.randn(2, B, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    layer = nn.BatchNorm1d(2, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    result = layer(leaf)
    result.backward(g)
    inputs = [Interval.point(each) for each in (x, layer.weight.detach(), layer.bias.detach())]
    bounds = rule.forward(site, inputs), rule.backward(site, Interval.point(g), inputs, inputs[0])[0]
    for bound, value in zip(bounds, (result.detach(), leaf.grad), strict=True):
        assert bound.is_point
        assert torch.allclose(bound.lower, value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_runs_in_single_precision_in_other_orders_are_contained(offset):
    """Kernels take their sums in blocks; a permuted batch has other ones. With an offset, differences cancel."""
    generator = torch.Generator().manual_seed(3)
    owner = Layer(3, nn.BatchNorm1d).float()
    x = (torch.randn(400, 3, generator=generator) + offset).requires_grad_()
    g = torch.randn(400, 3, generator=generator)
    graph = capture(owner, lambda leaves: owner.norm(leaves[0]), [x.detach()])
    everything = reached(graph, set(graph.parameters) | set(graph.leaves))
    program = Program.build(graph, RULES, samples=reached(graph, set(graph.leaves)), trainable=everything, mixes=True)
    (name,) = program.mixing
    rule = program.with_rounding(torch.float64, "run").rules[name]
    inputs = [Interval.point(each.detach().double()) for each in (x, owner.norm.weight, owner.norm.bias)]
    output = rule.forward(program.sites[name], inputs)
    towards = rule.backward(program.sites[name], Interval.point(g.double()), inputs, output)[0]
    for order in (torch.arange(400), torch.randperm(400, generator=generator), torch.arange(400).flip(0)):
        result = owner.norm(x[order])
        (gradient,) = torch.autograd.grad(result, x, g[order])
        assert output[order].contains(result.detach().double())
        assert towards.contains(gradient.double())
    assert float(output.width.max()) < 1


def test_rounded_bounds_contain_the_exact_ones():
    generator = torch.Generator().manual_seed(4)
    rows, shape, radius = CASES[1]
    x = boxes(rows, shape, radius, generator)
    grouped = x.rearranged(lambda bound: bound.reshape(len(bound), shape[0], -1))
    exact, rounded = (Moments(grouped, rows, each) for each in (None, Arithmetic(torch.float32, torch.float64)))
    inner, outer = exact.variance_of_all, rounded.variance_of_all
    assert bool((outer.lower <= inner.lower).all())
    assert bool((outer.upper >= inner.upper).all())


def one_poisoned_less(largest, gains, count):
    return torch.minimum(largest[max(0, count - 1)], largest[max(0, count - 1) + 1] - gains)


def nothing_poisoned(self, gains):
    return torch.zeros(self.n + 2, *gains.shape[1:], dtype=gains.dtype)


def always_own(largest, gains, count):
    return largest[count + 1] - gains


def without_own_entry(self, value):
    half = value.width / 2  # a sample's own entry on both sides
    return Interval.trusted(
        value.lower - self.means(value.lower) + half * 0, value.upper - self.means(value.lower) - half
    )


def least_around_constant(self, around_origin, mean):
    return around_origin.clamp(min=0)


def of_middle(self, upper):
    totals = self.rows.totals(upper.sum(dim=2, keepdim=True))
    return totals.mean(dim=0).expand_as(totals) / self.entries


def no_alignment(self, h, n):
    return Interval.point(torch.zeros_like(h.lower[:, :, :1]))


def of_largest_variance(self, epsilon):
    return Interval.point((self.variance.upper + epsilon).rsqrt())


FAULTS = [
    Fault("n - 1 others", check_points, one_poisoned_less, (batch_statistics, "_without_own")),
    Fault("no gains", check_containment, nothing_poisoned, (BatchRows, "_largest")),
    Fault("own gain always taken back", check_points, always_own, (batch_statistics, "_without_own")),
    Fault("own entry twice", check_containment, without_own_entry, (Moments, "deviation")),
    Fault("variance around a constant", check_points, least_around_constant, (Moments, "_least")),
    Fault("gradient without its second sum", check_containment, no_alignment, (Moments, "alignment")),
    Fault("gradient for the largest variance", check_containment, of_largest_variance, (Moments, "inverse")),
    Fault("mean of all rows", check_points, of_middle, (Moments, "means")),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_noticed(fault):
    fault.require_noticed("outside by")


def test_the_checks_pass_without_faults():
    require_checks_pass(FAULTS)
