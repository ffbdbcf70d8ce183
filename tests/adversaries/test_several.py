"""Several adversaries of one training: which fit together, and their names."""

import pytest
import torch

from agt_lightning import BoundedAdversary, UnboundedAdversary
from agt_lightning.adversaries.several import all_adversaries, describe, described, names_of, settings_that_differ


def test_names_are_the_settings_that_differ() -> None:
    adversaries = [BoundedAdversary(n=n, epsilon=0.1, nu=nu) for n, nu in ((1, 0.0), (5, 0.5))]
    assert names_of(adversaries) == ("n_1_nu_0.0", "n_5_nu_0.5")


def test_names_have_characters_of_file_names_alone() -> None:
    flips = [BoundedAdversary(n=1, nu=1, q=0, target_classes=classes) for classes in ((0, 1), None)]
    assert names_of(flips) == ("target_classes_0_1", "target_classes_None")


def test_a_single_adversary_needs_no_name() -> None:
    assert names_of([BoundedAdversary(n=1)]) == ("",)


def test_long_settings_are_named_by_position() -> None:
    radii = [BoundedAdversary(n=1, epsilon=torch.full((64,), size)) for size in (0.1, 0.2)]
    assert names_of(radii) == ("adversary_0", "adversary_1")


def test_settings_of_different_types_state_the_type() -> None:
    first, second = settings_that_differ([BoundedAdversary(n=1), UnboundedAdversary(n=1, kappa=0.1)])
    assert first["type"] == "BoundedAdversary"
    assert second == {"type": "UnboundedAdversary", "kappa": 0.1, "clip": "value", "edits": "replace"}


def test_a_single_adversary_is_described_as_before() -> None:
    first, second = BoundedAdversary(n=1), BoundedAdversary(n=2)
    assert described([first]) == describe(first)
    assert described([first, second]) == f"[{describe(first)}, {describe(second)}]"


def test_clipping_of_samples_must_agree() -> None:
    with pytest.raises(
        ValueError, match=r"clipped in different ways, None and .*kappa=0.1.* Give all of them the same"
    ):
        all_adversaries([BoundedAdversary(n=1), UnboundedAdversary(n=1, kappa=0.1)])
    with pytest.raises(ValueError, match="clipped in different ways"):
        all_adversaries([UnboundedAdversary(n=1, kappa=kappa) for kappa in (0.1, 0.2)])
    assert len(all_adversaries([UnboundedAdversary(n=n, kappa=0.1) for n in (1, 2)])) == 2


def test_repeated_adversaries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected distinct adversaries, but got BoundedAdversary\(n=1.* twice"):
        all_adversaries([BoundedAdversary(n=1), BoundedAdversary(n=1)])


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one adversary, but got an empty sequence"):
        all_adversaries([])


def test_what_is_no_adversary_is_refused() -> None:
    with pytest.raises(TypeError, match="but got int"):
        all_adversaries([BoundedAdversary(n=1), 5])  # type: ignore[list-item]


@pytest.mark.parametrize("setting", ["counts", "per"])
def test_what_n_counts_must_be_known_of_adversaries_of_ones_own(setting: str) -> None:
    class Own(BoundedAdversary):
        pass

    adversary = Own(n=1, epsilon=0.1)
    object.__setattr__(adversary, setting, "pixels")
    with pytest.raises(ValueError, match=f"`{setting}` to be"):
        all_adversaries(adversary)
