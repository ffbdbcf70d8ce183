r"""Train household power consumption once per domain, and draw what each certifies in one picture.

The same network, data and seed; only what is kept beside the training differs. A run whose certificate says nothing any
more (`callbacks.mse_over_steps.stop_above`) ends there.

    python -m recipes.household_domains experiment=household_domains data.root=path/to/data
    python -m recipes.household_domains experiment=household_domains adversary.epsilon=0 adversary.nu=.02 \
            trainer.max_steps=92 "comparison.domains=[[ball]]"
"""

import csv
from pathlib import Path

import hydra
from omegaconf import DictConfig

from recipes.figures.domain_comparison import draw_domain_comparison
from recipes.runs.run import Run
from recipes.runs.steps import recorded
from recipes.table import table
from recipes.train import run_experiment, train


def compare(config: DictConfig) -> dict[str, Run]:
    """Train once per choice of domains, draw all runs, and print what is certified at the end of each.

    Args:
        config: ``conf/train.yaml``, composed, with ``comparison.domains`` a list of lists of domains.
    """
    folder = Path(config.output_dir)
    runs = {" and ".join(domains): train(with_domains(config, list(domains))) for domains in config.comparison.domains}
    draw_domain_comparison(runs, folder / "figure.png")
    write_steps(runs, folder / "steps.csv")
    rows = {
        f"{name}, {len(recorded(run)) - 1} steps": "  ".join(f"{key} {value:.4g}" for key, value in run.results.items())
        for name, run in runs.items()
    }
    print(f"\nAll domains, drawn in {folder / 'figure.png'}:", table(rows), sep="\n", flush=True)
    return runs


def with_domains(config: DictConfig, domains: list[str]) -> DictConfig:
    """The same experiment with other domains, in a subfolder of its own."""
    changed = config.copy()
    changed.callbacks.certified.domains = domains
    changed.output_dir = str(Path(config.output_dir) / "-".join(domains))
    return changed


def write_steps(runs: dict[str, Run], path: Path) -> None:
    """One row per domain and step, as `MSEOverSteps` recorded them."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["domains", "step", *recorded(next(iter(runs.values())))[0]])
        for name, run in runs.items():
            writer.writerows([name, step, *values.values()] for step, values in enumerate(recorded(run)))


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of ``python -m recipes.household_domains``."""
    run_experiment(compare, config)


if __name__ == "__main__":
    main()
