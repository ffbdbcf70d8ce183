import pytest
import torch

from agt_lightning.domains.influence.recorder import HeadRecorder
from agt_lightning.domains.influence.sample_table import SampleTable, content_digests
from agt_lightning.domains.sgd import SGDSettings
from agt_lightning.errors import UncertifiableError

FEATURES = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
TARGETS = torch.tensor([[0.0], [1.0], [1.0]])


def recorder_with(*batches):
    recorder = HeadRecorder(torch.zeros(1, 3), bias=True)
    for keywords in batches:
        features = keywords.pop("features", FEATURES)
        targets = keywords.pop("targets", TARGETS)
        recorder.append(features, targets, torch.ones(len(features)) / 10, SGDSettings(0.1), **keywords)
    return recorder


def test_epochs_share_their_samples():
    influence = recorder_with({"epoch": 0}, {"epoch": 1}, {"epoch": 2}).influence()
    assert influence.features.shape == (3, 2)
    assert influence.targets.shape == (3, 1)
    assert influence.problem is None


def test_same_features_with_another_target_are_another_sample():
    table = SampleTable()
    features, targets = torch.ones(3, 1), torch.tensor([[0.0], [1.0], [0.0]])
    assert table.rows(features, targets).tolist() == [0, 1, 0]
    assert table.sample_of_row.tolist() == [0, 1]


def test_minus_zero_is_zero():
    table = SampleTable()
    assert table.rows(torch.tensor([[0.0], [-0.0]]), torch.zeros(2, 1)).tolist() == [0, 0]


def test_content_that_is_new_after_the_first_epoch_leaves_the_batch_budget_only():
    influence = recorder_with({"epoch": 0}, {"features": FEATURES + 0.01, "epoch": 1}).influence()
    queries = torch.ones(1, 2)
    with pytest.raises(UncertifiableError, match="epoch 1 brought 3 samples.*an id .*, or use the budget for each"):
        influence.coefficients(queries)
    with pytest.raises(UncertifiableError, match="not seen there"):
        next(influence.budget_groups(queries, "dataset"))
    assert len(list(influence.budget_groups(queries, "batch"))) == 2
    assert influence.outputs(queries).shape == (1, 1)


def test_new_batches_of_the_first_epoch_are_expected():
    influence = recorder_with({"epoch": 3}, {"features": FEATURES + 1, "epoch": 3}).influence()
    assert influence.problem is None
    assert len(influence.targets) == 6


def test_ids_hold_augmented_features_together():
    ids = torch.tensor([7, 5, 9])
    moved = {"features": FEATURES + 0.01, "ids": ids, "epoch": 1}
    recorder = recorder_with({"ids": ids}, moved)
    assert recorder.named
    influence = recorder.influence()
    assert influence.features.shape == (6, 2)
    assert influence.sample_of_row.tolist() == [0, 1, 2, 0, 1, 2]
    assert influence.coefficients(torch.ones(1, 2)).shape == (1, 3)


def test_equal_content_with_different_ids_is_two_samples():
    table = SampleTable()
    rows = table.rows(torch.ones(2, 1), torch.ones(2, 1), ids=torch.tensor([0, 1]))
    assert table.sample_of_row[rows].tolist() == [0, 1]


def test_one_id_with_two_targets_is_refused():
    ids = torch.tensor([0, 1, 2])
    with pytest.raises(UncertifiableError, match="position 0 of the batch came with two"):
        recorder_with({"ids": ids}, {"ids": ids, "targets": 1 - TARGETS})


def test_ids_for_some_batches_are_refused():
    with pytest.raises(ValueError, match="with every batch or with none"):
        recorder_with({"ids": torch.tensor([0, 1, 2])}, {})


def test_poisonable_once_is_poisonable():
    first, second = torch.tensor([True, False, False]), torch.tensor([False, False, True])
    influence = recorder_with({"poisonable": first}, {"poisonable": second, "epoch": 1}).influence()
    assert influence.poisonable.tolist() == [True, False, True]
    assert influence.group_sizes("dataset") == [2]
    assert influence.group_sizes("batch") == [2, 2]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"features": torch.zeros(3, 4)}, "`features` of shape"),
        ({"targets": torch.zeros(3, 2)}, "`targets` of shape"),
        ({"ids": torch.zeros(2)}, "`ids` of shape"),
        ({"poisonable": torch.ones(2, dtype=torch.bool)}, "`poisonable` of shape"),
        ({"features": torch.full((3, 2), torch.nan)}, "finite `features`"),
    ],
)
def test_wrong_batches_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        recorder_with(keywords)


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        recorder_with().influence()
    with pytest.raises(ValueError, match="`initial` of shape"):
        HeadRecorder(torch.zeros(3), bias=True)


def test_maximize_is_refused():
    group = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, maximize=True).param_groups[0]
    with pytest.raises(UncertifiableError, match="maximize=False"):
        SGDSettings.of_group(group)


def test_a_table_that_did_not_count_equal_content_leaves_the_batch_budget_only():
    table, named = SampleTable(), SampleTable()
    table.rows(FEATURES, TARGETS, epoch=0)
    named.rows(FEATURES, TARGETS, ids=torch.arange(3), epoch=0)
    old, old_named = ({k: v for k, v in each.state().items() if k != "times"} for each in (table, named))
    assert "how often" in SampleTable.restored(old).problem
    assert SampleTable.restored(old_named).problem is None


def test_bfloat16_has_a_content():
    digests = content_digests([torch.tensor([1.0, 1.0, 2.0], dtype=torch.bfloat16)])
    assert torch.equal(digests[0], digests[1])
    assert not torch.equal(digests[0], digests[2])
