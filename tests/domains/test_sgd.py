"""Which SGD a domain covers, before training and at a step."""

import pytest
import torch
from torch import nn

from agt_lightning import BoundedAdversary
from agt_lightning.domains.base import DomainLostError, OptimizerStep, TrainingSetup
from agt_lightning.domains.sgd import SGDSettings, plain_sgd_problems, plain_sgd_settings, sgd_problems, sgd_settings

TRAINED = ("weight", "bias")


def module_with_gradients():
    module = nn.Linear(2, 1)
    module(torch.ones(1, 2)).sum().backward()
    return module


def groups(module, **bias_options):
    return [{"params": [module.weight]}, {"params": [module.bias], **bias_options}]


def setup(module, optimizer):
    return TrainingSetup(module, None, BoundedAdversary(n=1), optimizer, None)


def step(module, optimizer):
    parameters = dict(module.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return OptimizerStep(parameters, before, optimizer)


def sgd(module, bias_options=None, **options):
    return torch.optim.SGD(groups(module, **(bias_options or {})), **{"lr": 0.1, **options})


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({}, []),
        ({"weight_decay": 0.1}, []),
        ({"momentum": 0.9}, ["does not cover `momentum`. Set `momentum=0`"]),
        ({"maximize": True}, ["does not cover `maximize`. Set `maximize=False`"]),
        ({"bias_options": {"lr": 0.2}}, ["needs one `lr` for all parameters, but got [0.1, 0.2]"]),
        ({"bias_options": {"weight_decay": 0.2}}, ["needs one `weight_decay` for all parameters"]),
    ],
)
def test_plain_sgd_has_one_rate_and_no_momentum(options, messages):
    module = nn.Linear(2, 1)
    problems = plain_sgd_problems("ball", setup(module, sgd(module, **options)), TRAINED)
    assert len(problems) == len(messages)
    for problem, message in zip(problems, messages, strict=True):
        assert problem.startswith("The ball domain")
        assert message in problem


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"momentum": 0.9, "nesterov": True, "bias_options": {"lr": 0.2}}, []),
        ({"maximize": True}, ["does not cover `maximize`. Set `maximize=False`"]),
    ],
)
def test_any_sgd_may_have_momentum_and_several_rates(options, messages):
    module = nn.Linear(2, 1)
    problems = sgd_problems("influence", setup(module, sgd(module, **options)), TRAINED, started=False)
    assert len(problems) == len(messages)
    assert all(message in problem for problem, message in zip(problems, messages, strict=True))


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam])
def test_other_optimizers_are_refused(optimizer):
    module = nn.Linear(2, 1)
    given = setup(module, optimizer and optimizer(module.parameters()))
    for problems in (plain_sgd_problems("ball", given, TRAINED), sgd_problems("ball", given, TRAINED, started=False)):
        (problem,) = problems
        assert "covers `torch.optim.SGD` alone, but got " + ("Adam" if optimizer else "no optimizer") in problem


def test_parameters_outside_the_optimizer_are_refused():
    module = nn.Linear(2, 1)
    given = setup(module, torch.optim.SGD([module.weight], lr=0.1))
    for problems in (plain_sgd_problems("ball", given, TRAINED), sgd_problems("ball", given, TRAINED, started=True)):
        (problem,) = problems
        assert "but bias is not there. Add it, or freeze it" in problem


def test_momentum_from_before_is_refused_at_the_start_alone():
    module = module_with_gradients()
    optimizer = sgd(module, momentum=0.9)
    optimizer.step()
    (problem,) = sgd_problems("influence", setup(module, optimizer), TRAINED, started=False)
    assert "that have no bounds" in problem
    assert sgd_problems("influence", setup(module, optimizer), TRAINED, started=True) == []


def test_settings_of_a_step():
    module = module_with_gradients()
    optimizer = sgd(module, momentum=0.5, bias_options={"lr": 0.2, "weight_decay": 0.3})
    settings = sgd_settings(step(module, optimizer), TRAINED)
    assert settings == {"weight": SGDSettings(0.1, momentum=0.5), "bias": SGDSettings(0.2, 0.3, 0.5)}
    plain = sgd(module, weight_decay=0.3)
    assert plain_sgd_settings(step(module, plain), TRAINED) == (0.1, 0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.5}, "momentum was switched on"),
        ({"maximize": True}, "`maximize` was switched on"),
        ({"bias_options": {"lr": 0.2}}, "different settings"),
    ],
)
def test_settings_that_change_during_training_end_the_domain(options, message):
    module = module_with_gradients()
    with pytest.raises(DomainLostError, match=message):
        plain_sgd_settings(step(module, sgd(module, **options)), TRAINED)


def test_a_step_of_another_optimizer_or_of_some_parameters_ends_the_domain():
    module = module_with_gradients()
    with pytest.raises(DomainLostError, match="another kind"):
        sgd_settings(step(module, torch.optim.Adam(module.parameters())), TRAINED)
    module.bias.grad = None
    with pytest.raises(DomainLostError, match="left out a parameter"):
        sgd_settings(step(module, sgd(module)), TRAINED)


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_a_schedule_below_zero_ends_the_domain(key):
    """The radius would shrink by the poison of such a step: an attack that turns its labels left it by 0.1."""
    module = module_with_gradients()
    optimizer = sgd(module)
    for group in optimizer.param_groups:
        group[key] = -0.1
    with pytest.raises(DomainLostError, match="is negative"):
        plain_sgd_settings(step(module, optimizer), TRAINED)
