from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from agt_lightning import BoundedAdversary, CertifiedTraining, UnboundedAdversary
from recipes.data import HalfMoons, Household
from recipes.data.mixing import is_new
from recipes.models import Classifier, Regressor
from recipes.models.robust import RobustTraining
from recipes.models.schedules import InverseTimeDecay
from recipes.runs.steps import MSEOverSteps
from recipes.runs.sweep import at_point

CONF = Path(__file__).parents[2] / "conf"
ROLES = (
    "adversary",
    "data",
    "model",
    "optimizer",
    "scheduler",
    "callbacks",
    "certificate",
    "record",
    "figure",
    "trainer",
    "logger",
)
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
CHOICES = [(role, path.stem) for role in ROLES for path in sorted((CONF / role).glob("*.yaml"))]


def instances(node):
    """Build a node with a target, or every node of a mapping of nodes."""
    if node is None or "_target_" in node:
        return instantiate(node)
    return {name: instantiate(child) for name, child in node.items()}


@pytest.mark.parametrize(("role", "choice"), CHOICES)
def test_every_choice_of_every_group_instantiates(composed, monkeypatch, role, choice):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    if choice == "tensorboard":
        pytest.importorskip("tensorboard")
    config = composed(f"{role}={choice}", "name=test")
    assert config is not None
    built = instances(config[role])
    assert built or choice == "none"


def test_commands_with_a_former_way_of_summing_still_run(composed):
    config = composed("callbacks=certified", "callbacks.certified.aggregation=moment")
    with pytest.warns(FutureWarning, match="Delete `aggregation=`"):
        instances(config.callbacks)


def test_no_group_is_left_out():
    others = {"attack", "experiment", "hydra", "sweep", "debug", "variant"}
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {*ROLES, *others}


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_object_that_takes_lists_or_mappings_gets_plain_ones(path):
    """Hydra hands over its own containers unless told otherwise, which neither pickle nor compare as plain ones do."""
    for node in _targets(OmegaConf.to_container(OmegaConf.load(path), resolve=False)):
        if any(isinstance(value, dict | list) for value in node.values()):
            assert node.get("_convert_") == "all", node["_target_"]


def _targets(node):
    """All nodes below this one that are built."""
    if isinstance(node, list):
        return [found for child in node for found in _targets(child)]
    if not isinstance(node, dict):
        return []
    return ([node] if "_target_" in node else []) + [found for child in node.values() for found in _targets(child)]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_has_a_fast_variant(composed, experiment):
    assert (CONF / "variant" / "fast" / f"{experiment}.yaml").is_file()
    fast, slow = (composed(f"experiment={experiment}", *more) for more in (["debug=fast"], []))
    assert fast != slow
    assert not fast.trainer.enable_progress_bar


@pytest.mark.thinned(2)
@pytest.mark.parametrize("sweep", sorted({path.stem for path in (CONF / "sweep").glob("*.yaml")} - {"none"}))
def test_every_point_of_every_sweep_instantiates(composed, sweep):
    config = composed(f"sweep={sweep}")
    assert config.drawing is None or callable(instances(config.drawing))
    places = [(panel, level) for panel, chosen in config.panels.items() for level in range(len(chosen.levels))]
    for panel, level in places or [(None, None)]:
        point = at_point(placed(config, panel, level))
        assert isinstance(instances(point.model), L.LightningModule)
        assert isinstance(instances(point.data), L.LightningDataModule)
        assert instances(point.callbacks)["certified"].adversary == instances(point.adversary)


def placed(config, panel, level):
    chosen = config.copy()
    chosen.panel, chosen.level = panel, level
    return chosen


