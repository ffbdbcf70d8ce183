"""What a certificate tells of machine, command and code, and what it must not tell."""

from pathlib import Path

import torch
from torch import nn

from agt_lightning.certificates.environment import hyperparameters, public, sources
from agt_lightning.digest import content_digest, file_digest
from tests.command import modules


def test_commands_are_without_secrets_and_folders():
    home, here = Path.home(), Path.cwd()
    shown = public(
        [
            f"{home}/bin/train.py",
            f"data.root={home}/data",
            f"{here}/conf",
            "--wandb-api-key",
            "s3cret",
            "HF_TOKEN=s3cret",
            "logger.password=s3cret",
            "https://me:s3cret@host/path",
            "--seed",
            "4",
        ]
    )
    assert "s3cret" not in " ".join(shown)
    assert str(here) not in " ".join(shown)
    assert shown[0] == "train.py"
    assert shown[-2:] == ["--seed", "4"]


def test_sources_are_of_the_users_code_alone():
    (found,) = sources(modules.Head())
    assert found == {"module": "tests.command.modules", "sha256": file_digest(modules.__file__)}
    assert sources(nn.Linear(1, 1)) == []
    namespace = {"nn": nn}
    exec("class Typed(nn.Linear): pass", namespace | {"__name__": "typed"}, namespace)
    assert sources(namespace["Typed"](1, 1)) == [{"module": "typed", "sha256": None}]


def test_hyperparameters_count_by_value():
    digests = {hyperparameters(modules.Classifier(hidden=hidden), None) for hidden in (4, 4, 5)}
    assert len(digests) == 2
    assert hyperparameters(torch.nn.Linear(1, 1), None) is None


def test_content_counts_and_its_container_does_not():
    x = torch.arange(6.0).reshape(2, 3)
    assert content_digest({"x": x.T.contiguous().T}) == content_digest({"x": x})
    assert content_digest([x, 1]) == content_digest((x.numpy(), 1))
    others = [x.double(), x.reshape(3, 2), x + 1, [x], {"x": x}, None, "x", 1, 1.0, True, x.to(torch.bfloat16)]
    assert len({content_digest(each) for each in [x, *others]}) == len(others) + 1
