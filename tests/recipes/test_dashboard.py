import json

import pytest

from recipes.dashboard import main, specification, workspace


def panels():
    return [panel for section in specification()["sections"] for panel in section["panels"]]


def test_offline_writes_the_specification(tmp_path, capsys):
    path = tmp_path / "new" / "dashboard.json"
    main(["--offline", str(path)])
    assert json.loads(path.read_text()) == specification()
    assert str(path) in capsys.readouterr().out


def test_saving_needs_an_entity(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--offline PATH writes it" in capsys.readouterr().err


def test_certified_curves_widths_and_pictures_are_shown():
    shown = {name for panel in panels() for name in panel.get("y", []) if panel["kind"] == "LinePlot"}
    assert shown >= {"agt/val_certified_accuracy", "agt/val_nominal_accuracy", "agt/mean_width"}
    assert shown >= {f"steps/{case} MSE" for case in ("best", "nominal", "worst")}
    assert any(panel.get("table_name") == "widths" for panel in panels())
    assert any(panel.get("media_keys") == ["figure"] for panel in panels())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_specification_becomes_a_workspace_without_network():
    pytest.importorskip("wandb_workspaces.workspaces")
    view = workspace(specification(), "team", "project")
    assert [section.name for section in view.sections] == [s["name"] for s in specification()["sections"]]
    built = [panel for section in view.sections for panel in section.panels]
    assert [type(panel).__name__ for panel in built] == [panel["kind"] for panel in panels()]
    assert view._to_model().project == "project"
