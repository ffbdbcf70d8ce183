"""Dropout in training: bounds for the masks that Lightning drew."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from agt_lightning import BoundedAdversary, CertifiedTraining, UncertifiableError
from agt_lightning.capture import capture
from agt_lightning.capture.dropout import RandomState, draw_masks, masked
from agt_lightning.capture.export import record
from agt_lightning.capture.graph import Graph
from agt_lightning.capture.reader import GraphReader
from agt_lightning.capture.recurrent import unrolled
from agt_lightning.engine import AbstractGradientEngine

ROUNDING = 1e-9
"""One-sided; far above float64 rounding of a few steps."""


class Dropping(L.LightningModule):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        layers = [nn.Linear(3, 6), nn.ReLU(inplace=inplace), nn.Dropout(0.4), nn.Linear(6, 6), nn.Dropout(0.2)]
        self.net = nn.Sequential(*layers, nn.Linear(6, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("inplace", [False, True])
def test_training_with_dropout_is_unchanged_and_certified(fit, loader, inplace):
    def trained(*callbacks):
        torch.manual_seed(0)
        module = Dropping(inplace)
        fit(module, loader("number", 12, 5), *callbacks, max_epochs=2)
        return module

    plain = trained()
    certified = CertifiedTraining(BoundedAdversary(n=0))
    module = trained(certified)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))
    assert certified.bounds.mean_width() < 1e-4
    strong = CertifiedTraining(BoundedAdversary(n=1, epsilon=0.1))
    trained(strong)
    assert strong.bounds.mean_width() > 1e-3


def test_poisoned_runs_with_the_same_masks_stay_inside():
    torch.manual_seed(0)
    module = Dropping().double()
    loss = lambda m, batch: m.training_step(batch, 0)  # noqa: E731
    adversary = BoundedAdversary(n=2, epsilon=0.3)
    engine = AbstractGradientEngine(module, loss, adversary)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    runs = [{k: p.detach().clone() for k, p in module.named_parameters()} for _ in range(40)]
    for _ in range(4):
        batch = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
        graph = engine.objective(batch).program.graph
        state = RandomState.now()
        engine.step([batch], optimizer)
        masks = list(draw_masks(graph.masks, torch.device("cpu"), state).values())
        runs = [attacked(module, run, batch, masks, adversary) for run in runs]
        for name, box in engine.box.items():
            assert all(box.contains(run[name], ROUNDING) for run in runs)


def attacked(module, run, batch, masks, adversary):
    """One poisoned step: a random pair of samples moved to a random corner."""
    x, y = batch
    x = x.clone()
    rows = torch.randperm(len(x))[: adversary.n]
    x[rows] += adversary.epsilon * torch.sign(torch.randn(adversary.n, 3, dtype=torch.float64))

    def loss(parameters, x, y, first, second):
        h = functional_call(module.net[0], {k[6:]: v for k, v in parameters.items() if k.startswith("net.0.")}, x)
        h = functional_call(
            module.net[3], {k[6:]: v for k, v in parameters.items() if k.startswith("net.3.")}, h.relu() * first
        )
        out = functional_call(
            module.net[5], {k[6:]: v for k, v in parameters.items() if k.startswith("net.5.")}, h * second
        )
        return (out - y).square().sum()

    gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(run, x, y, *masks)
    return {k: run[k] - 0.1 * gradients[k].mean(0) for k in run}


@pytest.mark.parametrize("layer", [nn.Dropout(0.4), nn.Dropout1d(0.4), nn.Dropout2d(0.4)])
def test_masks_are_those_of_the_layer(layer):
    x = torch.rand(3, 4, 5, 5) + 1 if isinstance(layer, nn.Dropout2d) else torch.rand(3, 4, 5) + 1
    owner = nn.Sequential(layer)
    graph = capture(owner, lambda leaves: owner(leaves[0]), [x])
    state = RandomState.now()
    dropped = owner(x)
    (mask,) = draw_masks(graph.masks, torch.device("cpu"), state).values()
    assert torch.equal(dropped, x * mask)


@pytest.mark.parametrize("given", [{}, {"is_causal": True}, {"attn_mask": torch.ones(5, 5).tril(2).bool()}], ids=str)
def test_masks_of_attention_are_those_of_its_weights(given):
    q = torch.randn(3, 2, 5, 4)
    attend = lambda q: F.scaled_dot_product_attention(  # noqa: E731
        q, q, torch.eye(5).expand(3, 2, 5, 5), dropout_p=0.4, **given
    )
    graph = capture(nn.Identity(), lambda leaves: attend(leaves[0]), [q])
    state = RandomState.now()
    dropped = attend(q)
    (mask,) = draw_masks(graph.masks, torch.device("cpu"), state).values()
    whole = F.scaled_dot_product_attention(q, q, torch.eye(5).expand(3, 2, 5, 5), **given)
    assert torch.equal(dropped == 0, (whole * mask) == 0)
    torch.testing.assert_close(dropped, whole * mask)


@pytest.mark.parametrize("move", [lambda x: x.transpose(0, 1), lambda x: x.permute(1, 2, 0)])
def test_masks_are_drawn_along_memory(move):
    layer, x = nn.Dropout(0.4), torch.rand(4, 3, 5) + 1
    graph = capture(layer, lambda leaves: layer(move(leaves[0] * 1)), [x])
    state = RandomState.now()
    dropped = layer(move(x * 1))
    (mask,) = draw_masks(graph.masks, torch.device("cpu"), state).values()
    assert torch.equal(dropped, move(x) * mask)


def test_alpha_dropout_is_a_product_and_a_sum():
    layer, x = nn.AlphaDropout(0.4), torch.randn(4, 30)
    graph = capture(layer, lambda leaves: layer(leaves[0]), [x])
    state = RandomState.now()
    dropped = layer(x)
    (shift,) = draw_masks(graph.masks, torch.device("cpu"), state).values()
    (scale,) = (call.arguments["other"] for call in graph.calls if call.name.endswith(".2"))
    assert torch.equal(dropped, x * ((shift > 0) * scale) + shift)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layers_of_a_recurrent_network_are_dropped_in_between(kind, bidirectional):
    """The state of the second layer's first step, from the first layer's outputs with the mask."""
    layer, x = (
        kind(3, 4, num_layers=2, batch_first=True, dropout=0.4, bidirectional=bidirectional),
        torch.randn(5, 6, 3),
    )
    first = kind(3, 4, batch_first=True, bidirectional=bidirectional)
    second = kind(4 * (1 + bidirectional), 4, batch_first=True, bidirectional=bidirectional)
    own = dict(layer.named_parameters())
    first.load_state_dict({name: own[name] for name in first.state_dict()})
    second.load_state_dict({name: own[name.replace("l0", "l1")] for name in second.state_dict()})
    graph = record(lambda: (lambda own: (own, lambda leaves: own(leaves[0])[0]))(copy.deepcopy(layer)), [x])
    state = RandomState.now()
    output = layer(x)[0]
    (mask,) = draw_masks(graph.masks, torch.device("cpu"), state).values()
    torch.testing.assert_close(output, second(first(x)[0] * mask)[0])


class Attending(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.4)


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("layer", [Attending(), nn.LSTM(4, 4, num_layers=2, dropout=0.4, batch_first=True)])
def test_other_devices_draw_dropout_inside_of_layers_in_their_own_way(layer):
    program = torch.export.export(layer, (torch.randn(3, 5, 4),), strict=False)
    reader = GraphReader(program.graph_module)
    output = reader.read()[0]
    graph = Graph(tuple(reader.calls), {}, {}, {}, {}, reader.shapes, output, types=reader.types)
    assert not masked(unrolled(graph, on_cpu=False), on_cpu=False).masks
    assert masked(unrolled(graph)).masks


class DrawsInAHook(Dropping):
    def on_train_batch_start(self, batch, batch_idx):
        torch.rand(1)


class DrawsInTheStep(Dropping):
    def training_step(self, batch, batch_idx):
        self.log("noise", torch.rand(()))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [DrawsInAHook, DrawsInTheStep])
def test_other_random_numbers_do_not_disturb_the_masks(kind, fit, loader):
    module, certified = kind(), CertifiedTraining(BoundedAdversary(n=1, epsilon=0.1))
    fit(module, loader("number", 12, 5), certified)
    assert certified.bounds.contains(module)


def test_masks_that_cannot_be_drawn_again_stop_the_training(fit, loader):
    class Restless(Dropping):
        def training_step(self, batch, batch_idx):
            torch.rand(1)
            hidden = nn.functional.dropout(batch[0], 0.5)
            return nn.functional.mse_loss(self.net(hidden), batch[1])

    with pytest.raises(UncertifiableError, match="random numbers"):
        fit(Restless(), loader("number", 12, 5), CertifiedTraining(BoundedAdversary(n=1, epsilon=0.1)))
