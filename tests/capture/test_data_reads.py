"""Nothing that Python reads of data may decide what a recording contains, even if the code hides it."""

import contextlib
import io
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from agt_lightning.capture.export import capture, record
from agt_lightning.errors import CaptureError

X, Y = torch.randn(4, 3), torch.randn(4, 1)
HISTORY: list[object] = []
calls = 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.last = torch.tensor(0.0)
        self.history = []

    def forward(self, x):
        return self.layer(x)


class ClippedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(-1, 1)


clip = ClippedGradient.apply


def recorded(step):
    def make():
        net = Net()
        return net, lambda leaves: step(net, *leaves)

    return record(make, [X, Y])


def loss_of(net, x, y):
    return F.mse_loss(net(x), y)


def entries(*steps):
    return {step.__name__: step for step in steps}


# --- what is refused ------------------------------------------------------------------------------------------------


def branch(net, x, y):
    return loss_of(net, x, y) * (0.1 if x.abs().max() > 2 else 1.0)


def caught_branch(net, x, y):
    factor = 1.0
    with contextlib.suppress(Exception):
        factor = 0.1 if x.abs().max() > 2 else 1.0
    return factor * loss_of(net, x, y)


def caught_size(net, x, y):
    factor = 1.0
    with contextlib.suppress(Exception):
        factor = 0.1 if (x > 2).nonzero().shape[0] > 0 else 1.0
    return factor * loss_of(net, x, y)


def caught_length(net, x, y):
    factor = 1.0
    with contextlib.suppress(Exception):
        factor = 0.1 if len(x[x > 2]) else 1.0
    return factor * loss_of(net, x, y)


def caught_equal(net, x, y):
    with contextlib.suppress(Exception):
        if torch.equal(x, y):
            return 2 * loss_of(net, x, y)
    return loss_of(net, x, y)


def caught_pickle(net, x, y):
    with contextlib.suppress(Exception):
        return len(pickle.dumps(x)) * loss_of(net, x, y)
    return loss_of(net, x, y)


def caught_array(net, x, y):
    with contextlib.suppress(TypeError):
        if np.log(x.numpy()).max() > 3:
            return 2 * loss_of(net, x, y)
    return loss_of(net, x, y)


def only_if_compiling(net, x, y):
    compiling = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    return loss_of(net, x, y) * (0.1 if not compiling and x.max() > 2 else 1.0)


def threshold(net, x, y):
    loss = loss_of(net, x, y)
    return 0 * loss if loss.item() > 3 else loss


def threshold_of_a_function(net, x, y):
    loss = loss_of(net, x, y)
    return 0 * loss if 5 < round(math.exp(loss.item()), 3) < 6 else loss


def threshold_of_a_text(net, x, y):
    loss = loss_of(net, x, y)
    return 0 * loss if 5 < float(f"{loss.item():.3f}") < 6 else loss


def threshold_of_an_array(net, x, y):
    loss = loss_of(net, x, y)
    return 0 * loss if (x.numpy() > 3).any() else loss


def part_of_a_text(net, x, y):
    return loss_of(net, x, y) * (2 if "nan" in f"largest: {x.log().max()}" else 1)


def largest(net, x, y):
    loss = loss_of(net, x, y)
    return loss / max(1.0, loss.item())


def factor(net, x, y):
    return loss_of(net, x / x.std().item(), y)


def index(net, x, y):
    return loss_of(net, x, y) * [0.1, 1.0, 2.0][(y > 0).sum().item() % 3]


def key(net, x, y):
    return loss_of(net, x, y) * {0: 0.1}.get(y.long()[0, 0].item(), 1.0)


def plain_number(net, x, y):
    loss = loss_of(net, x, y)
    return loss if float(loss) < 1e30 else 2 * loss


def plain_number_of_a_number(net, x, y):
    loss = loss_of(net, x, y)
    return loss if float(loss.item()) > -1e30 else 2 * loss


def plain_number_as_factor(net, x, y):
    return loss_of(net, x, y) * float(y.max())


