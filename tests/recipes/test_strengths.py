from agt_lightning import BoundedAdversary, UnboundedAdversary
from recipes.strengths import describe


def test_description_names_what_was_chosen():
    assert describe(BoundedAdversary(n=200, epsilon=0.01)) == "n = 200, ε = 0.01"
    assert describe(BoundedAdversary(n=5, nu=1, q=0)) == "n = 5, ν = 1, q = 0"
    assert describe(UnboundedAdversary(n=3, kappa=0.1)).startswith("n = 3, κ = 0.1")
