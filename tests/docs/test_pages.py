"""README, tutorials and how-to pages do what they say, and print what they show."""

import json
import sys
from importlib.util import find_spec

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.docs.pages import DOCS, commands, follow, run_script, shown, without_numbers

TUTORIALS = ("docs/tutorial/halfmoons.md", "docs/tutorial/own_module.md")
HOW_TO = ("docs/howto/budget.md", "docs/howto/certificate.md", "docs/howto/frozen.md", "docs/howto/gate.md")
NOTEBOOKS = sorted(path.name for path in DOCS.glob("notebooks/*.ipynb"))

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    """What pages save is imported from there, and forgotten afterwards; so are the seeds that they set."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with torch.random.fork_rng():
        yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


class _Ordinary(L.LightningModule):
    """A module as the reader of README may have it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("page", [pytest.param("README.md"), pytest.param("docs/index.md", marks=pytest.mark.slow)])
def test_the_first_lines_certify_an_ordinary_module(page, tmp_path):
    x, y = torch.randn(40, 2), torch.arange(40) % 2
    data = DataLoader(TensorDataset(x, y), batch_size=20)
    names = follow(page, tmp_path, {"module": _Ordinary(), "datamodule": data, "x": x})
    assert names["certified"].engine.steps == 8
    assert names["certified"].bounds.mean_width() > 0


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_prints_what_it_shows(page, tmp_path, capsys):
    follow(page, tmp_path)
    assert without_numbers(capsys.readouterr().out) == without_numbers(shown(page))
    assert [line for line, status in commands(page) if status != 0] == []


def test_a_refusal_reads_as_its_page_shows(tmp_path, capsys):
    follow("docs/howto/refusal.md", tmp_path)
    assert without_numbers(capsys.readouterr().out) == without_numbers(shown("docs/howto/refusal.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", HOW_TO)
def test_a_how_to_page_prints_what_it_shows(page, tmp_path, capsys):
    follow(page, tmp_path)
    assert without_numbers(capsys.readouterr().out) == without_numbers(shown(page))
    assert [line for line, status in commands(page) if status != 0] == []


@pytest.mark.thinned(1)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name):
    cells = json.loads((DOCS / "notebooks" / name).read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("matplotlib"), reason="needs matplotlib")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((DOCS / "notebooks" / name).read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    run_script(tmp_path / "notebook.py", "\n".join(code))
