"""Certified regions of half-moons in several panels, one for each kind of adversary (figure 1)."""

from pathlib import Path

from recipes.figures.canvas import heading, save
from recipes.figures.certified_regions import draw_plane
from recipes.figures.panels import Panels, level_name, panel_axes, rows_of_panels
from recipes.runs.regions import FILE, Regions

_SIZE = (6.0, 4.9)


def draw_region_panels(folder: Path, panels: Panels, path: Path, across: int = 2) -> Path:
    """Draw the sweep's panels, with certified accuracy in the legends.

    Args:
        folder: of the sweep, gathered; the points have recorded their regions.
        panels: of the configuration, each with a title.
        path: the file to write.
        across: panels in a row.

    Returns:
        ``path``.
    """
    found = rows_of_panels(folder, panels)
    figure, axes = panel_axes(len(found), across, _SIZE)
    for (name, rows), plane in zip(found.items(), axes, strict=True):
        regions = {
            f"{level_name(panels[name], row)}: certified {float(row['certified accuracy']):.3f}": Regions.load(
                folder / row["point"] / FILE
            )
            for row in rows
        }
        draw_plane(plane, regions)
        plane.set_title(f"({name}) {panels[name]['title']}", fontsize="medium")
    nominal = ", ".join(sorted({f"{float(row['nominal accuracy']):.3f}" for rows in found.values() for row in rows}))
    heading(figure, f"Half-moons: where the prediction is not certified (nominal test accuracy {nominal})")
    return save(figure, path)
