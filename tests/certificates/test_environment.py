"""What a certificate says of the command that made it."""

from pathlib import Path

import pytest

from agt_lightning.certificates.environment import public


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("{home}/data", "~/data"),
        ("root={home}/data", "root=~/data"),
        ("{home}", "~"),
        ("data.root={here}", "data.root=."),
        ("/srv{home}", "/srv{home}"),
        ("{home}y/data", "{home}y/data"),
    ],
)
def test_folders_are_shortened_where_a_path_begins(given, shown, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.chdir(tmp_path)
    names = {"home": "/root", "here": str(Path.cwd())}
    assert public(["train.py", given.format(**names)])[1] == shown.format(**names)
