import pytest
import torch

from agt_lightning.domains.edits import InnerProduct, KernelSums, RadiusVote, Shifted, certified_edits
from agt_lightning.errors import UnsoundBoundError
from agt_lightning.interval import Interval

F64 = torch.float64


def vectors(count, seed, dimension=7):
    drawn = torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def in_every_order(queries, features):
    """Products by sums in several orders."""
    for seed in range(20):
        order = torch.randperm(queries.shape[1], generator=torch.Generator().manual_seed(seed))
        total = torch.zeros(len(queries), len(features), dtype=F64)
        for column in order.tolist():
            total = total + queries[:, column, None] * features[:, column]
        yield total


def test_a_vote_at_the_threshold_is_in_doubt():
    queries, features = vectors(1, 0), vectors(50, 1)
    products = queries @ features.T
    for threshold in products[0, :10].tolist():
        votes = RadiusVote(threshold)(queries, features)
        assert bool(((votes.lower == 0) & (votes.upper == 1) & (products == threshold)).any())
        for again in in_every_order(queries, features):
            assert votes.contains((again > threshold).to(F64))


def test_votes_in_doubt_count_against_the_prediction():
    """Nine copies of a sample whose vote is in doubt are worth nothing to its class, and all they can to a rival."""
    query, sure, doubtful = vectors(1, 0), vectors(1, 0), vectors(1, 1)
    threshold = float(query @ doubtful.T)
    features = torch.cat([sure.expand(5, -1), doubtful.expand(9, -1)])
    labels = torch.tensor([0] * 5 + [1] * 9)
    model = KernelSums(RadiusVote(threshold), features, labels, classes=2)
    assert certified_edits(model, query).tolist() == [-1]
    model = KernelSums(RadiusVote(threshold), features, 0 * labels, classes=2)
    assert certified_edits(model, query).tolist() == [4]


def test_features_that_differ_between_runs_are_covered():
    queries, features, error = vectors(5, 0), vectors(200, 1), 1e-3
    votes, products = RadiusVote(0.1, error)(queries, features), InnerProduct(error=error)(queries, features)
    for seed in range(5):
        other = features + error * vectors(200, seed + 2)
        moved = (queries + error * vectors(5, seed + 9)) @ other.T
        assert products.contains(moved)
        assert votes.contains((moved > 0.1).to(F64))
    assert not votes.is_point
    assert bool((votes.upper > votes.lower).any())


@pytest.mark.parametrize("scale", [1e-160, 1.0, 1e100])
def test_products_in_any_order_are_within_their_bounds(scale):
    queries, features = vectors(3, 0) * scale, vectors(40, 1)
    bounds, reach = InnerProduct()(queries, features), InnerProduct().reach(queries)
    for again in in_every_order(queries, features):
        assert bounds.contains(again)
        assert bool((again.abs() <= reach.upper[:, None]).all())


@pytest.mark.parametrize("kernel", [InnerProduct(), RadiusVote(0.5)])
def test_products_that_overflow_are_refused(kernel):
    with pytest.raises(UnsoundBoundError, match="finite inner products"):
        kernel(vectors(3, 0) * 1e200, vectors(4, 1))


def test_the_reach_holds_for_copies_of_the_query():
    queries = vectors(100, 3)
    for again in in_every_order(queries, queries):
        assert bool((again.diagonal() <= InnerProduct().reach(queries).upper).all())


def test_features_whose_norm_rounds_above_the_radius_are_within_the_reach():
    """Products of zero are within rounding of the least value, also where a norm of one is computed as more."""
    query, labels = torch.eye(1, 30).double(), torch.arange(20) % 2
    for seed in range(40):
        features = vectors(20, seed, dimension=30).abs()
        features[:, :5] = 0
        features = features / features.norm(dim=1, keepdim=True)
        assert certified_edits(KernelSums(InnerProduct(nonnegative=True), features, labels, 2), query).tolist() == [-1]


def test_a_kernel_out_of_its_own_range_is_refused():
    class Wrong(RadiusVote):
        def __call__(self, queries, features):
            return Interval.point(2 * super().__call__(queries, features).upper)

    model = KernelSums(Wrong(0.0), vectors(5, 0).abs(), torch.tensor([0, 1, 0, 1, 1]), classes=2)
    with pytest.raises(UnsoundBoundError, match="1 out of it"):
        certified_edits(model, vectors(2, 1).abs())


def test_wrong_arguments_are_refused():
    features, labels = vectors(4, 0), torch.tensor([0, 1, 1, 0])
    with pytest.raises(ValueError, match="`threshold` to be finite"):
        RadiusVote(float("nan"))
    with pytest.raises(ValueError, match="`error` to be finite and at least 0"):
        RadiusVote(0.5, error=-1.0)
    with pytest.raises(ValueError, match="`radius` to be finite and positive"):
        InnerProduct(radius=0.0)
    with pytest.raises(ValueError, match="`shift` to be finite"):
        Shifted(RadiusVote(0.5), float("inf"))
    with pytest.raises(ValueError, match=r"labels in 0..1, but got \[0, 1, 2\]"):
        KernelSums(RadiusVote(0.5), features, torch.tensor([0, 1, 2, 0]), classes=2)
    with pytest.raises(ValueError, match="integer labels"):
        KernelSums(RadiusVote(0.5), features, labels.double(), classes=2)
    with pytest.raises(ValueError, match="a label for each sample"):
        KernelSums(RadiusVote(0.5), features, labels[:2], classes=2)
    with pytest.raises(ValueError, match="at least 2 classes"):
        KernelSums(RadiusVote(0.5), features, 0 * labels, classes=1)
    with pytest.raises(UnsoundBoundError, match="finite training features"):
        KernelSums(RadiusVote(0.5), features / 0, labels, classes=2)
    with pytest.raises(UnsoundBoundError, match="finite queries"):
        certified_edits(KernelSums(RadiusVote(0.5), features, labels, classes=2), features * torch.nan)
    with pytest.raises(ValueError, match="norm at most 1"):
        certified_edits(KernelSums(InnerProduct(), 2 * features, labels, classes=2), features)
    with pytest.raises(ValueError, match="no negative feature"):
        certified_edits(KernelSums(InnerProduct(nonnegative=True), features, labels, classes=2), features)
