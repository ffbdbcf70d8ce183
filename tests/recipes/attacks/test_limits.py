import pytest
import torch

from agt_lightning import BoundedAdversary, UnboundedAdversary
from recipes.attacks.limits import require_allowed

X, Y = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)


def moved(values, row, amount):
    changed = values.clone()
    changed[row] += amount
    return changed


def test_what_an_adversary_may_do_passes():
    require_allowed(BoundedAdversary(n=0), (X, Y), (X, Y))
    require_allowed(BoundedAdversary(n=1, epsilon=0.1, nu=0.2), (X, Y), (moved(X, 2, 0.1), moved(Y, 2, -0.2)))
    require_allowed(BoundedAdversary(n=2, nu=1, q=0), (X, Y), (X, moved(Y, [0, 3], 1.0)))
    require_allowed(UnboundedAdversary(n=1, kappa=0.1), (X, Y), (moved(X, 1, 9.0), moved(Y, 1, -70.0)))
    require_allowed(BoundedAdversary(n=1, epsilon=0.3, p=1), (X, Y), (moved(X, 0, 0.1), Y))


@pytest.mark.parametrize(
    ("adversary", "x", "y", "message"),
    [
        (BoundedAdversary(n=1, epsilon=1), moved(X, [0, 1], 0.1), Y, "at most 1 poisoned samples, .* changed 2"),
        (BoundedAdversary(n=1, epsilon=1, nu=1), moved(X, 0, 0.1), moved(Y, 1, 0.1), "at most 1 poisoned"),
        (UnboundedAdversary(n=1, kappa=1), X, moved(Y, [1, 2], 3.0), "at most 1 poisoned"),
        (BoundedAdversary(n=1, epsilon=0.1), moved(X, 0, 0.11), Y, "features moved by at most 0.1"),
        (BoundedAdversary(n=1, epsilon=0.1, p=2), moved(X, 0, 0.1), Y, "features moved by at most 0.1"),
        (BoundedAdversary(n=1, epsilon=0.1), moved(X, 0, float("nan")), Y, "features moved"),
        (BoundedAdversary(n=1, nu=0.1), moved(X, 0, 0.01), Y, "features moved by at most 0.0"),
        (BoundedAdversary(n=1, nu=0.1), X, moved(Y, 0, 0.2), "labels moved by at most 0.1"),
        (BoundedAdversary(n=1, epsilon=0.1), X, moved(Y, 0, 0.01), "labels moved by at most 0"),
        (BoundedAdversary(n=1, nu=1, q=0), X, moved(Y, 0, 0.5), "flipped labels to be 0 or 1"),
        (BoundedAdversary(n=1, nu=1, q=0), X[:3], Y[:3], "Expected a batch of shapes"),
    ],
)
def test_what_an_adversary_may_not_do_raises(adversary, x, y, message):
    with pytest.raises(ValueError, match=message):
        require_allowed(adversary, (X, Y), (x, y))