@pytest.mark.slow
def test_sweeps_have_the_settings_of_the_figures(composed):
    configs = {name: composed(f"sweep={name}") for name in ("halfmoons", "household", "pilotnet", "octmnist")}

    def strengths(sweep, panel, levels):
        points = [at_point(placed(configs[sweep], panel, level)) for level in range(levels)]
        return [instances(point.adversary) for point in points]

    assert strengths("halfmoons", "a", 4) == [BoundedAdversary(n=n, epsilon=0.01) for n in (50, 100, 200, 300)]
    assert strengths("halfmoons", "b", 4) == [BoundedAdversary(n=10, epsilon=e) for e in (0.05, 0.1, 0.15, 0.2)]
    assert strengths("halfmoons", "c", 4) == [BoundedAdversary(n=n, nu=1, q=0) for n in (1, 3, 5, 7)]
    assert strengths("halfmoons", "d", 4) == [BoundedAdversary(n=n, epsilon=0.1, nu=1, q=0) for n in (1, 3, 5, 7)]
    assert strengths("household", "n", 3) == [BoundedAdversary(n=n, epsilon=0.01) for n in (10000, 5000, 1000)]
    assert strengths("household", "nu", 3) == [BoundedAdversary(n=1000, nu=nu) for nu in (0.2, 0.1, 0.05)]
    for panel, nu in (("small", 0.001), ("medium", 0.01), ("large", 0.05)):
        assert strengths("pilotnet", panel, 4) == [BoundedAdversary(n=n, nu=nu) for n in (0, 100, 300, 1000)]
    levels = (0, 50, 200, 600)
    assert strengths("octmnist", "labels", 4) == [BoundedAdversary(n=n, nu=1, q=0) for n in levels]
    for epsilon in (0.01, 0.02, 0.1):
        assert strengths("octmnist", f"moved-{epsilon:g}", 4) == [
            BoundedAdversary(n=n, epsilon=epsilon) for n in levels
        ]
    for kappa in (0.5, 1, 4):
        assert strengths("octmnist", f"any-{kappa:g}", 4) == [UnboundedAdversary(n=n, kappa=kappa) for n in levels]
    for panel in ("depth", "width", "batch", "rate"):
        assert strengths("household", panel, 3) == [BoundedAdversary(n=100, epsilon=0.01)] * 3


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_instantiates_as_a_whole(composed, experiment):
    config = composed(f"experiment={experiment}")
    assert config.name == experiment
    assert isinstance(instances(config.data), L.LightningDataModule)
    module = instances(config.model)
    assert isinstance(module, L.LightningModule)
    configured = module.configure_optimizers()
    assert isinstance(configured["optimizer"], torch.optim.SGD)
    assert isinstance(configured["lr_scheduler"]["scheduler"], InverseTimeDecay)
    assert configured["lr_scheduler"]["interval"] == "step"
    assert callable(instances(config.certificate))
    figure = instances(config.figure)
    assert figure == {} or callable(figure)
    assert isinstance(instances(config.trainer)(logger=False), L.Trainer)


def test_experiment_headers_name_their_command():
    for path in (CONF / "experiment").glob("*.yaml"):
        assert f"python -m recipes.train experiment={path.stem}" in path.read_text()


def test_halfmoons_is_the_default_with_the_settings_of_figure_1(composed):
    config = composed()
    assert config.name == "halfmoons"
    assert isinstance(instances(config.data), HalfMoons)
    assert isinstance(instances(config.model), Classifier)
    assert instances(config.adversary) == BoundedAdversary(n=100, epsilon=0.01)
    assert (config.optimizer.lr, config.scheduler.decay, config.trainer.max_epochs) == (2.0, 0.6, 4)


def test_household_has_the_settings_of_figure_2(composed):
    config = composed("experiment=household")
    data, model = instances(config.data), instances(config.model)
    assert isinstance(data, Household)
    assert isinstance(model, Regressor)
    assert data.batch_size == 10_000
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(64, 11), (64,), (1, 64), (1,)]
    assert instances(config.adversary) == BoundedAdversary(n=100, epsilon=0.01)
    assert (config.optimizer.lr, config.scheduler.decay, config.scheduler.floor) == (0.005, 0.1, 1e-5)
    assert config.trainer.max_epochs == 1


def test_pilotnet_has_the_settings_of_figure_6(composed):
    config = composed("experiment=pilotnet")
    certified = instances(config.callbacks)["certified"]
    assert certified.config.poisonable is is_new
    assert instances(config.data).batch_size == 10_000
    assert (config.optimizer.lr, config.scheduler.decay, config.trainer.max_epochs) == (0.25, 10.0, 2)


def test_octmnist_has_the_settings_of_figure_4(composed):
    config = composed("experiment=octmnist")
    certified, data = instances(config.callbacks)["certified"], instances(config.data)
    assert certified.config.poisonable is is_new
    assert (data.dataset, data.normal, data.new, data.new_share, data.official) == ("octmnist", 3, 2, 1.0, True)
    assert data.pretraining == RobustTraining(epochs=10, penalty=0.3, epsilon=0.5, spread=0.001)
    assert data.batch_size == 6000
    assert (config.optimizer.lr, config.scheduler.decay, config.scheduler.floor) == (0.05, 5.0, 0.001)
    assert config.trainer.max_epochs == 2


