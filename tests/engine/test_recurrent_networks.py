"""Poisoned trainings of recurrent networks stay inside the bounds, and settings that are not covered are refused."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.capture import recurrent
from agt_lightning.capture.graph import JOINT_TERMS
from agt_lightning.errors import UncertifiableError, UnsoundBoundError
from agt_lightning.interval import Interval
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.rules import RULES
from agt_lightning.rules.roundings import EXACT
from tests.engine.attacks import LOSSES, ROUNDING, data
from tests.faults import Fault

aten = torch.ops.aten

TIME, STATE = 3, 4


class Sequences(nn.Module):
    """A recurrent layer on three features, each of which is the value of one time step."""

    def __init__(self, layer, read="last step"):
        super().__init__()
        self.layer, self.read = layer, read
        size = layer.hidden_size * (2 if layer.bidirectional else 1)
        self.head = nn.Linear(layer.hidden_size if read == "state" else size, 3)

    def forward(self, x):
        output, state = self.layer(x[:, :, None])
        if self.read == "state":
            return self.head((state[0] if isinstance(state, tuple) else state)[-1])
        return self.head(output[:, -1] + output.mean(1))


LAYERS = {
    "LSTM": lambda: Sequences(nn.LSTM(1, STATE, batch_first=True)),
    "LSTM, state": lambda: Sequences(nn.LSTM(1, STATE, batch_first=True, num_layers=2), "state"),
    "LSTM, both directions": lambda: Sequences(nn.LSTM(1, 2, batch_first=True, bidirectional=True)),
    "LSTM without biases": lambda: Sequences(nn.LSTM(1, 2, batch_first=True, bias=False)),
    "GRU": lambda: Sequences(nn.GRU(1, STATE, batch_first=True), "state"),
    "GRU, layers, both directions": lambda: Sequences(nn.GRU(1, 2, 2, batch_first=True, bidirectional=True)),
    "GRU without biases": lambda: Sequences(nn.GRU(1, 2, batch_first=True, bias=False)),
    "RNN": lambda: Sequences(nn.RNN(1, STATE, batch_first=True)),
    "RNN of ReLU": lambda: Sequences(nn.RNN(1, STATE, batch_first=True, nonlinearity="relu"), "state"),
}


def made(name, dtype=torch.float64):
    torch.manual_seed(0)
    return LAYERS[name]().to(dtype)


def engine_of(module, adversary=None):
    adversary = adversary or BoundedAdversary(n=1, epsilon=0.05)
    return AbstractGradientEngine(module, lambda m, b: LOSSES["ce"](m(b[0]), b[1]), adversary)


def poisoned(module, batch, direction, adversary):
    """Move and flip the samples whose change pushes the parameters furthest along a direction."""
    x, y = batch[0].clone().requires_grad_(), batch[1]
    weights = dict(module.named_parameters())
    losses = F.cross_entropy(module(x), y, reduction="sum")
    slopes = torch.autograd.grad(losses, list(weights.values()), create_graph=True)
    along = sum((slope * direction[name]).sum() for name, slope in zip(weights, slopes, strict=True))
    (gain,) = torch.autograd.grad(along, x)
    chosen = gain.abs().flatten(1).sum(1).topk(adversary.n).indices
    moved, flipped = batch[0].clone(), y.clone()
    moved[chosen] += adversary.epsilon * gain[chosen].sign()
    flipped[chosen] = (y[chosen] + 1) % 3
    return moved, flipped


def attacked(module, batches, adversary, seed):
    """Train a copy on batches that are poisoned along a random direction."""
    run, generator = copy.deepcopy(module), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(run.parameters(), lr=0.05)
    direction = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in run.named_parameters()
    }
    for batch in batches:
        x, y = poisoned(run, batch, direction, adversary)
        optimizer.zero_grad()
        F.cross_entropy(run(x), y).backward()
        optimizer.step()
    return {name: value.detach() for name, value in run.named_parameters()}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", LAYERS)
def test_bounds_contain_every_poisoned_run(name):
    adversary = BoundedAdversary(n=2, epsilon=0.1, nu=1, q=0)
    module, batches = made(name), data("ce", torch.Generator().manual_seed(0))[:2]
    runs = [attacked(module, batches, adversary, seed) for seed in range(8)]
    engine, optimizer = engine_of(module, adversary), torch.optim.SGD(module.parameters(), lr=0.05)
    for batch in batches:
        engine.step([batch], optimizer)
    for run in runs:
        for parameter, value in run.items():
            assert engine.bounds[parameter].contains(value, ROUNDING), parameter
    moved = [run["layer.weight_ih_l0"] - module.get_parameter("layer.weight_ih_l0").detach() for run in runs]
    assert max(float(each.abs().max()) for each in moved) > 1e-4


@pytest.mark.parametrize("name", ["LSTM, state", "GRU", "RNN"])
def test_kernels_in_single_precision_stay_inside(name):
    """Kernels fuse gates and add in their own order; each step compares their gradient with the bounds."""
    module = made(name, torch.float32)
    engine, optimizer = engine_of(module, BoundedAdversary(n=0)), torch.optim.SGD(module.parameters(), lr=0.5)
    for x, y in data("ce", torch.Generator().manual_seed(2))[:2]:
        engine.step([(x.float(), y)], optimizer)


def bounds_of_values(layer, x, table=RULES):
    """Bounds of all values of a layer's last step, as single precision computes them, at fixed parameters."""
    captured = LossCapture(table).once(layer, lambda m, b: m(b[0])[0][:, -1].square().mean(), (x,))
    bounded = captured.rounded(torch.float64, "run")
    points = {name: Interval.point(value.detach().double()) for name, value in layer.named_parameters()}
    return bounded, bounded.forward(bounded.inputs(layer, (x,), points, torch.float64))


