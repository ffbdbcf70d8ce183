import pytest
import torch

from recipes.data import tensors
from recipes.data.tensors import load_tensors, save_tensors

VALUES = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(1, dtype=torch.int64)}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "file.safetensors"
    save_tensors(VALUES, path)
    read = load_tensors(path)
    assert set(read) == set(VALUES)
    assert all(torch.equal(read[name], value) for name, value in VALUES.items())
    assert [entry.name for entry in path.parent.iterdir()] == ["file.safetensors"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(values, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(tensors, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(VALUES, tmp_path / "file.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "file.safetensors"
    save_tensors(VALUES, path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=rf"in {path}, but got .*Delete it"):
        load_tensors(path)
