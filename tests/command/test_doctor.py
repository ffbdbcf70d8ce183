"""`agt doctor`: reasons with file and line, with data and without."""

import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from tests.command import modules

PLACE = "tests.command.test_doctor:"


class Plateau(modules.Classifier):
    """What shows without data: an optimizer and a schedule, and a hook that may change gradients."""

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        pass

    def configure_optimizers(self):
        optimizer = torch.optim.Rprop(self.parameters())
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "loss"}}


class Example(modules.Classifier):
    """A network with inputs to try, which sorts what it makes of them."""

    example_input_array = torch.zeros(2, 3)

    def forward(self, x):
        return torch.sort(self.net(x), dim=1).values


class Broken(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.trainer.datamodule.rate)


def line_of(text: str, file: str = __file__) -> str:
    lines = Path(file).read_text().splitlines()
    number = next(number for number, line in enumerate(lines, start=1) if text in line)
    return f"{file.rpartition('/')[2]}:{number}"


def test_without_data_settings_and_hooks_are_looked_at(agt):
    code, printed = agt("doctor", f"{PLACE}Plateau")
    assert code == 1
    assert "cannot be certified, for 4 reasons:" in printed
    words = " ".join(printed.split())
    assert f"{line_of('torch.optim.Rprop(')} `Rprop` has no bounds" in words
    assert f"{line_of('lr_scheduler.ReduceLR')} `ReduceLROnPlateau` chooses the learning rate by a metric" in words
    assert f"{line_of('def configure_gradient_clipping')} `configure_gradient_clipping` is overridden" in words
    assert "Give `--data` for the rest" in printed


def test_without_data_an_example_of_inputs_is_tried(agt):
    code, printed = agt("doctor", f"{PLACE}Example")
    assert code == 1
    assert printed.splitlines()[1].startswith(line_of("torch.sort(self.net"))
    assert "`forward`" in printed


def test_what_does_not_show_without_data_is_not_claimed(agt):
    code, printed = agt("doctor", "tests.command.modules:Sorting")
    assert code == 2
    assert "`training_step` needs a batch" in printed
    code, printed = agt("doctor", f"{PLACE}Broken")
    assert code == 2
    assert "`configure_optimizers` cannot be run without data: AttributeError" in printed


@pytest.mark.parametrize("data", ["loader", "Data", "rows"])
@pytest.mark.thinned(1)
def test_with_data_the_step_is_tried(data, agt):
    code, printed = agt("doctor", "tests.command.modules:Sorting", "--data", f"tests.command.modules:{data}")
    assert code == 1
    place = line_of("torch.sort(x, dim=0)", modules.__file__)
    assert f"{place}  `aten.sort.default` in `x = torch.sort(x, dim=0).values` has no bound rule." in printed


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--nu", "1", "--q", "0"), (), ("--kappa", "0.1")], ids=" ".join)
def test_what_can_be_certified_is_told_with_its_cost(more, agt):
    words = ("doctor", "tests.command.modules:Classifier", "--data", "tests.command.modules:Data")
    code, printed = agt(*words, *more)
    assert code == 0
    assert "This training can be certified." in printed
    assert "a step on 8 samples" in printed


def test_names_that_lead_nowhere_are_told(agt):
    assert agt("doctor", "tests.command.modules")[0] == 2
    assert agt("doctor", "tests/command/modules.py:Sorting")[0] == 2
    assert "there is no file" in agt("doctor", "nowhere.py:Net")[1]
    assert "to make data" in agt("doctor", "tests.command.modules:Classifier", "--data", "operator:add")[1]
    assert "method" in agt("doctor", "tests.command.modules:Classifier", "--method", "magic")[1]


def test_help_needs_neither_torch_nor_lightning():
    """Importing these takes seconds."""
    script = (
        "import sys\n"
        "from agt_lightning.command.main import COMMANDS, main\n"
        "for name in (None, *COMMANDS):\n"
        "    try: main([*filter(None, [name]), '--help'])\n"
        "    except SystemExit as ended: assert ended.code == 0\n"
        "heavy = {'torch', 'lightning', 'numpy', 'jsonschema', 'jinja2', 'safetensors'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.count("usage: agt") == 6
    assert found.stdout.rstrip().endswith("loaded []")
