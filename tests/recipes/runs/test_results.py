import json

import pytest

from recipes.runs import results
from recipes.runs.results import FILE, Result, fingerprint, settings

VALUES = {"certified accuracy": 0.5}


def test_result_is_read_as_it_was_written(composed, tmp_path):
    result = Result.of(composed("panel=a", "level=2", "adversary.p=.inf"), VALUES, 1.5)
    assert result.save(tmp_path) == tmp_path / FILE
    assert Result.load(tmp_path) == result
    assert (result.panel, result.level, result.values) == ("a", 2, VALUES)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_nothing_is_finished_without_the_file(composed, tmp_path):
    assert Result.load(tmp_path) is None


def test_a_stop_while_writing_leaves_nothing(composed, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("recipes.runs.results.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        Result.of(composed(), VALUES, 1.0).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "another"}', '{"format": "agt_lightning result 1"}'])
def test_another_file_is_refused_by_name(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=r"Expected the result of a training in .*result.json"):
        Result.load(tmp_path)


@pytest.mark.parametrize(
    "override",
    ["adversary.n=7", "seed=1", "data.samples=50", "model.hidden=[9]", "optimizer.lr=1", "trainer.max_epochs=2",
     "callbacks.certified.domains=[box]", "certificate.epsilon=0.1", "figure=none"],
)  # fmt: skip
def test_what_changes_the_result_changes_the_fingerprint(composed, override):
    assert fingerprint(composed(override)) != fingerprint(composed())


@pytest.mark.parametrize("override", ["output_dir=elsewhere", "logger=none", "trainer.enable_progress_bar=false"])
def test_where_files_go_and_what_is_shown_does_not(composed, override):
    assert fingerprint(composed(override)) == fingerprint(composed())


def test_other_code_has_another_fingerprint(composed, monkeypatch):
    before = fingerprint(composed())
    monkeypatch.setattr(results, "code", lambda: "another")
    assert fingerprint(composed()) != before


def test_settings_are_flat_and_name_no_folder(composed, tmp_path):
    found = settings(composed("model.hidden=[3,4]"))
    assert found["model.hidden"] == [3, 4]
    assert found["adversary.n"] == 100
    assert str(tmp_path) not in json.dumps(found)
