"""Steps of least squares against real trainings on edited data, by `torch.optim.SGD`."""

import pytest
import torch

from agt_lightning.domains.edits import LeastSquaresSteps, certified_edits, certified_replacements
from agt_lightning.domains.edits import least_squares as least_squares_file

F64 = torch.float64
CLASSES, SAMPLES, RATE = 3, 240, 1.2
steps = pytest.mark.parametrize("steps", [1, 2, 3, 5])


def clusters(seed=0, dimension=4):
    """Overlapping clusters of unit norm; and points between them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(SAMPLES) % CLASSES
    centers = torch.eye(dimension, dtype=F64)[:CLASSES]
    features = centers[labels] + 0.3 * torch.randn(SAMPLES, dimension, generator=generator, dtype=F64)
    queries = centers.repeat(4, 1) + 0.4 * torch.randn(4 * CLASSES, dimension, generator=generator, dtype=F64)
    return tuple(rows / rows.norm(dim=1, keepdim=True) for rows in (features, queries)) + (labels,)


def fitted(features, labels, steps):
    """The head that torch trains; the loss is divided by the number of samples of the original data."""
    head = torch.nn.Linear(features.shape[1], CLASSES, bias=False, dtype=F64)
    torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE)
    targets = torch.nn.functional.one_hot(labels, CLASSES).to(F64)
    for _ in range(steps):
        optimizer.zero_grad()
        (torch.nn.functional.mse_loss(head(features), targets, reduction="sum") / (2 * SAMPLES)).backward()
        optimizer.step()
    return head.weight.detach()


def helpfulness(model, query, label, rival):
    """How much each sample adds to the margin, to first order, by its real absence."""
    carried = model.carried_back(query[None])[:, 0]
    signs = (model.labels == label).to(F64) - (model.labels == rival).to(F64)
    heads = model.heads[:-1, label] - model.heads[:-1, rival]
    return ((model.features @ carried.T) * (signs[:, None] - model.features @ heads.T)).sum(dim=1)


def attacked(model, query, rival, n, kind):
    """Features and labels after n edits that are meant to turn the prediction into ``rival``."""
    label = int(model.outputs(query[None]).argmax())
    gone = helpfulness(model, query, label, rival).argsort(descending=True)[:n] if kind == "replaced" else []
    kept = torch.ones(SAMPLES, dtype=torch.bool)
    kept[gone] = False
    copies = query.expand(n, -1), torch.full((n,), rival)
    return torch.cat([model.features[kept], copies[0]]), torch.cat([model.labels[kept], copies[1]])


def successes(steps, kind, factor):
    """How many predictions change by ``factor`` times the certified n, of those that withstand some."""
    features, queries, labels = clusters()
    model = LeastSquaresSteps(features, labels, CLASSES, RATE, steps)
    certify = certified_replacements if kind == "replaced" else certified_edits
    changed, tried = 0, 0
    for query, n in zip(queries, certify(model, queries).tolist(), strict=True):
        if n < 1:
            continue
        tried += 1
        label = int(model.outputs(query[None]).argmax())
        for rival in set(range(CLASSES)) - {label}:
            x, y = attacked(model, query, rival, n if factor == 1 else int(n * factor) + 1, kind)
            if int((fitted(x, y, model.steps) @ query).argmax()) != label:
                changed += 1
                break
    return changed, tried


@steps
@pytest.mark.parametrize("kind", ["inserted", "replaced"])
def test_copies_of_the_query_change_nothing_that_is_certified(steps, kind):
    changed, tried = successes(steps, kind, 1.0)
    assert changed == 0
    assert tried > 4


@pytest.mark.parametrize("kind", ["inserted", "replaced"])
@pytest.mark.parametrize(("steps", "factor"), [(1, 1.1), (2, 1.5), (3, 2.0), (5, 3.0)])
def test_few_more_copies_change_most_predictions(steps, factor, kind):
    changed, tried = successes(steps, kind, factor)
    assert changed > tried / 2


@steps
def test_no_margin_falls_by_more_than_is_stated(steps):
    """Random insertions, deletions and replacements, of samples in all directions and of any label."""
    features, queries, labels = clusters(3)
    model = LeastSquaresSteps(features, labels, CLASSES, RATE, steps)
    found, before = model.at(queries), queries @ model.heads[-1].T
    generator = torch.Generator().manual_seed(steps)
    for n in (1, 5, 40):
        drawn = torch.randn(2, n, 4, generator=generator, dtype=F64)
        for x in (
            drawn[0] / drawn[0].norm(dim=1, keepdim=True),
            queries[:1].expand(n, -1),
            -queries[1:2].expand(n, -1),
        ):
            y = torch.randint(0, CLASSES, (n,), generator=generator)
            gone = torch.randperm(SAMPLES, generator=generator)
            for removed, replaced in ((n, True), (0, False), (n // 2, False)):
                coming = n if replaced or removed == 0 else n - removed
                kept = gone[removed:]
                weight = fitted(torch.cat([features[kept], x[:coming]]), torch.cat([labels[kept], y[:coming]]), steps)
                check_margins(model, found, before, queries @ weight.T, n, replaced)


def check_margins(model, found, before, after, n, replaced):
    for row, label in enumerate(found.predicted.tolist()):
        for rival in set(range(CLASSES)) - {label}:
            member = torch.tensor([row])
            each, samples, joint, most = (found.replacements if replaced else found.edits)(member, label, rival)
            assert n <= most
            bound = n * each + samples.topk(n).values.sum() + n * n * joint
            fall = (before[row, label] - before[row, rival]) - (after[row, label] - after[row, rival])
            assert float(fall) <= float(bound)


def test_joint_effects_that_are_left_out_are_noticed(monkeypatch):
    """Planted mistake: no term of second order; large edits and many steps exceed what is left."""
    costs = least_squares_file.LeastSquaresQueries._costs
    monkeypatch.setattr(
        least_squares_file.LeastSquaresQueries,
        "_costs",
        lambda self, *arguments: (
            *(part * 0.5 for part in costs(self, *arguments)[:2]),
            costs(self, *arguments)[2] * 0,
        ),
    )
    with pytest.raises(AssertionError):
        test_copies_of_the_query_change_nothing_that_is_certified(2, "replaced")


def test_heads_are_those_of_torch():
    features, queries, labels = clusters(1)
    for count in (0, 1, 4):
        model = LeastSquaresSteps(features, labels, CLASSES, RATE, count)
        assert torch.allclose(model.heads[-1], fitted(features, labels, count), atol=1e-12)
        assert model.outputs(queries).shape == (len(queries), CLASSES)


def test_the_rate_limits_the_edits():
    features, _, labels = clusters()
    curvature = float(torch.linalg.eigvalsh(features.T @ features / SAMPLES)[-1])
    model = LeastSquaresSteps(features, labels, CLASSES, 2 / (curvature + 7.5 / SAMPLES), 2)
    assert model.most == 7
    with pytest.raises(ValueError, match="`rate` at most"):
        LeastSquaresSteps(features, labels, CLASSES, 2.1 / curvature, 2)


def test_features_beyond_the_unit_ball_are_refused():
    features, _, labels = clusters()
    with pytest.raises(ValueError, match="norm at most 1"):
        LeastSquaresSteps(1.1 * features, labels, CLASSES, 0.1, 2)


@steps
def test_features_that_differ_between_runs_are_covered(steps):
    """Margins of a run whose features are all off in one direction stay above what is left of the margins."""
    features, queries, labels = clusters(2)
    error = 1e-4
    found = LeastSquaresSteps(features, labels, CLASSES, RATE, steps, error).at(queries)
    exact = LeastSquaresSteps(features, labels, CLASSES, RATE, steps).at(queries)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        moves = [torch.randn(1, 4, generator=generator, dtype=F64).expand_as(part) for part in (features, queries)]
        moved = [
            part + 0.99 * error * move / move.norm(dim=1, keepdim=True)
            for part, move in zip((features, queries), moves, strict=True)
        ]
        shrunk = [part / part.norm(dim=1, keepdim=True).clamp(min=1.0) for part in moved]
        outputs = shrunk[1] @ fitted(shrunk[0], labels, steps).T
        margins = outputs.gather(1, found.predicted[:, None]) - outputs
        assert bool((margins >= found.spare).all())
    assert bool((exact.spare > found.spare).all())


@steps
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_queries_that_are_short_beside_their_error_are_covered(steps, size):
    """A query moves by its error whatever its own norm is, here to where the margin against each rival falls most."""
    features, queries, labels = clusters(2)
    error, queries = 1e-4, size * queries
    model = LeastSquaresSteps(features, labels, CLASSES, RATE, steps, error)
    found, head = model.at(queries), model.heads[-1]
    for rival in range(CLASSES):
        along = head[found.predicted] - head[rival]
        moved = queries - error * along / along.norm(dim=1, keepdim=True).clamp(min=1e-300)
        outputs = moved @ head.T
        margins = outputs.gather(1, found.predicted[:, None]).squeeze(1) - outputs[:, rival]
        others = found.predicted != rival
        assert bool((margins >= found.spare[:, rival])[others].all())
        assert bool((margins > 0)[others & (certified_edits(model, queries) >= 0)].all())


def test_errors_that_leave_no_bound_on_heads_are_refused():
    features, _, labels = clusters()
    with pytest.raises(ValueError, match="`error` that leaves heads bounded in 3 steps"):
        LeastSquaresSteps(features, labels, CLASSES, 0.5, 3, error=0.1)
    model = LeastSquaresSteps(features, labels, CLASSES, 0.5, 3, error=0.05)
    assert int(certified_edits(model, features[:5]).max()) == -1


@pytest.mark.parametrize("count", [1, 3])
def test_damages_are_those_of_the_equations(count):
    """Eq. (14.10) to (14.13), written out step by step: data alone rarely come near the terms of second order."""
    features, queries, labels = clusters(4)
    model, query = LeastSquaresSteps(features, labels, CLASSES, RATE, count), queries[0]
    found = model.at(query[None])
    label = int(found.predicted)
    rival, size = (label + 1) % CLASSES, RATE / SAMPLES
    moments = features.T @ features / SAMPLES
    signs = (labels == label).to(F64) - (labels == rival).to(F64)
    head, carried, going = torch.zeros(4, dtype=F64), torch.zeros(4, dtype=F64), torch.zeros(SAMPLES, dtype=F64)
    products, joint = 0.0, 0.0
    for step in range(count):
        back = torch.linalg.matrix_power(torch.eye(4, dtype=F64) - RATE * moments, count - 1 - step) @ query
        going += size * (features @ back) * (signs - features @ head)
        products += float(back.norm() * head.norm() + back @ head) / 2
        joint += size**2 * float(query.norm()) * (count - 1 - step) * (1 + float(head.norm()))
        carried += back
        head = head - RATE * (moments @ head - features.T @ signs / SAMPLES)
    coming = size * (float(carried.norm()) + products)
    for kind, times in (("edits", 1), ("replacements", 2)):
        each, samples, together, _ = getattr(found, kind)(torch.tensor([0]), label, rival)
        beyond = going if kind == "replacements" else (going - coming).clamp(min=0)
        assert coming <= float(each) <= coming + 1e-9
        assert torch.allclose(samples[0], beyond, rtol=0, atol=1e-9)
        assert times * joint <= float(together) * (1 + 1e-12)
        assert float(together) <= times * joint * (1 + 1e-9)