def plain_integer(net, x, y):
    return loss_of(net, x, y) * (0.1 if int((y > 0).sum()) > 10**6 else 1.0)


def plain_integer_of_a_real(net, x, y):
    loss = loss_of(net, x, y)
    return 0 * loss if int(loss) > 10**6 else loss


def small_integer(net, x, y):
    return loss_of(net, x, y) * (0.1 if int((y > 0).sum()) == 0 else 1.0)


def loop(net, x, y):
    loss = loss_of(net, x, y)
    for _ in range(int((y > 0).sum())):
        loss = 0.9 * loss
    return loss


def other_plain_number_is_nan(net, x, y):
    return loss_of(net, x, y) * (0.1 if math.isnan(float((x.min() + 2).log())) else 1.0)


def truth(net, x, y):
    return loss_of(net, x, y) * (0.1 if (x > 2).any().item() else 1.0)


def remembered(net, x, y):
    loss = loss_of(net, x, y)
    return 0 * loss if net.last.item() > 3 else loss


def other_value_is_nan(net, x, y):
    return loss_of(net, x, y) * (0.1 if math.isnan((x.min() + 2).log().item()) else 1.0)


def other_value_is_nan_in_numpy(net, x, y):
    return loss_of(net, x, y) * (0.1 if np.isnan((x.min() + 2).log().item()) else 1.0)


def other_tensor_is_nan(net, x, y):
    return loss_of(net, x, y) * (0.1 if torch.isnan((x.min() + 2).log()).any() else 1.0)


BRANCHES = entries(
    *(branch, caught_branch, caught_size, caught_length, caught_equal, caught_pickle, caught_array, only_if_compiling),
    *(threshold, threshold_of_a_function, threshold_of_a_text, threshold_of_an_array, part_of_a_text, largest, factor),
    *(index, key, truth, remembered, plain_number, plain_number_of_a_number, plain_number_as_factor),
    *(plain_integer, plain_integer_of_a_real, small_integer, loop, other_plain_number_is_nan),
    *(other_value_is_nan, other_value_is_nan_in_numpy, other_tensor_is_nan),
)


@pytest.mark.parametrize("step", BRANCHES.values(), ids=BRANCHES)
def test_code_that_depends_on_what_python_reads_is_refused_with_its_line(step):
    with pytest.raises(CaptureError, match=r"test_data_reads.py:\d+") as refusal:
        recorded(step)
    assert "certified_objective" not in str(refusal.value)


def test_a_size_that_depends_on_data_is_refused():
    with pytest.raises(CaptureError, match="size or number that depends on data"):
        recorded(lambda net, x, y: loss_of(net, x[y[:, 0] > 0], y[y[:, 0] > 0]))


def own_function(net, x, y):
    return F.mse_loss(clip(net(x)), y)


def tensor_hook(net, x, y):
    out = net(x)
    out.register_hook(lambda gradient: gradient.clamp(-1, 1))
    return F.mse_loss(out, y)


def node_hook(net, x, y):
    out = net(x)
    out.grad_fn.register_prehook(lambda gradients: gradients)
    return F.mse_loss(out, y)


def module_hook(net, x, y):
    handle = net.layer.register_full_backward_hook(lambda module, inner, outer: None)
    loss = loss_of(net, x, y)
    handle.remove()
    return loss


def saved_tensors(net, x, y):
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor.clamp(-1, 1)):
        return loss_of(net, x, y)


GRADIENTS = {
    own_function: "`ClippedGradient` is a `torch.autograd.Function`",
    tensor_hook: "registers a hook on a tensor",
    node_hook: "reads `grad_fn`",
    module_hook: "full backward hook",
    saved_tensors: "Remove `saved_tensors_hooks`",
}


@pytest.mark.parametrize("step", GRADIENTS, ids=lambda step: step.__name__)
def test_code_that_changes_gradients_is_refused(step):
    with pytest.raises(CaptureError, match=GRADIENTS[step]):
        recorded(step)


# --- what works -----------------------------------------------------------------------------------------------------


