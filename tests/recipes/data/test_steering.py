from functools import partial
from itertools import combinations
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from agt_lightning import BoundedAdversary, CertifiedModel, CertifiedTraining, Interval, ParameterBounds
from recipes.data import Steering, pretrained
from recipes.data.mixing import is_new
from recipes.data.udacity import read_frame
from recipes.figures import steering_fans
from recipes.figures.steering_fans import draw_steering_fans
from recipes.models import SteeringHead
from recipes.models.pilotnet import convolutions
from recipes.models.schedules import InverseTimeDecay
from recipes.runs.run import Run
from tests.recipes.drives import write_evaluation

DRIVE = "udacity_ch2_001"


def steering(tmp_path, **settings):
    if not (tmp_path / DRIVE).is_dir():
        write_evaluation(tmp_path / DRIVE)
    chosen = {"epochs": 1, "cache": tmp_path / "cache"} | settings
    data = Steering(tmp_path, **chosen)
    data.setup()
    return data


def test_the_convolutions_are_those_of_pilotnet():
    shapes = [tuple(p.shape) for p in convolutions().parameters() if p.dim() == 4]
    assert shapes == [(24, 3, 5, 5), (36, 24, 5, 5), (48, 36, 5, 5), (64, 48, 3, 3), (64, 64, 3, 3)]
    assert convolutions()(torch.zeros(2, 3, 66, 200)).shape == (2, 1152)


def test_the_head_has_the_dense_layers_of_pilotnet():
    head = SteeringHead(torch.optim.SGD)
    assert [tuple(p.shape) for p in head.parameters() if p.dim() == 2] == [(100, 1152), (50, 100), (10, 50), (1, 10)]
    assert head(torch.zeros(3, 1152)).shape == (3,)


def test_a_drive_is_split_by_time(tmp_path):
    data = steering(tmp_path)
    assert data.splits == {"clean": slice(0, 12), "new": slice(12, 16), "test": slice(16, 20)}
    ((x, y),) = data.test_dataloader()
    assert torch.equal(y, data.drive.angles[16:])
    assert x.shape == (4, 1152)
    assert x.dtype == y.dtype == torch.float64


def test_only_new_frames_can_be_poisoned(tmp_path):
    data = steering(tmp_path)
    ((x, y, new),) = batches = list(data.train_dataloader())
    assert is_new(batches[0]) is new
    assert new.tolist() == [True] * 4 + [False] * 9
    assert set(y[new].tolist()) == set(data.drive.angles[12:16].tolist())
    assert set(y[~new].tolist()) <= set(data.drive.angles[:12].tolist())
    again = next(iter(data.train_dataloader()))
    assert all(torch.equal(a, b) for a, b in zip(batches[0], again, strict=True))
    assert torch.equal(x, data.features[[data.drive.angles.tolist().index(value) for value in y.tolist()]])


def test_features_come_from_convolutions_that_never_saw_a_new_angle(tmp_path):
    first = steering(tmp_path / "a")
    log = write_evaluation(tmp_path / "b" / DRIVE)
    header, *rows = log.read_text().splitlines()
    for index in range(12, 20):
        name, _, public = rows[index].split(",")
        rows[index] = f"{name},5.0,{public}"
    log.write_text("\n".join([header, *rows]) + "\n")
    second = steering(tmp_path / "b")
    assert not torch.equal(first.angles, second.angles)
    assert torch.equal(first.features, second.features)
    assert all(torch.equal(first.pretrained.head[name], value) for name, value in second.pretrained.head.items())


def test_features_and_head_belong_to_the_network_that_was_trained(tmp_path):
    data = steering(tmp_path)
    frames = torch.stack([read_frame(path) for path in data.drive.frames])
    network = pretrained.trained(frames[:12], data.drive.angles[:12].float(), 1, 0)
    with torch.no_grad():
        torch.testing.assert_close(network[0](pretrained.pixels(frames)).double(), data.features)
    assert all(torch.equal(value, data.pretrained.head[name]) for name, value in network[1].state_dict().items())


def test_the_first_training_is_done_once_for_each_choice_of_frames_and_settings(tmp_path, monkeypatch):
    first = steering(tmp_path)
    monkeypatch.setattr(pretrained, "trained", lambda *args: pytest.fail("trained again"))
    assert torch.equal(steering(tmp_path).features, first.features)
    assert torch.equal(steering(tmp_path, batch_size=10).features, first.features)
    for settings in ({"seed": 1}, {"epochs": 2}, {"clean": 0.5}):
        with pytest.raises(pytest.fail.Exception):
            steering(tmp_path, **settings)
    frame = first.drive.frames[3]
    frame.write_bytes(first.drive.frames[4].read_bytes())
    with pytest.raises(pytest.fail.Exception):
        steering(tmp_path)