def test_a_backdoor_has_the_same_size_in_training_and_test(composed):
    config = composed("sweep=octmnist")
    for epsilon in (0.003, 0.006, 0.009):
        point = at_point(placed(config, f"backdoor-{epsilon}", 1))
        assert instances(point.adversary) == BoundedAdversary(n=50, epsilon=epsilon)
        assert instances(point.certificate).keywords == {"epsilon": epsilon}


def test_a_stand_in_has_another_name_and_folder(composed):
    config = composed("sweep=octmnist", "data=pneumoniamnist")
    assert (config.name, config.data.dataset, config.drawing.dataset) == ("pneumoniamnist",) * 3
    data = instances(config.data)
    assert (data.normal, data.new, data.new_share) == (0, 1, 0.65)


def test_the_duel_on_household_has_the_settings_of_refined_agt(composed):
    config = composed("experiment=household_refined")
    assert instances(config.data).batch_size == 10_000
    assert [tuple(p.shape) for p in instances(config.model).parameters()] == [(64, 11), (64,), (1, 64), (1,)]
    assert instances(config.adversary) == BoundedAdversary(n=200, epsilon=0.01)
    assert (config.optimizer.lr, config.scheduler.decay, config.scheduler.floor) == (0.005, 0.1, 1e-5)
    assert (config.seed, config.trainer.max_steps) == (15, 150)


def test_the_duel_on_magic_has_the_settings_of_refined_agt(composed):
    full, mini = composed("experiment=magic"), composed("experiment=magic_minibatches")
    for config in (full, mini):
        assert instances(config.adversary) == BoundedAdversary(n=200, epsilon=0.01)
        assert [tuple(p.shape) for p in instances(config.model).parameters()] == [(128, 10), (128,), (2, 128), (2,)]
        assert (config.optimizer.lr, config.scheduler.decay) == (1.0, 0.6)
    assert (full.data.batch_size, full.trainer.max_epochs) == (None, 3)
    assert 15_216 / mini.data.batch_size * mini.trainer.max_epochs == 20


@pytest.mark.parametrize(("experiment", "epsilon"), [("mibp_moons", 0.01), ("mibp_iris", 0.3)])
def test_the_adversary_of_a_duel_with_mibp_cert_moves_every_sample_of_the_only_batch(composed, experiment, epsilon):
    config = composed(f"experiment={experiment}", "seed=3")
    data = instances(config.data)
    data.setup()
    ((x, _),) = data.train_dataloader()
    assert instances(config.adversary) == BoundedAdversary(n=len(x), epsilon=epsilon)
    assert data.seed == 3  # of samples and initial parameters alike


def test_callbacks_hold_the_adversary_itself_not_its_config(composed):
    callbacks = instances(composed("experiment=household", "adversary=label_flips").callbacks)
    assert isinstance(callbacks["certified"], CertifiedTraining)
    assert callbacks["certified"].adversary == BoundedAdversary(n=5, nu=1, q=0)
    assert isinstance(callbacks["mse_over_steps"], MSEOverSteps)
    assert list(callbacks) == ["certified", "mse_over_steps"]


@pytest.mark.slow
def test_adversary_settings_come_from_the_command_line(composed):
    flips = instances(composed("adversary=label_flips", "adversary.target_classes=[1]", "adversary.n=3").adversary)
    assert flips == BoundedAdversary(n=3, nu=1, q=0, target_classes=(1,))
    assert instances(composed("adversary=unbounded").adversary) == UnboundedAdversary(n=10, kappa=0.1, clip="value")
    assert instances(composed("adversary=none").adversary).n == 0
    assert instances(composed("adversary.q=1", "adversary.nu=.5").adversary).q == 1


def test_optimizer_and_scheduler_are_partial(composed):
    config = composed()
    assert isinstance(instances(config.optimizer), partial)
    assert isinstance(instances(config.scheduler), partial)


def test_model_follows_the_type_of_its_data(composed):
    model = instances(composed("data.dtype=float32").model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
