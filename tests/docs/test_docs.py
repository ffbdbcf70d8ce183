"""The documents say what the code does: their code runs, and the table of operations is the table of rules."""

import ast
import re
import sys
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import agt_lightning
from agt_lightning import BoundedAdversary, CertifiedTraining, rules
from docs.support_table import document
from tests.docs.pages import DOCS, ROOT, blocks, run_script, without_numbers


@pytest.fixture(autouse=True)
def _no_trace():
    """Start without the rule that the doctest of `register_rule` adds; end with rules and random numbers as before."""
    table = rules._rules
    before = dict(table)
    table.pop(torch.ops.aten.special_expm1.default, None)
    with torch.random.fork_rng():
        yield
    table.clear()
    table.update(before)


def test_table_of_operations_is_up_to_date():
    committed = (DOCS / "support.md").read_text(encoding="utf-8")
    assert document() == committed, "Expected the table of the rules; run `python docs/support_table.py`."


def test_example_of_a_rule_obeys_the_laws(tmp_path):
    assert len(blocks("docs/rules.md")) == 2
    run_script(tmp_path / "bump.py", "\n".join(blocks("docs/rules.md")))
    assert torch.ops.example.bump.default in rules.RULES


def test_example_with_a_wrong_turn_breaks_the_laws(tmp_path):
    code = "\n".join(blocks("docs/rules.md")).replace("[(0.0, 1.0)]", "[(0.0, 0.5)]")
    with pytest.raises(AssertionError, match="leaves its bounds"):
        run_script(tmp_path / "bump.py", code)


@pytest.mark.slow
def test_a_diagnosis_prints_what_the_document_shows(tmp_path, capsys):
    """Numbers apart: other processors round otherwise."""
    run_script(tmp_path / "net.py", "\n".join(blocks("docs/diagnose.md")))
    shown = "".join(blocks("docs/diagnose.md", "text"))
    assert without_numbers(capsys.readouterr().out) == without_numbers(shown)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_training_for_several_adversaries_prints_what_the_document_shows(tmp_path, capsys, monkeypatch):
    """Numbers apart: other processors round otherwise."""
    monkeypatch.chdir(tmp_path)
    run_script(tmp_path / "strengths.py", "\n".join(blocks("docs/several_adversaries.md")))
    shown = "".join(blocks("docs/several_adversaries.md", "text"))
    assert without_numbers(capsys.readouterr().out) == without_numbers(shown)
    assert (tmp_path / "outputs" / "strengths" / "bounds-n_20.safetensors").is_file()


def test_every_home_of_a_statement_exists():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    homes = re.findall(r"`([\w/]+)\.py::([\w.]+)`", text)
    assert homes
    for file, name in homes:
        attrgetter(name)(import_module(f"agt_lightning.{file.replace('/', '.')}"))


def test_every_test_of_the_list_of_faults_exists():
    text = (DOCS / "SOUNDNESS.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[^`:]+)::([^`]+)`", text))
    assert len(named) > 100
    for file, name in sorted(named):
        assert (ROOT / file).is_file(), f"Expected {file}, which docs/SOUNDNESS.md names."
        assert name in _functions(ROOT / file), f"Expected {file}::{name}, which docs/SOUNDNESS.md names."


def test_every_home_of_a_mending_exists():
    text = (DOCS / "SOUNDNESS.md").read_text(encoding="utf-8")
    for path, name in re.findall(r"`((?!tests)[\w/]+(?:\.py|/))(?:::([\w.]+))?`", text):
        assert (ROOT / "agt_lightning" / path).exists(), f"Expected {path}, which docs/SOUNDNESS.md names."
        if name:
            attrgetter(name)(import_module(f"agt_lightning.{path[:-3].replace('/', '.')}"))


def _functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


class _Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def files_entered_by_a_step():
    """Files of the package in the order of their calls, for the last batch of a training; a file can come again."""
    package, entered = f"{Path(agt_lightning.__file__).parent}/", []

    def record(frame, event, argument):
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if event == "call" and file.startswith(package):
            if function == "on_train_batch_start":
                entered.clear()
            entered.append(file.removeprefix(package))

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    certified = CertifiedTraining(BoundedAdversary(n=1, epsilon=0.01), domains=("box",))
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[certified], enable_model_summary=False, **quiet)
    batches = DataLoader(TensorDataset(torch.randn(8, 3), torch.randint(0, 2, (8,))), batch_size=4)
    sys.setprofile(record)
    try:
        trainer.fit(_Classifier(), batches)
    finally:
        sys.setprofile(None)
    return entered


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_batch_walks_through_the_files_in_their_order():
    rows = re.findall(
        r"^\| \d+ \| `([\w/]+\.py)`", (DOCS / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) == 15
    entered = iter(files_entered_by_a_step())
    assert [file for file in rows if file not in entered] == []
