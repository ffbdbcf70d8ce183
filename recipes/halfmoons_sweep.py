r"""Train half-moons against several strengths of an adversary and draw their certified regions together (figure 1).

The configured adversary's run goes to ``output_dir`` as with `recipes.train`, every other strength to a subfolder; the
picture in ``output_dir`` shows all of them. One command for each of the paper's four pictures:

    (a) python -m recipes.halfmoons_sweep
    (b) python -m recipes.halfmoons_sweep strengths.setting=epsilon strengths.levels=[.05,.1,.15,.2] \
            adversary.n=10 adversary.epsilon=.1
    (c) python -m recipes.halfmoons_sweep adversary=label_flips strengths.levels=[1,3,5,7]
    (d) python -m recipes.halfmoons_sweep adversary=label_flips adversary.epsilon=.1 strengths.levels=[1,3,5,7]
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from recipes.figures.certified_regions import draw_certified_regions
from recipes.run import Run
from recipes.strengths import label
from recipes.table import table
from recipes.train import run_experiment, train


def sweep(config: DictConfig) -> list[Run]:
    """Train once per strength, draw all runs, and print what is certified of each.

    Args:
        config: ``conf/train.yaml``, composed, with ``strengths.setting`` the adversary's argument that varies and
            ``strengths.levels`` its values.
    """
    setting, folder = config.strengths.setting, Path(config.output_dir)
    config.figure = None  # one picture for all
    runs = [train(config)]
    runs += [
        train(with_strength(config, value)) for value in config.strengths.levels if value != config.adversary[setting]
    ]
    runs.sort(key=lambda run: getattr(run.adversary, setting))
    draw_certified_regions(runs, folder / "figure.png")
    rows = {
        label(run.adversary, setting): "  ".join(f"{name} {value:.4f}" for name, value in run.results.items())
        for run in runs
    }
    print(f"\nAll strengths, drawn in {folder / 'figure.png'}:", table(rows), sep="\n", flush=True)
    return runs


def with_strength(config: DictConfig, value: float) -> DictConfig:
    """The same experiment against another strength, in a subfolder of its own."""
    setting = config.strengths.setting
    changed = config.copy()
    changed.adversary[setting] = value
    changed.output_dir = str(Path(config.output_dir) / f"{setting}={value}")
    return changed


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of ``python -m recipes.halfmoons_sweep``."""
    run_experiment(sweep, config)


if __name__ == "__main__":
    main()
