"""Training with Lightning on a CUDA device."""

import copy
import json
import socket

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from agt_lightning import (
    BoundedAdversary,
    CertifiedModel,
    CertifiedTraining,
    ParameterBounds,
    UncertifiableError,
)
from agt_lightning.metrics import CertifiedAccuracy, CertifiedMSE
from tests.lightning.test_certified_flips import ADVERSARY as LABEL_FLIPS
from tests.lightning.test_certified_flips import Probe, data, queries, shuffled
from tests.lightning.test_dropout import Dropping

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
GPU = {"accelerator": "cuda", "devices": 1}
CPU = {"accelerator": "cpu"}

NUMBERS = BoundedAdversary(n=1, epsilon=0.01, nu=0.05)
FLIPS = BoundedAdversary(n=1, epsilon=0.02, nu=1, q=0)

NEAR = {"rtol": 1e-6, "atol": 1e-9}
"""Between devices, in float64; far above its rounding."""


def make(kind, seed=5):
    torch.manual_seed(seed)
    return kind()


def assert_same_bounds(bounds, other, rtol=0.0, atol=0.0):
    for name, interval in bounds.items():
        expected = other[name].to(device=interval.device)
        assert torch.allclose(interval.lower, expected.lower, rtol=rtol, atol=atol), name
        assert torch.allclose(interval.upper, expected.upper, rtol=rtol, atol=atol), name


@pytest.mark.parametrize(
    ("kind", "labels", "adversary"), [("regressor", "number", NUMBERS), ("classifier", "class", FLIPS)]
)
def test_files_bounds_and_certificates_are_those_of_a_cpu(kind, labels, adversary, request, fit, loader, tmp_path):
    architecture = request.getfixturevalue(kind)
    batches = lambda: loader(labels, size=12, dtype=torch.float64)  # noqa: E731
    found = {}
    for name, options in (("cpu", CPU), ("gpu", GPU)):
        module = make(architecture).double()
        certified = CertifiedTraining(adversary, dirpath=tmp_path / name)
        trainer = fit(module, batches(), certified, val=batches(), max_epochs=2, **options)
        assert trainer.callback_metrics["agt/mean_width"] > 0
        assert certified.bounds.contains(module)
        found[name] = certified, json.loads((tmp_path / name / "certificate.json").read_text())
    (host, host_record), (device, device_record) = found["cpu"], found["gpu"]
    assert_same_bounds(device.bounds, host.bounds, **NEAR)
    assert ParameterBounds.load(tmp_path / "gpu" / "bounds.safetensors").keys() == host.bounds.keys()
    for key, value in host_record["results"].items():
        assert device_record["results"][key] == pytest.approx(value, rel=1e-6), key


def test_training_on_the_gpu_is_unchanged(fit, loader, regressor):
    plain, certified = make(regressor), make(regressor)
    fit(plain, loader(size=10), max_epochs=2, **GPU)
    fit(certified, loader(size=10), CertifiedTraining(NUMBERS), max_epochs=2, **GPU)
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(plain.parameters(), certified.parameters(), strict=True))


def test_a_resumed_run_has_the_bounds_of_an_uninterrupted_one(fit, loader, regressor, tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last", save_top_k=1)
    kept = {"enable_checkpointing": True, **GPU}
    fit(make(regressor), loader(size=10), CertifiedTraining(NUMBERS), saver, max_epochs=2, **kept)
    whole, rest = CertifiedTraining(NUMBERS), CertifiedTraining(NUMBERS)
    fit(make(regressor), loader(size=10), whole, max_epochs=4, **GPU)
    fit(make(regressor), loader(size=10), rest, max_epochs=4, ckpt_path=tmp_path / "last.ckpt", **GPU)
    assert_same_bounds(rest.bounds, whole.bounds, **NEAR)
    assert rest.engine.steps == whole.engine.steps == 12
    on_a_cpu = CertifiedTraining(NUMBERS)
    fit(make(regressor), loader(size=10), on_a_cpu, max_epochs=4, ckpt_path=tmp_path / "last.ckpt", **CPU)
    assert_same_bounds(on_a_cpu.bounds, whole.bounds, rtol=1e-3, atol=1e-6)  # parameters are float32


def test_dropout_is_drawn_again_from_the_generator_of_the_gpu(fit, loader):
    def trained(*callbacks):
        module = make(Dropping, seed=0)
        fit(module, loader("number", 12, 5), *callbacks, max_epochs=2, **GPU)
        return module

    plain, certified = trained(), CertifiedTraining(BoundedAdversary(n=0))
    module = trained(certified)
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(plain.parameters(), module.parameters(), strict=True))
    assert certified.bounds.mean_width() < 1e-6
    strong = CertifiedTraining(BoundedAdversary(n=1, epsilon=0.1))
    trained(strong)
    assert strong.bounds.mean_width() > 1e-3


