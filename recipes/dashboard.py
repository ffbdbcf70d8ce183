r"""The Weights & Biases dashboard of the recipes, in code.

Certified, nominal and best curves, curves of sweeps over n, widths, pictures and certificates of all runs of a project.

    python -m recipes.dashboard --entity TEAM --project agt_lightning      saves the view; needs an account
    python -m recipes.dashboard --offline dashboard.json                   writes what it would save; needs nothing

The first needs ``pip install agt-lightning[dashboard]``.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAME = "Certificates against data poisoning"


def specification() -> dict[str, Any]:
    """Return the dashboard as plain data: a name, and sections with panels, each of a kind with arguments.

    Example:
        >>> [section["name"] for section in specification()["sections"]]
        ['Certified accuracy', 'Certified error', 'Sweeps', 'Bounds', 'Pictures and training']
    """
    return {
        "name": NAME,
        "sections": [
            _section(
                "Certified accuracy",
                _lines(
                    "Validation accuracy: nominal and certified",
                    "agt/val_nominal_accuracy",
                    "agt/val_certified_accuracy",
                ),
                _bars("Certified accuracy on test", "certified accuracy", "nominal accuracy"),
                _scatter("Certified accuracy against n", "adversary.n", "certified accuracy"),
            ),
            _section(
                "Certified error",
                _lines(
                    "MSE after every step: worst, nominal, best",
                    "steps/worst MSE",
                    "steps/nominal MSE",
                    "steps/best MSE",
                    log_y=True,
                ),
                _bars("MSE on test", "worst MSE", "nominal MSE", "best MSE"),
                _scatter("Worst MSE against n", "adversary.n", "worst MSE"),
            ),
            _section(
                "Sweeps",
                {"kind": "MediaBrowser", "title": "Figures of sweeps", "media_keys": ["strengths"]},
                _curve("certified accuracy"),
                _curve("worst MSE"),
            ),
            _section(
                "Bounds",
                _lines("Mean width of the box", "agt/mean_width", log_y=True),
                _lines("Radius of the ball", "agt/radius", log_y=True),
                {"kind": "WeavePanelSummaryTable", "table_name": "widths"},
            ),
            _section(
                "Pictures and training",
                {"kind": "MediaBrowser", "title": "Figures", "media_keys": ["figure"]},
                {"kind": "MediaBrowser", "title": "Certificates, for readers", "media_keys": ["report"]},
                _lines("Training loss", "train/loss", "train/mse"),
            ),
        ],
    }


def _section(name: str, *panels: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "panels": list(panels)}


def _lines(title: str, *metrics: str, log_y: bool = False) -> dict[str, Any]:
    return {"kind": "LinePlot", "title": title, "x": "trainer/global_step", "y": list(metrics), "log_y": log_y}


def _bars(title: str, *metrics: str) -> dict[str, Any]:
    return {"kind": "BarPlot", "title": title, "metrics": list(metrics)}


def _scatter(title: str, setting: str, result: str) -> dict[str, Any]:
    return {"kind": "ScatterPlot", "title": title, "x": {"config": setting}, "y": {"summary": result}}


def _curve(result: str) -> dict[str, Any]:
    """Return the chart of a result against n that `recipes.runs.publish_sweep` logs, a line for each setting."""
    return {
        "kind": "CustomChart",
        "query": {"summaryTable": {"tableKey": f"curve/{result}_table"}},
        "chart_name": "wandb/lineseries/v0",
        "chart_fields": {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
        "chart_strings": {"title": f"{result} against n", "xname": "n"},
    }


def workspace(specification: Mapping[str, Any], entity: str, project: str) -> Any:
    """Return the dashboard as an object of wandb-workspaces; nothing is sent.

    Args:
        specification: plain data, as of `specification`.
        entity: team or user.
        project: of the runs.

    Raises:
        ModuleNotFoundError: without wandb-workspaces.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    def built(panel: Mapping[str, Any]) -> Any:
        arguments = {name: _reference(value, panels) for name, value in panel.items() if name != "kind"}
        return getattr(panels, panel["kind"])(**arguments)

    sections = [
        workspaces.Section(name=section["name"], panels=[built(panel) for panel in section["panels"]], is_open=True)
        for section in specification["sections"]
    ]
    return workspaces.Workspace(name=specification["name"], entity=entity, project=project, sections=sections)


def _reference(value: Any, panels: Any) -> Any:
    """Return a reference to a setting or a result of a run, if a panel needs one; else the value."""
    match value:
        case {"config": name}:
            return panels.Config(name)
        case {"summary": name}:
            return panels.SummaryMetric(name)
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.dashboard``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", help="team or user of Weights & Biases")
    parser.add_argument("--project", default="agt_lightning", help="project of the runs")
    parser.add_argument("--offline", type=Path, metavar="PATH", help="write the dashboard as JSON instead of saving it")
    chosen = parser.parse_args(arguments)
    if chosen.offline is not None:
        chosen.offline.parent.mkdir(parents=True, exist_ok=True)
        chosen.offline.write_text(json.dumps(specification(), indent=2) + "\n")
        print(f"Written:\n  {chosen.offline}")
    elif chosen.entity is None:
        parser.error("--entity is needed to save the dashboard; --offline PATH writes it to a file instead")
    else:
        view = workspace(specification(), chosen.entity, chosen.project)
        view.save()
        print(f"Saved:\n  {view.url}")


if __name__ == "__main__":
    main()
