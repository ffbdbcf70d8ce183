"""Linear heads on frozen networks of transformers and timm themselves, with random weights; skipped without them."""

import pytest
import torch
from torch import nn

from agt_lightning import BoundedAdversary
from tests.trust.frozen import Probe
from tests.trust.harness import Case, Held, certify, held, plain
from tests.trust.modules import FLIPS, variant

EPSILON = 0.2


def bert(probe) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers.BertModel(transformers.BertConfig(vocab_size=11, max_position_embeddings=6, **sizes))


def vision_transformer(probe) -> nn.Module:
    timm = pytest.importorskip("timm", reason="needs the package timm")
    torch.manual_seed(0)
    return timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=32)


def residual_network(probe) -> nn.Module:
    timm = pytest.importorskip("timm", reason="needs the package timm")
    torch.manual_seed(0)
    return timm.create_model("test_resnet", pretrained=False, num_classes=0)


class Head(Probe):
    """A linear head on the outputs of a backbone that `fit` leaves in its evaluation mode."""

    def __init__(self):
        super().__init__()
        self.backbone = self.encoder().double().eval().requires_grad_(False)
        self.head = nn.Linear(self.width, 3).double()

    def on_train_epoch_start(self):
        self.backbone.eval()

    def features(self, x):
        return self.backbone(x)


class TextHead(Head):
    width, encoder = 8, bert

    def features(self, x):
        return self.backbone(input_ids=x, attention_mask=(x != 0).long()).pooler_output


class ViTHead(Head):
    width, encoder = 64, vision_transformer


class ResNetHead(Head):
    width, encoder = 96, residual_network


def data(kind: type[Head]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    words = torch.randint(0, 11, (8, 5), generator=generator)
    words[:, 0] = 1
    x = words if kind is TextHead else torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.float64)
    return {"x": x, "y": torch.randint(0, 3, (8,), generator=generator)}


KINDS = pytest.mark.parametrize("kind", [TextHead, ViTHead, ResNetHead])


@pytest.mark.slow
@KINDS
def test_flips_of_labels_hold(kind):
    result = held(Case(kind, FLIPS, data(kind)))
    assert 0 < result.certified.bounds.mean_width() < 1


@pytest.mark.slow
@KINDS
def test_moved_outputs_of_the_backbone_hold(kind):
    """Outputs of one sample of each batch are moved to a corner by a wrapper that the certified training lacks."""
    result = certify(Case(kind, BoundedAdversary(n=1, epsilon=EPSILON, at="backbone"), data(kind)))
    assert isinstance(result, Held), result.error
    box = result.certified.bounds

    def moved(seed: int) -> dict[str, torch.Tensor]:
        shift = torch.zeros(kind.width, dtype=torch.float64)
        shift += EPSILON * torch.randint(0, 2, shift.shape, generator=torch.Generator().manual_seed(seed)).mul(2).sub(1)

        def features(self, x):
            out = kind.features(self, x)
            return torch.cat([out[:1] + (shift if seed else 0), out[1:]])

        return plain(Case(variant(kind, features=features), FLIPS, data(kind)))

    clean, *runs = [moved(seed) for seed in range(6)]
    shares = []
    for name, bounds in box.items():
        for run in (clean, *runs):
            assert bool(((bounds.lower <= run[name]) & (run[name] <= bounds.upper)).all()), name
            shares.append(float(((run[name] - clean[name]).abs() / (bounds.upper - bounds.lower + 1e-12)).max()))
    assert max(shares) > 0.03
