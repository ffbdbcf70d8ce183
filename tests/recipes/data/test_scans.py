from functools import partial
from itertools import combinations
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from agt_lightning import BoundedAdversary, CertifiedTraining
from recipes.data import Scans
from recipes.data.mixing import is_new
from recipes.models import ScanClassifier
from recipes.models.robust import RobustTraining, balanced, pixels
from recipes.models.scan_classifier import scan_network
from recipes.models.schedules import InverseTimeDecay
from tests.recipes.scans import write_scans

DRUSEN, NORMAL = 2, 3
QUICK = RobustTraining(epochs=1)


def scans(tmp_path, pretraining=QUICK, **settings):
    if not (tmp_path / "octmnist.npz").is_file():
        write_scans(tmp_path / "octmnist.npz")
    chosen = {"dataset": "octmnist", "normal": NORMAL, "new": DRUSEN, "root": tmp_path, "cache": tmp_path / "cache"}
    data = Scans(pretraining=pretraining, **chosen | {"official": False, "batch_size": 12} | settings)
    data.setup()
    return data


@pytest.fixture
def kept(monkeypatch):
    """Pre-training without training, for tests of everything else; how often it was asked for."""
    calls = []

    def run(training, images, abnormal):
        calls.append((images, abnormal))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return scan_network(), torch.zeros(1, 2)

    monkeypatch.setattr(RobustTraining, "run", run)
    return calls


def test_the_network_has_the_layers_of_the_paper():
    network = scan_network()
    shapes = [tuple(p.shape) for p in network.parameters() if p.ndim > 1]
    assert shapes == [(16, 1, 4, 4), (32, 16, 4, 4), (100, 3200), (1, 100)]
    assert network[0][0].stride == (2, 2)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 1)


def test_drusen_are_new_and_all_but_normal_scans_are_abnormal(tmp_path, kept):
    data = scans(tmp_path)
    classes = torch.arange(40) % 4
    assert sorted(data.parts["new"]) == (classes == DRUSEN).nonzero().flatten().tolist()
    assert sorted(data.parts["clean"]) == (classes != DRUSEN).nonzero().flatten().tolist()
    ((images, abnormal),) = kept
    assert len(images) == 30
    assert abnormal.tolist() == (classes[classes != DRUSEN] != NORMAL).tolist()


def test_half_of_each_training_batch_is_new_and_can_be_poisoned(tmp_path, kept):
    data = scans(tmp_path)
    batches = list(data.train_dataloader())
    assert [len(batch[0]) for batch in batches] == [12, 8]
    for x, y, new in batches:
        assert is_new((x, y, new)) is new
        assert int(new.sum()) * 2 == len(new)
        assert bool((y[new] == 1).all())
        assert x.shape[1:] == (1, 28, 28)
        assert x.dtype == y.dtype == torch.float64
        assert 0 <= float(x.min()) < float(x.max()) <= 1
    again = list(data.train_dataloader())
    assert all(
        torch.equal(a, b) for one, other in zip(batches, again, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_test_images_keep_their_order_and_name_the_new_class(tmp_path, kept):
    ((x, y, new),) = scans(tmp_path).test_dataloader()
    assert len(x) == 8
    assert y.tolist() == [1, 1, 1, 0] * 2
    assert new.tolist() == [False, False, True, False] * 2


def test_a_part_of_a_class_can_be_new(tmp_path, kept):
    data = scans(tmp_path, new_share=0.6)
    assert len(data.parts["new"]) == 6
    assert len(data.parts["clean"]) == 34
    assert scans(tmp_path, new_share=0.6).parts == data.parts
    assert scans(tmp_path, new_share=0.6, seed=1).parts["new"] != data.parts["new"]


def test_pretraining_is_done_once_for_each_choice_of_images_and_settings(tmp_path, kept):
    scans(tmp_path)
    scans(tmp_path, batch_size=20)
    assert len(kept) == 1
    for number, training in enumerate(
        (RobustTraining(epochs=2), RobustTraining(penalty=0.0), RobustTraining(seed=1)), 2
    ):
        scans(tmp_path, training)
        assert len(kept) == number
    scans(tmp_path, new=1)
    assert len(kept) == 5
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_new_images_have_no_part_in_pretraining(tmp_path, kept):
    first = scans(tmp_path)
    changed = first.train.images.numpy().copy()
    changed[DRUSEN::4] = 7
    write_scans(tmp_path / "octmnist.npz", train_images=changed)
    second = scans(tmp_path)
    assert len(kept) == 1
    assert first.pretrained.path == second.pretrained.path
    assert not torch.equal(first.train.images, second.train.images)


def test_a_broken_file_of_pretraining_is_named(tmp_path, kept):
    path = scans(tmp_path).pretrained.path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"in {path}, but got .*Delete it"):
        scans(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"new_share": 0.0}, "Expected `new_share` to be above 0"),
        ({"new": NORMAL}, "Expected `new` to be an abnormal class, but got 3"),
        ({"batch_size": 1}, "Expected `batch_size` to leave room"),
    ],
)
def test_settings_without_sense_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        scans(tmp_path, **settings)