def prints(net, x, y):
    loss = loss_of(net, x, y)
    print(  # noqa: T201
        f"{loss.item():.3f}",
        "%.3f" % loss.item(),  # noqa: UP031
        "%.3f" % loss,  # noqa: UP031
        f"{loss:.2f}",
        loss,
        f"inputs {x}",
        round(loss.item(), 3),
    )
    return loss


def keeps(net, x, y):
    loss = loss_of(net, x, y)
    net.history.append(loss.item())
    net.rmse, net.perplexity = math.sqrt(loss.item()), math.exp(loss.item())
    net.accuracy = ((net(x) > 0) == (y > 0)).sum().item() / len(y)
    net.array, net.values = loss.detach().cpu().numpy(), y.tolist()
    net.means = x.numpy().mean(axis=0)
    return loss


def keeps_plain_numbers(net, x, y):
    loss = loss_of(net, x, y)
    net.history.append(float(loss))
    if float(loss.detach()) > 1:
        net.spikes = 1
    net.count, net.percent, net.text = int((y > 0).sum()), int(100 * loss), f"{float(loss):.2f}"
    net.sample = float(loss.item())
    net.perplexity = math.exp(min(float(loss), 20.0))
    return loss


def selects_for_a_log(net, x, y):
    net.mean = net(x[y[:, 0] > 0]).mean()
    net.count = x[y[:, 0] > 0].shape[0]
    return loss_of(net, x, y)


def checkpoints(net, x, y):
    return F.mse_loss(checkpoint(net, x, use_reentrant=False), y)


def compiled(net, x, y):
    return F.mse_loss(torch.compile(net.layer, backend="eager")(x), y)


HARMLESS = entries(prints, keeps, keeps_plain_numbers, selects_for_a_log, checkpoints, compiled)


@pytest.mark.parametrize("step", HARMLESS.values(), ids=HARMLESS)
def test_code_that_reads_for_a_log_is_recorded_as_without_it(step):
    plain = recorded(loss_of)
    assert [call.op for call in recorded(step).calls] == [call.op for call in plain.calls]


@pytest.mark.slow
def test_the_loss_may_be_checked_for_nan():
    """A value that is checked, but not part of the loss, would be refused."""

    def step(net, x, y):
        loss = loss_of(net, x, y)
        if math.isnan(loss.item()) or np.isinf(loss.detach().item()) or not math.isfinite(loss):
            return None
        if math.isnan(float(loss)):
            return None
        if torch.isnan(loss) or not torch.isfinite(loss.detach()).all():
            raise ValueError("The loss is NaN.")
        return 2 * loss

    assert recorded(step).calls


def test_a_run_that_ends_at_some_numbers_needs_no_bound():
    def step(net, x, y):
        loss = loss_of(net, x, y)
        net.log_loss = math.log(loss.item())
        return loss

    assert recorded(step).calls


# --- traces ---------------------------------------------------------------------------------------------------------


def test_a_recording_leaves_no_trace_in_global_variables_and_random_numbers():
    net = Net()

    def step(leaves):
        global calls
        loss = loss_of(net, *leaves)
        calls += 1
        HISTORY.append(loss)
        HISTORY.append(loss.item())
        np.random.rand()
        torch.rand(())
        return loss

    states = np.random.get_state()[2], torch.get_rng_state()
    capture(net, step, [X, Y])
    assert HISTORY == []
    assert calls == 0
    assert np.random.get_state()[2] == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_a_refusal_prints_nothing(capfd):
    with pytest.raises(CaptureError):
        recorded(caught_size)
    assert capfd.readouterr() == ("", "")


def test_what_the_code_prints_is_printed_by_training_alone():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        recorded(prints)
    assert printed.getvalue() == ""


def test_errors_of_the_code_name_line_and_way_out():
    net = Net()
    with pytest.raises(CaptureError, match=r"test_data_reads.py:\d+ .*KeyError: 'mask'(.|\n)*certified_objective"):
        capture(net, lambda leaves: {}["mask"], [X])
