"""What every linear relaxation must obey, on the settings of the rules."""

import torch
from torch import Tensor

from agt_lightning.interval import Interval
from agt_lightning.propagation import propagate_forward
from agt_lightning.propagation.crown import Substitution
from agt_lightning.propagation.crown.concretize import flat_rows
from agt_lightning.rules import RULES
from tests.propagation.crown.slopes import SLOPES
from tests.rules.laws import POINTS, Setting, build, corner, draw_domain, inputs_of, inside, run, slack

ROWS = 5


def forms_contain_sampled_points(setting: Setting, *, points: bool = False, dtype: torch.dtype = torch.float64) -> None:
    """Linear forms of the result are nowhere above their bounds, whatever the lower lines."""
    program = build(setting, RULES)
    generator = torch.Generator().manual_seed(1)
    for seed, slopes in enumerate(SLOPES.values()):
        domain = draw_domain(setting, dtype, seed)
        if points:
            fixed = {name: Interval.point(inside(generator)(box).to(dtype)) for name, box in domain.parameters.items()}
            domain = type(domain)(domain.leaves, fixed, domain.seed)
        values = propagate_forward(program, inputs_of(program, domain))
        result = values[program.graph.output]
        assert isinstance(result, Interval)
        rows = torch.randn(result.shape[0], ROWS, *result.shape[1:], generator=generator, dtype=torch.float64)
        bound = Substitution(program, slopes).largest(values, program.graph.output, rows.to(dtype))
        allowed = slack(result) * float(rows.abs().sum() / rows.shape[0] / ROWS)
        for _ in range(POINTS):
            for choose in (inside(generator), corner(generator)):
                require_below(setting, rows, run(setting, domain, choose).output, bound, allowed)


def require_below(setting: Setting, rows: Tensor, output: Tensor, bound: Tensor, allowed: float) -> None:
    """Raise unless ``⟨rows, output⟩ <= bound``."""
    excess = flat_rows(rows * output.unsqueeze(1)).sum(2) - bound.double()
    assert bool((excess <= allowed).all()), f"{setting}: a form exceeds its bound by {float(excess.max()):.3g}"
