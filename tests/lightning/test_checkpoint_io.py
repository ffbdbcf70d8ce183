"""Checkpoints that are damaged, or belong to another training, are refused with a message."""

import math
import os

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from agt_lightning import BoundedAdversary, BoundsMismatchError, CertifiedTraining, UnsoundBoundError
from agt_lightning.lightning.checkpoint_io import AtomicCheckpointIO
from agt_lightning.lightning.resume import signed

ADVERSARY = BoundedAdversary(n=1, epsilon=0.01, nu=0.05)


@pytest.fixture
def stopped(fit, loader, regressor, tmp_path):
    """The checkpoint of two epochs of four; box and ball."""
    torch.manual_seed(5)
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last")
    fit(regressor(), loader(), CertifiedTraining(ADVERSARY), saver, max_epochs=2, enable_checkpointing=True)
    return tmp_path / "last.ckpt"


@pytest.fixture
def resume(fit, loader, regressor):
    def run(path, **certification):
        certified = CertifiedTraining(ADVERSARY, **certification)
        fit(regressor(), loader(), certified, max_epochs=4, ckpt_path=path)
        return certified

    return run


def change(path, edit, *, sign=True):
    """Edit the bounds of a checkpoint; signed anew, they are read like bounds of another program."""
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint["agt_bounds"])
    if sign:
        checkpoint["agt_bounds"] = signed(checkpoint["agt_bounds"])
    torch.save(checkpoint, path)


def cross(state):
    box = state["domains"]["box"]
    box["lower"], box["upper"] = box["upper"], box["lower"]


def spoil(state):
    state["domains"]["box"]["upper"]["net.0.bias"][1] = float("nan")


def cut(state):
    for side in ("lower", "upper"):
        state["domains"]["box"][side]["net.0.weight"] = state["domains"]["box"][side]["net.0.weight"][:3]


def shift(state):
    for side in ("lower", "upper"):
        state["domains"]["box"][side]["net.0.weight"] += 1


FAULTS = {
    "no steps": (lambda state: state.pop("steps"), BoundsMismatchError, "incomplete or of another form"),
    "no domains": (lambda state: state.pop("domains"), BoundsMismatchError, "incomplete or of another form"),
    "no adversary": (lambda state: state.pop("adversary"), BoundsMismatchError, "incomplete or of another form"),
    "no upper bounds": (
        lambda state: state["domains"]["box"].pop("upper"),
        BoundsMismatchError,
        "incomplete or of another form",
    ),
    "one parameter missing": (
        lambda state: [state["domains"]["box"][side].pop("net.2.bias") for side in ("lower", "upper")],
        BoundsMismatchError,
        "bounds of `net.2.bias`",
    ),
    "another shape": (cut, BoundsMismatchError, r"`net.0.weight` of shape \(5, 3\)"),
    "another domain": (
        lambda state: state["domains"].pop("box"),
        BoundsMismatchError,
        "Resume with the `domains` of the interrupted training",
    ),
    "crossed bounds": (cross, UnsoundBoundError, "lower <= upper"),
    "NaN": (spoil, UnsoundBoundError, "finite"),
    "other parameters": (shift, BoundsMismatchError, "lie outside"),
    "another digest": (
        lambda state: state.update(parameters="0"),
        BoundsMismatchError,
        "those of the module differ",
    ),
}


