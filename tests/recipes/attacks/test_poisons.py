import pytest
import torch

from agt_lightning import BoundedAdversary
from recipes.attacks.poisons import Collision, Push, RandomFlips
from tests.recipes.attacks.problems import classification, regression

ROUNDING = 1e-12
ADVERSARIES = (
    BoundedAdversary(n=5, epsilon=0.3),
    BoundedAdversary(n=5, nu=0.2),
    BoundedAdversary(n=5, epsilon=0.1, nu=0.1),
)


def one_entry(task, name, index):
    direction = torch.zeros_like(dict(task.network.named_parameters())[name]).detach()
    direction.view(-1)[index] = 1.0
    return {name: direction}


def slope(task, batch, name, index):
    """``-∂ℓ/∂θ`` of each sample, one by one."""
    values = []
    for x, y in zip(*batch, strict=True):
        gradient = torch.autograd.grad(task.loss(task.network, (x[None], y[None])), task.network.get_parameter(name))[0]
        values.append(-gradient.reshape(-1)[index])
    return torch.stack(values)


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_gain_is_the_gradient_of_each_sample(adversary):
    task = regression(adversary)
    push = Push(adversary, task.losses, one_entry(task, "0.weight", 4))
    batch = task.batches[0]
    assert float((push._gain(task.network, list(batch)) - slope(task, batch, "0.weight", 4)).abs().max()) < ROUNDING


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_push_moves_the_step_further_than_random_poison_does(adversary):
    task = regression(adversary)
    push = Push(adversary, task.losses, one_entry(task, "2.weight", 1))
    generator = torch.Generator().manual_seed(0)

    def step(batch):
        return float(slope(task, batch, "2.weight", 1).sum())

    clean = task.batches[0]
    best = step(push(task.network, clean))
    for _ in range(50):
        x, y = (values.clone() for values in clean)
        rows = torch.randperm(len(x), generator=generator)[:5]
        x[rows] += adversary.epsilon * (2 * torch.rand(5, 3, generator=generator, dtype=torch.float64) - 1)
        y[rows] += adversary.nu * (2 * torch.rand(5, 1, generator=generator, dtype=torch.float64) - 1)
        assert step((x, y)) <= best


def test_push_leaves_the_clean_batch_alone():
    task = regression(ADVERSARIES[0])
    before = [values.clone() for values in task.batches[0]]
    Push(ADVERSARIES[0], task.losses, one_entry(task, "0.bias", 0))(task.network, task.batches[0])
    assert all(torch.equal(a, b) for a, b in zip(before, task.batches[0], strict=True))


def test_push_refuses_other_balls():
    with pytest.raises(ValueError, match="Expected an adversary with `p=inf` and `q=inf`"):
        Push(BoundedAdversary(n=1, epsilon=0.1, p=2), lambda outputs, target: outputs, {})


def test_collision_replaces_n_samples_by_the_target():
    task = regression(ADVERSARIES[0])
    target = torch.full((3,), 7.0, dtype=torch.float64)
    poison = Collision(4, target, lambda n: torch.full((n, 1), -2.0).double(), torch.Generator().manual_seed(0))
    x, y = poison(task.network, task.batches[0])
    replaced = (x == target).all(dim=1)
    assert int(replaced.sum()) == 4
    assert bool((y[replaced] == -2).all())
    assert torch.equal(x[~replaced], task.batches[0][0][~replaced])


@pytest.mark.parametrize("source", [None, 0, 1])
def test_flips_are_n_of_their_class_and_the_same_at_every_step(source):
    task = classification(BoundedAdversary(n=3, nu=1, q=0))
    x, y = task.batches[0]
    poison = RandomFlips(3, seed=1, source=source)
    _, flipped = poison(task.network, (x, y))
    changed = flipped != y
    assert int(changed.sum()) == 3
    assert source is None or bool((y[changed] == source).all())
    assert torch.equal(poison(task.network, (x, y))[1], flipped)
