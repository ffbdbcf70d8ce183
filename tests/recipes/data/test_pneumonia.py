import pytest
import torch
from torch.nn import functional as F

from recipes.data import Pneumonia
from recipes.models import ScanClassifier
from recipes.models.schedules import InverseTimeDecay


@pytest.fixture
def data(pneumonia_root):
    made = Pneumonia(pneumonia_root, official=False, pretraining=20)
    made.prepare_data()
    made.setup()
    return made


def test_parts_have_no_image_in_common(data, pneumonia_root):
    (x, y), (test_x, _) = data.splits["train"], data.splits["test"]
    assert (x.shape, y.shape, test_x.shape) == ((40, 1, 28, 28), (40,), (12, 1, 28, 28))
    assert (x.dtype, y.dtype) == (torch.float64, torch.float64)
    assert 0 <= float(x.min()) < float(x.max()) <= 1
    first = Pneumonia(pneumonia_root, official=False, pretraining=0)
    whole, _ = first._read("train")
    kept = {image.numpy().tobytes() for image in x}
    assert sum(image.numpy().tobytes() not in kept for image in whole) == 20


def test_kept_labels_have_no_part_in_the_first_training(data, pneumonia_root, monkeypatch):
    read, kept = Pneumonia._read, {image.numpy().tobytes() for image in data.splits["train"][0]}

    def flipped(module, part):
        images, classes = read(module, part)
        mask = torch.tensor([image.numpy().tobytes() in kept for image in images])
        return images, torch.where(mask, 1 - classes, classes)

    monkeypatch.setattr(Pneumonia, "_read", flipped)
    again = Pneumonia(pneumonia_root, official=False, pretraining=20)
    again.setup()
    assert torch.equal(again.splits["train"][1], 1 - data.splits["train"][1])
    for name, value in data.pretrained.network.items():
        assert torch.equal(again.pretrained.network[name], value)


def test_the_random_state_outside_stays(pneumonia_root):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Pneumonia(pneumonia_root, official=False, pretraining=20).setup()
    assert torch.equal(torch.get_rng_state(), before)


def test_fine_tuning_takes_its_pairs(data, monkeypatch):
    module = ScanClassifier(torch.optim.SGD, lambda optimizer: InverseTimeDecay(optimizer, 5.0), "float64")
    monkeypatch.setattr(module, "log", lambda *args, **settings: None)
    module.net.load_state_dict(data.pretrained.network)
    (batch,) = data.train_dataloader()
    loss = module.training_step(batch, 0)
    assert loss == F.binary_cross_entropy_with_logits(data.network(batch[0]).squeeze(-1), batch[1])


def test_missing_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected pneumoniamnist.npz in"):
        Pneumonia(tmp_path).setup()
