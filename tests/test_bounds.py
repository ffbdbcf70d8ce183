import math
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from agt_lightning import CertifiedModel
from agt_lightning import bounds as bounds_module
from agt_lightning.bounds import ParameterBounds
from agt_lightning.errors import BoundsMismatchError, UnsoundBoundError
from agt_lightning.interval import Interval


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))


@pytest.fixture
def wide(module):
    return ParameterBounds(
        {name: Interval(p.detach() - 0.5, p.detach() + 1.5) for name, p in module.named_parameters()}
    )


def test_it_is_a_mapping_of_parameter_names(module, wide):
    assert list(wide) == [name for name, _ in module.named_parameters()]
    assert len(wide) == 4
    assert wide.mean_width() == pytest.approx(2.0)


def test_an_unknown_name_says_which_there_are(wide):
    with pytest.raises(KeyError, match=r"Expected a parameter name, one of \['0.weight', .*but got '7.weight'"):
        wide["7.weight"]


def test_mean_width_weighs_every_entry_equally():
    sizes = {"a": Interval(torch.zeros(3), torch.ones(3)), "b": Interval.point(torch.zeros(1))}
    assert ParameterBounds(sizes).mean_width() == 0.75
    assert ParameterBounds({}).mean_width() == 0.0


def test_contains_tells_which_parameter_left(module, wide):
    assert wide.contains(module)
    with torch.no_grad():
        module[2].bias += 2.0
    assert not wide.contains(module)
    assert wide.violations(module) == ["2.bias"]


def test_nan_parameters_are_never_contained(module, wide):
    with torch.no_grad():
        module[0].weight[0, 0] = math.nan
    assert wide.violations(module) == ["0.weight"]


def test_a_point_contains_the_module_it_was_made_of_only(module):
    point = ParameterBounds.point(module)
    assert point.contains(module)
    with torch.no_grad():
        module[0].bias[0] += 1e-6
    assert not point.contains(module)


def test_bounds_in_double_contain_parameters_in_single(module):
    double = {name: Interval.point(p.detach().double()) for name, p in module.named_parameters()}
    assert ParameterBounds(double).contains(module)


def test_names_must_match_both_ways(module, wide):
    extra = nn.Sequential(*module, nn.Linear(1, 1))
    with pytest.raises(BoundsMismatchError, match=r"same parameter names, but `3.weight` is missing in the bounds"):
        wide.contains(extra)
    with pytest.raises(BoundsMismatchError, match=r"same parameter names, but `2.weight` is missing in the module"):
        wide.contains(module[:2])


def test_shapes_must_match(wide):
    other = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(BoundsMismatchError, match=r"Expected `2.weight` of shape \(1, 2\), .* but got \(2, 2\)"):
        wide.violations(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_saved_is_what_is_loaded(wide, dtype, tmp_path):
    path = tmp_path / "deep" / "bounds.safetensors"
    saved = ParameterBounds({name: interval.to(dtype=dtype) for name, interval in wide.items()})
    saved.save(path)
    loaded = ParameterBounds.load(path)
    assert set(loaded) == set(saved)
    for name in saved:
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name].lower, saved[name].lower)
        assert torch.equal(loaded[name].upper, saved[name].upper)


def test_points_come_back_as_points(module, tmp_path):
    ParameterBounds.point(module).save(tmp_path / "b.safetensors")
    assert all(interval.is_point for interval in ParameterBounds.load(tmp_path / "b.safetensors").values())


