"""Every training step of tests/lightning/test_training_step.py, attacked, and beside hooks that spare clean data."""

import pytest
import torch
from torch import nn

from agt_lightning import BoundedAdversary
from agt_lightning.capture import LabelKind
from tests.lightning.conftest import labels_of
from tests.lightning.test_training_step import FLIPS, LABELS, VARIANTS
from tests.trust.harness import Case, Held, outcome, peaks, refused, standard_attacks

CLIPS = r"hook|override|gradient|parameter|on_\w+"


def case(name: str) -> Case:
    """One epoch of two batches, in float32; features move by up to 0.05, labels as their kind allows."""
    kind = VARIANTS[name].kind
    known = kind if VARIANTS[name].label is not None else LabelKind.NUMBER
    generator = torch.Generator().manual_seed(7)
    data = {"x": torch.randn(8, 3, generator=generator)}
    data["y"] = labels_of(LABELS[known], 8, generator)
    labels = FLIPS[kind] if VARIANTS[name].label is not None else {}
    adversary = BoundedAdversary(n=2, epsilon=0.05, **labels)
    adapt = VARIANTS[name].adapt or (lambda x, y: (x, y))
    made = Case(
        VARIANTS[name].module,
        adversary,
        data,
        form=lambda rows, epoch, index: adapt(rows["x"], rows["y"]),
        options={"max_epochs": 1},
    )
    every = standard_attacks(made)
    # The last but one of all that last for the whole training: the last one flips no label of zero or one.
    return made.but(attacks=[every[0], every[3], every[-4]])


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_holds_under_attack(name):
    result = outcome(case(name))
    assert isinstance(result, Held), str(result.error)
    assert result.outside == 0, f"outside by {result.outside:.3g} (width {result.width:.3g})"
    assert result.reach > 0.02


def clips(limit):
    return {"on_after_backward": lambda self: nn.utils.clip_grad_norm_(self.parameters(), limit.norm) and None}


def skips(limit):
    def on_before_optimizer_step(self, optimizer):
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if nn.utils.get_total_norm(gradients) > limit.norm:
            for gradient in gradients:
                gradient.zero_()

    return {"on_before_optimizer_step": on_before_optimizer_step}


def constrains(limit):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        norm = nn.utils.get_total_norm([p.detach() for p in self.parameters()])
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_((limit.weight / norm).clamp(max=1))

    return {"on_train_batch_end": on_train_batch_end}


HABITS = [clips, skips, constrains]


@pytest.mark.parametrize(("position", "name"), list(enumerate(VARIANTS)))
def test_every_variant_beside_a_hook_that_acts_on_poisoned_data_alone(position, name):
    quiet = case(name)
    methods = HABITS[position % len(HABITS)](peaks(quiet))

    def module():
        made = quiet.module()
        made.__class__ = type(type(made).__name__, (type(made),), methods)
        return made

    refused(quiet.but(module=module), CLIPS)