def test_poisoned_trainings_predict_what_is_certified(fit, loader, classifier):
    batches = [(x.to(DEVICE), y.to(DEVICE)) for x, y in loader("class", size=24, batch_size=12)]
    module = make(classifier, seed=0)
    start = copy.deepcopy(module.state_dict())
    certified = CertifiedTraining(FLIPS)
    fit(module, loader("class", size=24, batch_size=12), certified, max_epochs=3, **GPU)
    module.to(DEVICE)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    model = certified.certified_model(module)
    answer, outputs = model.certify(x), model.bound_forward(x)
    assert answer.certified.any()
    generator = torch.Generator(DEVICE).manual_seed(0)
    for _ in range(5):
        twin = classifier()
        twin.load_state_dict(start)
        twin.to(DEVICE)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        for features, labels in [*batches] * 3:
            features, labels = features.clone(), labels.clone()
            row = int(torch.randint(0, 12, (), generator=generator, device=DEVICE))
            features[row] += 0.02 * torch.randn(3, generator=generator, device=DEVICE).sign()
            labels[row] = torch.randint(0, 3, (), generator=generator, device=DEVICE)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(twin(features), labels).backward()
            optimizer.step()
        assert certified.bounds.contains(twin)
        logits = twin(x).detach()
        assert outputs.contains(logits, 1e-5)
        assert torch.equal(logits.argmax(dim=1)[answer.certified], answer.label[answer.certified])
    metric = CertifiedAccuracy().to(DEVICE)
    accuracy = metric(outputs.lower, outputs.upper, y)
    assert accuracy.device.type == DEVICE.type
    assert float(accuracy) == pytest.approx(float((answer.certified & (answer.label == y)).double().mean()))


def test_squared_errors_are_those_of_a_cpu():
    lower, target = torch.randn(6, 1), torch.randn(6, 1)
    upper = lower + torch.rand(6, 1)
    found = CertifiedMSE().to(DEVICE)(lower.to(DEVICE), upper.to(DEVICE), target.to(DEVICE))
    assert found.device.type == DEVICE.type
    assert float(found) == pytest.approx(float(CertifiedMSE()(lower, upper, target)))


def test_bounds_from_a_file_certify_on_the_gpu(fit, loader, classifier, tmp_path):
    module, certified = make(classifier), CertifiedTraining(FLIPS, dirpath=tmp_path)
    fit(module, loader("class"), certified, **GPU)
    loaded = CertifiedModel(module.to(DEVICE), ParameterBounds.load(tmp_path / "bounds.safetensors"))
    x = torch.randn(5, 3, device=DEVICE)
    expected, found = certified.certified_model(module).certify(x), loaded.certify(x)
    assert torch.equal(found.certified, expected.certified)
    assert torch.equal(found.label, expected.label)


def test_certified_flips_are_those_of_a_cpu(fit):
    found = []
    for options in (CPU, GPU):
        certified, module = CertifiedTraining(LABEL_FLIPS, domains="auto"), Probe()
        fit(module, shuffled(*data()), certified, max_epochs=4, **options)
        device = next(module.parameters()).device
        model = certified.certified_model(module)
        flips = model.certified_flips(queries().to(device))
        found.append((flips.cpu(), certified.engine.domains.record()["in_use"]))
    (host, host_domains), (device, device_domains) = found
    assert torch.equal(host, device)
    assert host_domains == device_domains


def test_convolutions_in_short_floats_are_refused_by_name(fit, regressor):
    class Images(regressor):
        def __init__(self):
            super().__init__(inputs=8)
            self.net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2), torch.nn.Flatten(), self.net)

    images = torch.utils.data.TensorDataset(torch.randn(8, 1, 3, 3), torch.randn(8, 1))
    batches = torch.utils.data.DataLoader(images, batch_size=4)
    with pytest.raises(UncertifiableError, match=r"cudnn.allow_tf32 = False"):
        fit(make(Images), batches, CertifiedTraining(NUMBERS), **GPU)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_one_process_with_nccl(fit, loader, regressor, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    alone, certified = CertifiedTraining(NUMBERS), CertifiedTraining(NUMBERS)
    fit(make(regressor).double(), loader(dtype=torch.float64), alone, **GPU)
    in_order = {"strategy": DDPStrategy(process_group_backend="nccl"), "use_distributed_sampler": False}
    try:
        fit(make(regressor).double(), loader(dtype=torch.float64), certified, **GPU, **in_order)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    assert_same_bounds(certified.bounds, alone.bounds, **NEAR)
