"""Certified training under Lightning's DDP: the same bounds, or a refusal in every process."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch.distributed.fsdp import MixedPrecision

from agt_lightning import ParameterBounds, UnboundedAdversary
from agt_lightning.lightning.distributed import processes_of, strategy_problems
from agt_lightning.lightning.samplers import follows_epochs
from tests.distributed import lightning_cases as cases
from tests.distributed.pool import FailedError, forkserver
from tests.distributed.test_same_bounds import assert_close, assert_same_bits

pytestmark = pytest.mark.filterwarnings("ignore")

TRAININGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "accumulated": {"settings": {"accumulate_grad_batches": 2}, "data": {"micro": 2}},
    "clipped": {"settings": {"gradient_clip_val": 0.1}, "certification": {"domains": ["box"]}},
    "unbounded": {"adversary": UnboundedAdversary(n=1, kappa=0.2)},
}
ACCUMULATED = {"settings": {"accumulate_grad_batches": 2}, "data": {"micro": 2}}
DDP = {
    "static graph": ({"static_graph": True}, {}),
    "bucket views": ({"gradient_as_bucket_view": True}, ACCUMULATED),
    "unused parameters": ({"find_unused_parameters": True}, ACCUMULATED),
}


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_bounds_do_not_depend_on_the_number_of_processes(training, pool):
    alone = cases.fit(**training)
    results = pool.run(2, _fit, training)
    assert_same_bits(results)
    assert_close(results[0], alone)
    assert results[0]["steps"] == alone["steps"]


@pytest.mark.parametrize(("options", "training"), DDP.values(), ids=DDP)
def test_every_way_in_which_ddp_averages_is_bounded(options, training, pool):
    results = pool.run(2, _fit, {"ddp_options": options, **training})
    assert_same_bits(results)
    assert_close(results[0], cases.fit(**training))


@pytest.mark.slow
def test_metrics_count_the_samples_of_all_processes_alike(pool):
    alone = cases.fit(validate=True)
    for result in pool.run(3, _fit, {"validate": True}):
        assert result["metrics"]["agt/val_certified_mse"] == pytest.approx(alone["metrics"]["agt/val_certified_mse"])


def test_the_certificate_is_written_once(pool, tmp_path):
    pool.run(2, _fit, {"certification": {"dirpath": str(tmp_path)}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bounds.safetensors", "certificate.json"]


def _fit(training):
    return cases.fit(**training)


# --- refusals, in every process -----------------------------------------------------------------------------------


def assert_refused(pool, world, function, message, *args):
    with pytest.raises(FailedError) as failed:
        pool.run(world, function, *args)
    assert all(error is not None and message in error[1] for error in failed.value.errors), failed.value


@pytest.mark.parametrize("size", [23, 25])
def test_a_sampler_that_repeats_samples_is_refused(size, pool):
    assert_refused(pool, 2, _fit, "drop_last=True", {"data": {"size": size, "shuffle": False}})


def test_a_sampler_that_drops_the_rest_is_not(pool):
    assert_same_bits(pool.run(2, _fit, {"data": {"size": 25, "shuffle": True, "drop_last": True}}))


def test_a_sampler_by_lightning_is_checked_too(pool):
    assert_refused(pool, 2, _lightning_sampler, "drop_last=True")


def _lightning_sampler():
    data = cases.DataLoader(cases.dataset(23), 4)
    made = cases.trainer(cases.CertifiedTraining(cases.ADVERSARY), use_distributed_sampler=True)
    made.fit(cases.Regressor(), data)


def test_the_same_data_in_every_process_are_refused(pool):
    assert_refused(pool, 2, _same_data, "in the batches of several processes")


def _same_data():
    cases.trainer(cases.CertifiedTraining(cases.ADVERSARY)).fit(cases.Regressor(), cases.DataLoader(cases.dataset(), 4))


def test_a_communication_hook_is_refused(pool):
    assert_refused(pool, 2, _compressed, "ddp_comm_hook")


def _compressed():
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    cases.fit(ddp_options={"ddp_comm_hook": default_hooks.fp16_compress_hook})


def test_synchronized_batch_norm_is_refused(pool):
    assert_refused(pool, 2, _synchronized, "SyncBatchNorm")


def _synchronized():
    module = cases.Regressor()
    module.net.append(cases.nn.BatchNorm1d(1).double())
    made = cases.trainer(cases.CertifiedTraining(cases.ADVERSARY), sync_batchnorm=True)
    made.fit(module, cases.loader())


def test_different_numbers_of_batches_are_refused(pool):
    assert_refused(pool, 2, _uneven, "different numbers of batches")


def _uneven():
    data = cases.DataLoader(cases.dataset(16 + 4 * cases.dist.get_rank()), 4)
    cases.trainer(cases.CertifiedTraining(cases.ADVERSARY)).fit(cases.Regressor(), data)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (DDPStrategy(model_averaging_period=2), "averages parameters"),
        (DDPStrategy(mixed_precision=MixedPrecision(param_dtype=torch.bfloat16)), "rounds more"),
        (FSDPStrategy(), "must be whole"),
    ],
)
def test_strategies_that_apply_another_gradient_are_refused(strategy, message):
    trainer = SimpleNamespace(world_size=2, strategy=strategy, lightning_module=cases.Regressor())
    (problem,) = strategy_problems(trainer)
    assert message in problem


class _Unshared(cases.Regressor):
    """Has parameters of its own in each process, which Lightning sees to on the CPU with ``"spawn"`` alone."""

    def setup(self, stage):
        for parameter in self.parameters():
            parameter.data = parameter.data.clone()


@pytest.mark.parametrize("start_method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_that_lightning_starts_leave_a_certificate(start_method, tmp_path):
    """Both methods hand over pickles; `forkserver` imports torch once for all processes."""
    forkserver()
    made = cases.L.Trainer(
        strategy=DDPStrategy(start_method=start_method),
        accelerator="cpu",
        devices=2,
        max_epochs=1,
        use_distributed_sampler=True,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[cases.CertifiedTraining(cases.ADVERSARY, dirpath=tmp_path)],
    )
    made.fit(_Unshared(), cases.DataLoader(cases.dataset(), cases.BATCH // 2))
    bounds = ParameterBounds.load(tmp_path / "bounds.safetensors")
    assert bounds.mean_width() > 0
    assert bounds.contains(made.lightning_module)


def test_nothing_but_its_sampler_tells_that_processes_have_shares_of_an_epoch(pool):
    assert pool.run(2, _follows, _shares) == [True, True]
    assert pool.run(2, _follows, _whole_data) == [False, False]


def _follows(loader):
    made = cases.trainer(cases.CertifiedTraining(cases.ADVERSARY, domains=["box"]), max_epochs=1)
    made.fit(cases.Regressor(), loader())
    return follows_epochs(made, processes_of(made))


def _whole_data():
    """Each process draws all samples, in an order of its own, so that none is in a step twice."""
    x, y = cases.dataset().tensors
    shift = cases.SIZE // 2 * cases.dist.get_rank()
    return cases.DataLoader(cases.TensorDataset(x.roll(shift, 0), y.roll(shift, 0)), cases.BATCH // 2)


def _shares():
    return cases.loader(shuffle=True)


def test_what_one_process_finds_stops_all(pool):
    """One process alone has a mask of the wrong shape."""
    with pytest.raises(FailedError) as failed:
        pool.run(2, _wrong_mask)
    kinds = [error[0] for error in failed.value.errors]
    assert kinds == ["ProcessError", "ValueError"]
    assert all("boolean mask" in error[1] for error in failed.value.errors)


def _wrong_mask():
    def poisonable(batch):
        wrong = cases.dist.get_rank() == 1
        return cases.torch.ones(3 if wrong else len(batch[0]), dtype=cases.torch.bool)

    cases.fit(certification={"poisonable": poisonable})