@pytest.mark.parametrize(("edit", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_bounds_that_do_not_fit_are_refused(edit, error, message, stopped, resume):
    change(stopped, edit)
    with pytest.raises(error, match=message):
        resume(stopped, domains=("box", "ball"))


@pytest.mark.parametrize("edit", [edit for edit, *_ in FAULTS.values()], ids=FAULTS)
def test_no_edit_goes_unnoticed(edit, stopped, resume):
    change(stopped, edit, sign=False)
    with pytest.raises(BoundsMismatchError, match="the file is damaged, or was changed, .* Resume from another"):
        resume(stopped, domains=("box", "ball"))


def flip(number, bit=40):
    """One bit of a number, as a disk can flip it."""
    return (torch.tensor(number, dtype=torch.float64).view(torch.int64) ^ (1 << bit)).view(torch.float64).item()


QUIET = {
    "radius": lambda state: state["domains"]["ball"].update(radius=flip(state["domains"]["ball"]["radius"], 58)),
    "parameters of the ball": lambda state: state["domains"]["ball"].update(parameters=[]),
    "one bound": lambda state: state["domains"]["box"]["upper"]["net.0.weight"].view(torch.int64).bitwise_xor_(1),
    "settings": lambda state: state["phases"][0].update(all_samples_poisonable=False),
    "epochs": lambda state: state.update(epochs_before=3),
    "steps": lambda state: state.update(steps=state["steps"] + 1),
    "digest": lambda state: state.update(digest="0" * 32),
    "no digest": lambda state: state.pop("digest"),
    "no floats": lambda state: state.pop("floats"),
}


@pytest.mark.parametrize("edit", QUIET.values(), ids=QUIET)
def test_damage_that_no_other_check_sees_is_refused(edit, stopped, resume):
    change(stopped, edit, sign=False)
    with pytest.raises(BoundsMismatchError, match="the file is damaged, or was changed"):
        resume(stopped, domains=("box", "ball"))


@pytest.mark.parametrize("keys", [("digest", "floats"), ("floats", "digest", "buffers_at_start")], ids=len)
def test_bounds_that_lost_all_keys_of_their_form_are_refused(keys, stopped, resume):
    """They look as an earlier version wrote them, and so do those of which someone cut the digest."""

    def edit(state):
        for key in keys:
            state.pop(key)
        state["domains"]["box"]["upper"]["net.0.weight"].view(torch.int64).bitwise_xor_(1)

    change(stopped, edit, sign=False)
    with pytest.raises(BoundsMismatchError, match="the file is damaged, or was changed, or is from before"):
        resume(stopped, domains=("box", "ball"), floats="real")


@pytest.mark.parametrize(
    "edit",
    [
        lambda state: state.update(steps="x"),
        lambda state: state.update(epochs_before="x"),
        lambda state: state.update(phases=[{"steps": [1, 2, 3]}]),
        lambda state: state["domains"].update(box=[]),
        lambda state: state["domains"]["ball"].update(radius=None),
        lambda state: state["domains"]["ball"].update(radius=-1.0),
        lambda state: state["domains"]["ball"].update(radius=math.nan),
        lambda state: state["domains"]["ball"].update(parameters=[]),
        lambda state: state["domains"]["box"].update(optimizer=3),
    ],
)
def test_entries_of_another_form_are_refused(edit, stopped, resume):
    change(stopped, edit)
    with pytest.raises(BoundsMismatchError, match="incomplete or of another form"):
        resume(stopped, domains=("box", "ball"))


@pytest.mark.slow
def test_bounds_that_are_no_dictionary_are_refused(stopped, resume):
    checkpoint = torch.load(stopped, weights_only=True)
    torch.save({**checkpoint, "agt_bounds": 3}, stopped)
    with pytest.raises(BoundsMismatchError, match="incomplete or of another form"):
        resume(stopped)


@pytest.mark.parametrize("buffers", [None, {"mean": "0"}], ids=["lost", "changed"])
def test_buffers_of_the_start_belong_to_the_bounds(buffers, stopped, resume):
    checkpoint = torch.load(stopped, weights_only=True)
    checkpoint["agt_buffers_at_start"] = buffers
    torch.save(checkpoint, stopped)
    with pytest.raises(BoundsMismatchError, match="the file is damaged, or was changed"):
        resume(stopped)


@pytest.mark.slow
def test_a_ball_without_a_box_is_tied_to_its_parameters(fit, loader, regressor, resume, tmp_path):
    """Its center is the module's own: nothing but the digest tells other parameters."""
    torch.manual_seed(5)
    certified = CertifiedTraining(ADVERSARY, domains=("ball",))
    trainer = fit(regressor(), loader(), certified, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "ball.ckpt")
    checkpoint = torch.load(tmp_path / "ball.ckpt", weights_only=True)
    weight = checkpoint["state_dict"]["net.0.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    torch.save(checkpoint, tmp_path / "ball.ckpt")
    with pytest.raises(BoundsMismatchError, match="those of the module differ"):
        resume(tmp_path / "ball.ckpt", domains=("ball",))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, stopped, resume):
    content = stopped.read_bytes()
    stopped.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BoundsMismatchError, match="damaged or cut off"):
        resume(stopped)


@pytest.mark.slow
def test_bounds_in_single_precision_contain_those_of_the_checkpoint(stopped, fit, loader, regressor):
    double, single = (CertifiedTraining(ADVERSARY, dtype=dtype) for dtype in (torch.float64, torch.float32))
    for certified in (double, single):
        fit(regressor(), loader(), certified, max_epochs=2, ckpt_path=stopped)
    for name, interval in double.engine.box.items():
        assert bool((single.engine.box[name].lower.double() <= interval.lower).all())
        assert bool((single.engine.box[name].upper.double() >= interval.upper).all())


def test_saving_weights_alone_warns(fit, loader, regressor, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, save_weights_only=True)
    with pytest.warns(UserWarning, match="saves no bounds"):
        fit(regressor(), loader(), CertifiedTraining(ADVERSARY), saver, enable_checkpointing=True)


def test_a_save_that_fails_leaves_the_last_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"steps": 1}, path)

    def write_half(checkpoint, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        AtomicCheckpointIO().save_checkpoint({"steps": 2}, path)
    monkeypatch.undo()
    assert AtomicCheckpointIO().load_checkpoint(path) == {"steps": 1}
    AtomicCheckpointIO().save_checkpoint({"steps": 3}, path)
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.slow
def test_a_plugin_of_the_user_is_left_alone(fit, loader, regressor):
    class Own(TorchCheckpointIO):
        pass

    own = Own()
    assert fit(regressor(), loader(), CertifiedTraining(ADVERSARY), plugins=[own]).strategy.checkpoint_io is own
    usual = fit(regressor(), loader(), CertifiedTraining(ADVERSARY))
    assert type(usual.strategy.checkpoint_io) is AtomicCheckpointIO


def test_a_missing_file_is_named(resume, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        resume(tmp_path / "absent.ckpt")
