"""Heads and their losses are matched in captured graphs, and everything else is named with its way out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning.capture import capture
from agt_lightning.domains.head import HeadError, match_trained
from agt_lightning.domains.head_loss import match_head_loss
from agt_lightning.domains.losses import HuberError, LogisticLoss, SoftmaxLoss, SquaredError
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.rules import RULES

X, Y, NUMBERS = torch.ones(2, 3), torch.tensor([0, 1]), torch.zeros(2, 2)


class Network(nn.Module):
    """A frozen layer and two trained ones."""

    def __init__(self, activation=torch.relu):
        super().__init__()
        self.frozen = nn.Linear(3, 4).requires_grad_(False)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2, bias=False)
        self.activation = activation

    def forward(self, x):
        return self.last(self.activation(self.first(torch.tanh(self.frozen(x)))))


def matched(loss, target=NUMBERS, module=None):
    module = Network() if module is None else module
    bounded = LossCapture(RULES).once(module, lambda m, batch: loss(m(batch[0]), batch[1]), (X, target))
    return match_head_loss(bounded)


def test_trained_layers_are_matched_first_to_last():
    head = matched(F.mse_loss).head
    assert head.parameters == ("first.weight", "first.bias", "last.weight")
    assert [layer.bias for layer in head.layers] == ["first.bias", None]


def test_frozen_bias_belongs_to_its_layer_untrained():
    module = Network()
    module.first.bias.requires_grad_(False)
    head = matched(F.mse_loss, module=module).head
    assert head.parameters == ("first.weight", "last.weight")
    assert (head.layers[0].bias, head.layers[0].trains_bias) == ("first.bias", False)


@pytest.mark.parametrize(
    ("loss", "target", "kind"),
    [
        (F.mse_loss, NUMBERS, SquaredError),
        (F.huber_loss, NUMBERS, HuberError),
        (F.smooth_l1_loss, NUMBERS, HuberError),
        (F.binary_cross_entropy_with_logits, NUMBERS, LogisticLoss),
        (F.cross_entropy, Y, SoftmaxLoss),
    ],
)
def test_loss_is_matched_with_its_scale(loss, target, kind):
    pattern = matched(loss, target)
    assert type(pattern.loss) is kind
    assert pattern.loss.scale == (1.0 if kind is SoftmaxLoss else 0.5)  # a mean over two outputs
    assert pattern.target_is_label


@pytest.mark.parametrize("cast", [lambda y: y.float(), lambda y: y.float().reshape(2, 2).float()])
def test_targets_in_a_wider_type_are_labels(cast):
    assert matched(lambda f, y: F.mse_loss(f, cast(y)), NUMBERS.double()).target_is_label


def test_one_hot_targets_are_no_labels_themselves():
    pattern = matched(lambda f, y: F.mse_loss(f, F.one_hot(y, 2).to(f.dtype)), Y)
    assert (pattern.one_hot, pattern.target_is_label) == (True, False)


def trained_features():
    module = Network()
    module.frozen.requires_grad_(True)
    return module


def frozen_end():
    module = Network()
    module.last.requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("loss", "target", "module", "message"),
    [
        (lambda f, y: (f - y).abs().pow(3).mean(), NUMBERS, None, "makes the loss no known function of outputs"),
        (lambda f, y: -F.mse_loss(f, y), NUMBERS, None, "negative factor"),
        (lambda f, y: F.cross_entropy(f, y, weight=torch.ones(2)), Y, None, "sum of its class weights; leave out"),
        (lambda f, y: F.mse_loss(f[:, :1], y[:, :1]), NUMBERS, None, "where only linear layers and ReLU may be"),
        (F.mse_loss, NUMBERS, Network(torch.tanh), "stands between trained layers, where only ReLU may be"),
        (F.mse_loss, NUMBERS, trained_features(), "stands between trained layers, where only ReLU may be"),
        (lambda f, y: F.mse_loss(f.bfloat16().float(), y), NUMBERS, None, "where only linear layers and ReLU may be"),
        (F.mse_loss, NUMBERS, frozen_end(), "`last.weight` is frozen behind or beside trained parameters"),
    ],
)
def test_other_losses_and_heads_are_refused(loss, target, module, message):
    with pytest.raises(HeadError, match=message):
        matched(loss, target, module)


TRAINED = ("first.weight", "first.bias", "last.weight")


def match_forward(forward, module, trained=TRAINED):
    graph = capture(module, lambda leaves: forward(leaves[0]), [X])
    return match_trained(graph, graph.parameters, trained)


def test_head_is_found_again_in_forward():
    module = Network()
    found = match_forward(module, module)
    assert found is not None
    head, dependent = found
    assert head.parameters == TRAINED
    assert {layer.output for layer in head.layers} <= dependent
    assert head.input not in dependent


def test_head_is_found_before_what_follows_it():
    module = Network()
    found = match_forward(lambda x: module(x).softmax(dim=1), module)
    assert found is not None
    head, dependent = found
    assert head.parameters == TRAINED
    assert len(dependent) == 4  # two layers, the ReLU between them and the softmax


def test_a_graph_without_the_head_has_no_match():
    module = Network()
    assert match_forward(lambda x: module.last(torch.tanh(module.first(module.frozen(x)))), module) is None
    assert match_forward(module.frozen, module) is None
