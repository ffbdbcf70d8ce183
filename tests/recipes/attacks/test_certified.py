from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from agt_lightning import BoundedAdversary, UnboundedAdversary
from agt_lightning.errors import UnsoundBoundError
from recipes.attacks.certified import along, reachable, require_between, require_inside
from recipes.attacks.poisons import Push, RandomFlips
from recipes.attacks.task import untouched
from tests.recipes.attacks.problems import classification, regression

ROUNDING = 1e-12
DOMAINS = (("box",), ("ball",), ("box", "ball"))
LABELS = BoundedAdversary(n=5, nu=0.2)


def push(task, sign=1.0):
    direction = {"2.bias": torch.tensor([sign], dtype=torch.float64)}
    return direction, Push(task.adversary, task.losses, direction)


@pytest.mark.parametrize("domains", DOMAINS)
@pytest.mark.parametrize("adversary", [LABELS, BoundedAdversary(n=5, epsilon=0.1)])
def test_attacks_stay_inside(domains, adversary):
    task = regression(adversary)
    reach = reachable(task, domains)
    for sign in (1.0, -1.0):
        direction, poison = push(task, sign)
        path = task.attacked(poison)
        require_inside(reach, path, "push")
        effect = along(direction, path[-1], reach[-1].center)
        assert 0 < effect <= reach[-1].farthest(direction)


def test_without_poison_the_run_is_the_certified_one():
    task = regression(LABELS)
    for certified, parameters in zip(reachable(task, ("ball",)), task.attacked(untouched), strict=True):
        for name, value in parameters.items():
            assert float((certified.center[name] - value).abs().max()) < ROUNDING


@pytest.mark.parametrize("domains", DOMAINS)
def test_an_attack_outside_raises(domains):
    task = regression(LABELS)
    stronger = replace(task, adversary=replace(LABELS, nu=0.8))
    path = stronger.attacked(push(stronger)[1])
    with pytest.raises(UnsoundBoundError, match="The attack 'push' is .* outside what is certified, at step 1"):
        require_inside(reachable(task, domains), path, "push")


@pytest.mark.parametrize("domains", DOMAINS)
def test_a_parameter_that_is_not_a_number_raises(domains):
    task = regression(LABELS)
    path = [dict(parameters) for parameters in task.attacked(untouched)]
    path[2]["2.bias"] = torch.full((1,), torch.nan, dtype=torch.float64)
    with pytest.raises(UnsoundBoundError, match="at step 2"):
        require_inside(reachable(task, domains), path, "broken")


def test_an_attack_that_cheats_raises():
    task = regression(LABELS)

    def cheat(module, batch):
        return batch[0], batch[1] + 0.2

    with pytest.raises(ValueError, match="at most 5 poisoned samples, but the attack changed 30"):
        task.attacked(cheat)


def test_clipped_training_stays_inside_and_is_clipped_one_by_one():
    adversary = UnboundedAdversary(n=4, kappa=0.05)
    task = regression(adversary)

    def poison(module, batch):
        x, y = (values.clone() for values in batch)
        x[:4], y[:4] = 3.0, 50.0
        return x, y

    path = task.attacked(poison)
    require_inside(reachable(task, ("box",)), path, "far away")
    x, y = poison(task.network, task.batches[0])
    clipped = []
    for row in range(len(x)):
        loss = task.loss(task.network, (x[row : row + 1], y[row : row + 1]))
        gradient = torch.autograd.grad(loss, task.network.get_parameter("0.weight"))[0]
        clipped.append(gradient.clamp(-0.05, 0.05))
    expected = path[0]["0.weight"] - task.rates[0] * torch.stack(clipped).mean(dim=0)
    assert float((path[1]["0.weight"] - expected).abs().max()) < ROUNDING


def test_norm_clipping_is_refused():
    with pytest.raises(ValueError, match="Expected an adversary with `clip='value'`"):
        regression(UnboundedAdversary(n=1, kappa=1.0, clip="norm"))


def test_what_is_observed_contains_what_attacks_achieve():
    task = classification(BoundedAdversary(n=3, nu=1, q=0))
    x = task.batches[0][0][:1]

    def bounds(model):
        reached = model.bound_forward(x)
        return {"lower": float(reached.lower), "upper": float(reached.upper)}

    certified = reachable(task, ("box",), bounds)
    path = task.attacked(RandomFlips(3, seed=0))
    for step, parameters in zip(certified, path, strict=True):
        value = float(functional_call(task.network, dict(parameters), (x,)).detach())
        require_between(step.observed, value, "flips")
    with pytest.raises(UnsoundBoundError, match="'flips' achieves 1000.0, outside what is certified"):
        require_between(certified[-1].observed, 1000.0, "flips")


def test_farthest_is_attained_at_a_corner_of_the_box():
    task = regression(LABELS)
    last = reachable(task, ("box",))[-1]
    generator = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(v.shape, generator=generator, dtype=v.dtype) for name, v in last.center.items()}
    corner = {n: torch.where(v > 0, last.box[n].upper, last.box[n].lower) for n, v in direction.items()}
    assert last.farthest(direction) == pytest.approx(along(direction, corner, last.center), rel=ROUNDING)
