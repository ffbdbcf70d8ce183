"""Frozen networks that no poison reaches, whatever they compute, and poison that enters at their outputs."""

import pytest
import torch
import torch.nn.functional as F

from tests.trust.frozen import BatchNormed, ImageEncoder, Probe, SequenceFirst, TextEncoder
from tests.trust.harness import Case, held, refused
from tests.trust.modules import FEATURES, FLIPS, variant


def images(size: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(size, 1, 4, 4, generator=generator, dtype=torch.float64)
    return {"x": x, "y": torch.randint(0, 3, (size,), generator=generator)}


def texts(size: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 11, (size, 5), generator=generator)
    ids[:, 0] = 1
    return {"x": ids, "y": torch.randint(0, 3, (size,), generator=generator)}


def probe(encoder: type, adversary=FLIPS, **members) -> Case:
    data = texts() if encoder is TextEncoder else images()
    return Case(variant(Probe, encoder=encoder, **members), adversary, data)


@pytest.mark.parametrize("encoder", [TextEncoder, ImageEncoder, SequenceFirst, BatchNormed])
def test_a_frozen_network_needs_no_rules_under_label_flips(encoder):
    result = held(probe(encoder))
    assert 0 < result.certified.bounds.mean_width() < 1


def test_a_frozen_network_without_no_grad_needs_no_rules():
    held(probe(ImageEncoder, without_gradients=False))


def test_moved_images_reach_a_frozen_network():
    refused(probe(ImageEncoder, FEATURES), "no bound rule|samples' axis")


class LabelSmoothed(Probe):
    """The labels enter the frozen network, so that flips reach it."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x + 0.1 * y.double()[:, None, None, None]), y)


def test_labels_that_enter_the_frozen_network_are_refused():
    refused(Case(LabelSmoothed, FLIPS, images()), "no bound rule|samples' axis|label")


class UnfreezesLater(Probe):
    """The table of positions is trained in the first epoch alone."""

    def on_train_epoch_start(self):
        self.backbone.positions.requires_grad_(self.current_epoch == 0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def test_a_trained_parameter_inside_the_frozen_network_is_refused():
    refused(Case(variant(UnfreezesLater, without_gradients=False), FLIPS, images()), "no bound rule|samples' axis|rule")
