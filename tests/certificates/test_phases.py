"""Settings of all steps of a training, also where a resumed training has others."""

import torch

from agt_lightning.certificates.phases import (
    OVERRIDDEN_OBJECTIVE,
    SAMPLES_ARE_NAMED,
    Phase,
    any_phase,
    bound_settings,
    followed_by,
    in_all_phases,
)
from agt_lightning.propagation.config import CertificationConfig


def settings(**changed):
    stated = changed.pop("stated", None)
    return bound_settings(CertificationConfig(domains=("box",), **changed), ["box"], None, stated)


def test_steps_under_one_group_of_settings_are_one_phase():
    first = followed_by((), 4, settings())
    assert [(phase.first, phase.last) for phase in followed_by(first, 6, settings())] == [(1, 6)]


def test_other_settings_start_a_phase():
    phases = followed_by(followed_by((), 4, settings()), 6, settings(dtype=torch.float32))
    assert [(phase.first, phase.last, phase.settings["dtype"]) for phase in phases] == [
        (1, 4, "float64"),
        (5, 6, "float32"),
    ]
    assert in_all_phases(phases)["dtype"] == "float64, then float32"


def test_no_step_makes_no_phase():
    first = followed_by((), 4, settings())
    assert followed_by(first, 4, settings(dtype=torch.float32)) == first
    assert followed_by((), 0, settings()) == ()
    assert in_all_phases(()) == {}


def test_all_samples_count_as_poisonable_only_if_they_were_at_every_step():
    nobody = settings(poisonable="key")
    for first, second in ((nobody, settings()), (settings(), nobody)):
        phases = followed_by(followed_by((), 2, first), 3, second)
        assert in_all_phases(phases)["all_samples_poisonable"] is False
        assert any_phase(phases, SAMPLES_ARE_NAMED)
    assert in_all_phases(followed_by((), 2, settings()))["all_samples_poisonable"] is True


def test_what_an_earlier_version_did_not_keep_is_unknown():
    before = (Phase(1, 3, {}),)
    known = in_all_phases(followed_by(before, 5, settings()))
    assert known["all_samples_poisonable"] == "unknown"
    assert known["dtype"] == "unknown, then float64"
    assert in_all_phases(followed_by(before, 5, settings(poisonable="key")))["all_samples_poisonable"] is False


def test_what_else_is_stated_is_part_of_a_phase():
    phases = followed_by((), 2, settings(stated={OVERRIDDEN_OBJECTIVE: True, "roles": {"features": ["batch[0]"]}}))
    phases = followed_by(phases, 4, settings())
    assert any_phase(phases, OVERRIDDEN_OBJECTIVE)
    assert in_all_phases(phases)[OVERRIDDEN_OBJECTIVE] is True
    assert phases[0].plain()["roles"] == {"features": ["batch[0]"]}


def test_phases_survive_their_plain_form():
    phases = followed_by(followed_by((), 4, settings()), 6, settings(dtype=torch.float32))
    assert tuple(Phase.of(phase.plain()) for phase in phases) == phases