def test_a_new_state_may_be_mixed_by_a_difference():
    """A kernel that takes n + z (h - n) with n = z = 1 loses a small state h, which (1 - z) n + z h keeps.

    Activations are taken as exact here: their own errors would hide it.
    """
    exact = {op: replace(RULES[op], rounding=EXACT) for op in (aten.sigmoid.default, aten.tanh.default)}
    layer = nn.GRU(2, 1, batch_first=True, bias=False)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 1.0]]))
        layer.weight_hh_l0.zero_()
    small = 2.0**-26
    bounded, values = bounds_of_values(
        layer, torch.tensor([[[-1.0, small], [1.0, 100.0]]]).repeat(2, 1, 1), {**RULES, **exact}
    )
    state = [call.name for call in bounded.graph.calls if call.op is aten.add.Tensor][-1]
    assert values[state].contains(torch.full((2, 1), small).double())
    assert values[state].contains(torch.zeros(2, 1).double())
    assert float(values[state].magnitude.max()) < 1e-5


def test_both_products_of_a_gate_may_be_one_sum():
    """In single precision 1 + 2⁻²⁵ + 2⁻²⁵ + … is 1, if a kernel adds the state's products to the input's one by one."""
    layer = nn.RNN(1, 64, batch_first=True, nonlinearity="relu", bias=False)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1.0)
        layer.weight_hh_l0.fill_(2.0**-25)
    bounded, values = bounds_of_values(layer, torch.ones(2, 2, 1))
    (product,) = (call.name for call in bounded.graph.calls if JOINT_TERMS in call.arguments and len(call.shape) == 2)
    (gate,) = (call.name for call in bounded.graph.calls if product in call.inputs)
    assert values[gate].contains(torch.ones(2, 64).double())
    assert not values[gate].contains(torch.full((2, 64), 1 - 2.0**-16).double())


class WithState(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(1, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x[:, :, None], torch.ones(1, len(x), 2, dtype=x.dtype))[0][:, -1, :1].expand(-1, 3)


REFUSED = {
    "time first": lambda: Sequences(nn.LSTM(1, 2)),
    "dropout between layers": lambda: Sequences(nn.LSTM(1, 2, 2, batch_first=True, dropout=0.5)),
    "projections": lambda: WithProjection(),
    "a state of its own": WithState,
}


class WithProjection(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(1, 4, batch_first=True, proj_size=3)

    def forward(self, x):
        return self.layer(x[:, :, None])[0][:, -1]


@pytest.mark.parametrize("name", REFUSED)
def test_other_settings_are_refused_with_a_way_out(name):
    module = REFUSED[name]().double()
    x, y = data("ce", torch.Generator().manual_seed(1))[0]
    with pytest.raises(UncertifiableError, match="aten.(lstm|gru).*batch_first=True|keep the batch|Keep the batch"):
        engine_of(module).step([(x, y)], torch.optim.SGD(module.parameters(), lr=0.1))


@pytest.mark.slow
def test_a_state_is_written_once_for_all_results():
    module = made("LSTM, state")
    x, y = data("ce", torch.Generator().manual_seed(1))[0]
    captured = LossCapture(RULES).once(module, lambda m, b: F.cross_entropy(m(b[0]), b[1]), (x, y))
    joint = [call for call in captured.program.graph.calls if JOINT_TERMS in call.arguments]
    assert len(joint) == 2 * TIME  # the inputs' product of each layer, and the states' of all steps but the first


def require_gradients_of_autograd(name="LSTM"):
    module = made(name)
    x, y = data("ce", torch.Generator().manual_seed(1))[0]
    engine = engine_of(module, BoundedAdversary(n=0))
    try:
        for _ in range(2):
            engine.step([(x, y)], torch.optim.SGD(module.parameters(), lr=0.1))
    except UnsoundBoundError as error:
        raise AssertionError("another gradient") from error


def gates_exchanged(writer, inputs, before, weights):
    hidden, cell = (None, None) if before is None else before
    parts = writer.parts(recurrent._gates(writer, inputs, hidden, weights), 4)
    forget, entry, out = (writer.apply(aten.sigmoid.default, parts[k]) for k in (0, 1, 3))
    new = writer.combine(aten.mul.Tensor, entry, writer.apply(aten.tanh.default, parts[2]))
    if cell is not None:
        new = writer.combine(aten.add.Tensor, writer.combine(aten.mul.Tensor, forget, cell), new)
    return writer.combine(aten.mul.Tensor, out, writer.apply(aten.tanh.default, new)), new


def without_state_bias(writer, inputs, hidden, weights):
    return (
        inputs
        if hidden is None
        else writer.combine(aten.add.Tensor, inputs, recurrent._of_state(writer, hidden, weights))
    )


FAULTS = [
    Fault("first bias forgotten", require_gradients_of_autograd, without_state_bias, (recurrent, "_gates")),
    Fault(
        "gates exchanged",
        require_gradients_of_autograd,
        {**recurrent._CELLS, aten.lstm.input: gates_exchanged},
        (recurrent, "_CELLS"),
    ),
    Fault(
        "mixture exchanged",
        lambda: require_gradients_of_autograd("GRU"),
        lambda writer, update, new, before, mixture=recurrent._mixture: mixture(writer, update, before or new, new),
        (recurrent, "_mixture"),
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_wrong_cell_is_noticed(fault):
    fault.require_noticed("another gradient")