def test_a_data_set_without_clean_abnormal_images_is_refused(tmp_path):
    write_scans(tmp_path / "pneumoniamnist.npz", classes=2)
    with pytest.raises(ValueError, match="in pneumoniamnist, but got 20, 0 and 20. Choose"):
        scans(tmp_path, dataset="pneumoniamnist", normal=0, new=1)


def test_the_head_alone_is_trained_and_starts_where_pretraining_ended(tmp_path, kept):
    data = scans(tmp_path)
    module = ScanClassifier(torch.optim.SGD, dtype="float64")
    module._trainer = SimpleNamespace(datamodule=data)
    module.setup("fit")
    assert all(torch.equal(p, data.pretrained.network[name].double()) for name, p in module.net.state_dict().items())
    trained = [id(p) for group in module.configure_optimizers().param_groups for p in group["params"]]
    assert trained == [id(p) for p in module.parameters() if p.requires_grad]
    assert [tuple(p.shape) for p in module.parameters() if p.requires_grad] == [(100, 3200), (100,), (1, 100), (1,)]


def fine_tuned(data, *callbacks):
    """The classifier after two epochs."""
    module = ScanClassifier(partial(torch.optim.SGD, lr=0.05), partial(InverseTimeDecay, decay=5.0), dtype="float64")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=2, callbacks=[*callbacks], enable_model_summary=False, **quiet)
    trainer.fit(module, data)
    return module


def flipped(data, positions):
    """Some of the new images are called normal."""
    data.train.abnormal[positions] = False


def darkened(data, positions):
    """Every pixel of some new images is moved by three steps of 255, as far as it goes."""
    moved = data.train.images[positions].int() + 3 * (-1) ** torch.arange(28)
    data.train.images = data.train.images.clone()
    data.train.images[positions] = moved.clamp(0, 255).to(torch.uint8)


ATTACKS = {
    "labels": (flipped, BoundedAdversary(n=2, nu=1, q=0)),
    "pixels": (darkened, BoundedAdversary(n=2, epsilon=3 / 255 + 1e-9)),
}


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("domain", ["box", "ball"])
@pytest.mark.parametrize("kind", ATTACKS)
def test_poisoned_new_images_leave_the_parameters_in_their_bounds(tmp_path, kept, kind, domain):
    attack, adversary = ATTACKS[kind]
    settings = {"new_share": 0.3, "batch_size": 12}
    certified = CertifiedTraining(adversary, domains=[domain], poisonable=is_new)
    clean = fine_tuned(scans(tmp_path, **settings), certified)
    assert certified.bounds.contains(clean)
    reached = set()
    for pair in combinations(range(3), 2):
        data = scans(tmp_path, **settings)
        attack(data, [data.parts["new"][position] for position in pair])
        module = fine_tuned(data)
        assert certified.bounds.contains(module)
        reached.add(module.net[1][-1].bias.item())
    assert len(reached) == 3


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
def test_what_no_adversary_may_do_leaves_the_bounds(tmp_path, kept):
    certified = CertifiedTraining(BoundedAdversary(n=2, nu=1, q=0), poisonable=is_new)
    fine_tuned(scans(tmp_path, new_share=0.3), certified)
    data = scans(tmp_path, new_share=0.3)
    flipped(data, data.parts["new"])
    assert not certified.bounds.contains(fine_tuned(data))
    data = scans(tmp_path, new_share=0.3)
    data.train.abnormal[data.parts["clean"]] ^= True
    assert not certified.bounds.contains(fine_tuned(data))


# --- robust training -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    """Sixty small images, the abnormal third brighter."""
    generator = torch.Generator().manual_seed(0)
    abnormal = torch.arange(60) % 3 == 0
    noise = torch.randint(0, 90, (60, 28, 28), generator=generator)
    return (noise + 100 * abnormal[:, None, None]).to(torch.uint8), abnormal


@pytest.mark.slow
def test_robust_training_narrows_the_gradient(images):
    """Against ordinary training from the same start and on the same draws."""
    histories = {penalty: RobustTraining(epochs=4, penalty=penalty).run(*images)[1] for penalty in (0.0, 3.0)}
    assert all(history.shape == (4, 2) for history in histories.values())
    assert float(histories[3.0][-1, 1]) < 0.8 * float(histories[0.0][-1, 1])
    assert float(histories[0.0][-1, 0]) < float(histories[0.0][0, 0])


@pytest.mark.slow
def test_robust_training_is_repeatable_and_leaves_the_random_state_alone(images):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, _ = QUICK.run(*images)
    assert torch.equal(torch.rand(2), expected)
    second, _ = QUICK.run(*images)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other, _ = RobustTraining(epochs=1, seed=1).run(*images)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_both_classes_are_drawn_as_often():
    torch.manual_seed(0)
    abnormal = torch.arange(10_000) < 100
    drawn = balanced(abnormal)
    assert len(drawn) == 10_000
    assert 4_800 < int(abnormal[drawn].sum()) < 5_200


def test_pixels_are_numbers_from_0_to_1():
    assert pixels(torch.tensor([[[0, 51], [255, 0]]], dtype=torch.uint8)).flatten().tolist() == pytest.approx(
        [0, 0.2, 1, 0]
    )