def test_views_are_saved_whole(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    ParameterBounds({"w": Interval(base.T, base.T + 1)}).save(tmp_path / "b.safetensors")
    assert torch.equal(ParameterBounds.load(tmp_path / "b.safetensors")["w"].lower, base.T)


def test_parameter_names_with_dots_and_bounds_words_survive(tmp_path):
    names = {"a.lower": Interval(torch.zeros(1), torch.ones(1)), "a.upper": Interval.point(torch.zeros(2))}
    ParameterBounds(names).save(tmp_path / "b.safetensors")
    loaded = ParameterBounds.load(tmp_path / "b.safetensors")
    assert {name: loaded[name].shape for name in loaded} == {"a.lower": (1,), "a.upper": (2,)}


def test_saving_replaces_and_leaves_nothing_else(module, wide, tmp_path):
    path = tmp_path / "b.safetensors"
    wide.save(path)
    ParameterBounds.point(module).save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["b.safetensors"]
    assert ParameterBounds.load(path).mean_width() == 0.0


def test_an_interrupted_save_keeps_the_old_file(module, wide, tmp_path, monkeypatch):
    path = tmp_path / "b.safetensors"
    wide.save(path)

    def fail(tensors, name, metadata):
        save_file(tensors, name, metadata=metadata)
        raise OSError("disk full")

    monkeypatch.setattr(bounds_module, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        ParameterBounds.point(module).save(path)
    assert ParameterBounds.load(path).mean_width() == pytest.approx(2.0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.safetensors"))):
        ParameterBounds.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_truncated_file_is_refused(wide, tmp_path, share):
    path = tmp_path / "b.safetensors"
    wide.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BoundsMismatchError, match="Expected a complete safetensors file"):
        ParameterBounds.load(path)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "text.safetensors"
    path.write_text("these are not bounds, but a text of some length")
    with pytest.raises(BoundsMismatchError, match="Expected a complete safetensors file"):
        ParameterBounds.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=str)
def test_tensors_of_another_format_are_refused(metadata, tmp_path):
    save_file({"w.lower": torch.zeros(1), "w.upper": torch.ones(1)}, tmp_path / "b.safetensors", metadata=metadata)
    with pytest.raises(BoundsMismatchError, match=r"written by `ParameterBounds.save`, but .* has format (None|pt)"):
        ParameterBounds.load(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("lower", "upper"), [(1.0, 0.0), (math.nan, 0.0), (0.0, math.inf)], ids=["crossed", "NaN", "infinite"]
)
def test_broken_bounds_are_refused_on_loading(lower, upper, tmp_path):
    broken = Interval.trusted(torch.tensor([lower]), torch.tensor([upper]))
    ParameterBounds({"w": broken}).save(tmp_path / "b.safetensors")
    with pytest.raises(UnsoundBoundError, match="Expected finite bounds with lower <= upper"):
        ParameterBounds.load(tmp_path / "b.safetensors")


def test_the_runs_that_bounds_contain_are_kept_and_required(tmp_path):
    module = nn.Linear(2, 1)
    bounds = ParameterBounds(ParameterBounds.point(module), floats="real")
    bounds.save(tmp_path / "bounds.safetensors")
    loaded = ParameterBounds.load(tmp_path / "bounds.safetensors")
    assert loaded.floats == CertifiedModel(module, loaded).floats == "real"
    assert CertifiedModel(module, ParameterBounds.point(module)).floats == "run"
    with pytest.raises(BoundsMismatchError, match="real arithmetic"):
        CertifiedModel(module, loaded, floats="run")


def test_one_flipped_bit_of_a_file_is_found(wide, tmp_path):
    """Of a number that stays between the others: nothing but a digest tells."""
    path = tmp_path / "b.safetensors"
    ParameterBounds(wide, "0" * 32, "run").save(path)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BoundsMismatchError, match="it is damaged, was changed"):
        ParameterBounds.load(path)


@pytest.mark.parametrize("change", [{"weights": "1" * 32}, {"floats": "real"}, {"digest": "0" * 32}], ids=str)
def test_what_a_file_says_of_its_bounds_is_part_of_the_digest(change, wide, tmp_path):
    path = tmp_path / "b.safetensors"
    ParameterBounds(wide, "0" * 32, "run").save(path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata=metadata | change)
    with pytest.raises(BoundsMismatchError, match="it is damaged, was changed"):
        ParameterBounds.load(path)
    metadata.pop("digest")
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(BoundsMismatchError, match=r"from before version 0.2.* tensors to `ParameterBounds`"):
        ParameterBounds.load(path)