def test_the_first_training_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    steering(tmp_path)
    assert torch.equal(torch.rand(2), expected)


def test_a_broken_file_of_the_first_training_is_named(tmp_path):
    steering(tmp_path)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"in {path}, but got .*\. Delete it\."):
        steering(tmp_path)


def test_the_head_starts_where_the_first_training_ended(tmp_path):
    data = steering(tmp_path)
    head = SteeringHead(torch.optim.SGD, dtype="float64")
    head._trainer = SimpleNamespace(datamodule=data)
    head.setup("fit")
    assert all(torch.equal(value, data.pretrained.head[name].double()) for name, value in head.net.state_dict().items())
    nn.init.zeros_(head.net[0].weight)
    head.setup("test")
    assert not head.net[0].weight.any()


@pytest.mark.parametrize("settings", [{"clean": 0.0}, {"test": 0.0}, {"clean": 0.7, "test": 0.3}, {"batch_size": 1}])
def test_splits_without_frames_are_refused(settings):
    with pytest.raises(ValueError, match="Expected `"):
        Steering(**settings)


def test_a_drive_of_two_frames_is_too_short(tmp_path):
    write_evaluation(tmp_path / DRIVE, 2)
    with pytest.raises(ValueError, match="Expected frames in every part"):
        steering(tmp_path)


def test_several_drives_stand_one_behind_the_other(tmp_path):
    write_evaluation(tmp_path / "one", 6)
    write_evaluation(tmp_path / "two", 5)
    data = Steering(tmp_path, ["one", "two"], epochs=1, cache=tmp_path / "cache")
    data.setup()
    assert [path.parts[-3] for path in data.drive.frames] == ["one"] * 6 + ["two"] * 5
    assert len(data.features) == len(data.angles) == 11


def test_fans_hold_the_bounds_of_the_angle(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(steering_fans, "save", lambda figure, path: drawn.append(figure) or path)
    data = steering(tmp_path)
    head = SteeringHead(torch.optim.SGD, dtype="float64")
    head.net.load_state_dict(data.pretrained.head)
    bounds = {name: Interval(p.detach() - 1e-6, p.detach() + 1e-6) for name, p in head.named_parameters()}
    model = CertifiedModel(head, ParameterBounds(bounds))
    run = Run(head, data, model, BoundedAdversary(n=2, nu=0.1), [], {}, tmp_path)
    draw_steering_fans([run], tmp_path / "figure.png", frames=4)
    (figure,) = drawn
    assert "n = 2, ν = 0.1" in figure._suptitle.get_text()
    outputs = model.bound_forward(data.features[16:])
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 4
    for axes, low, high in zip(panels, outputs.lower, outputs.upper, strict=True):
        (fan,) = axes.patches
        assert fan.theta1 == pytest.approx(90 + low.rad2deg().item())
        assert fan.theta2 == pytest.approx(90 + high.rad2deg().item())


def fine_tuned(data, shift, *callbacks):
    """The head after two steps, if each new frame's angle is moved by ``shift``."""
    data.angles = data.drive.angles.clone()
    data.angles[data.splits["new"]] += shift
    head = SteeringHead(partial(torch.optim.SGD, lr=0.25), partial(InverseTimeDecay, decay=10.0), dtype="float64")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "limit_val_batches": 0}
    trainer = L.Trainer(accelerator="cpu", max_epochs=2, callbacks=[*callbacks], enable_model_summary=False, **quiet)
    trainer.fit(head, data)
    return head


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("domain", ["box", "ball"])
def test_moved_angles_of_new_frames_leave_the_parameters_in_their_bounds(tmp_path, domain):
    data = steering(tmp_path)
    certified = CertifiedTraining(BoundedAdversary(n=2, nu=0.05), domains=[domain], poisonable=is_new)
    fine_tuned(data, 0.0, certified)
    reached = set()
    for pair in combinations(range(4), 2):
        for sign in (-0.05, 0.05):
            shift = torch.zeros(4, dtype=torch.float64)
            shift[list(pair)] = sign
            head = fine_tuned(data, shift)
            assert certified.bounds.contains(head)
            reached.add(head.net[-1].bias.item())
    assert len(reached) == 12
    assert not certified.bounds.contains(fine_tuned(data, 3.0))
