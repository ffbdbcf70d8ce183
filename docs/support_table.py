"""Write the table of supported operations, ``docs/support.md``, from the table of rules.

python docs/support_table.py
"""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from agt_lightning import rules
from agt_lightning.rules import RULES, Monotone, PiecewiseMonotone, Rule

TARGET = Path(__file__).with_name("support.md")

HEAD = """\
# Supported operations

Every operation that a training step makes on values of the batch needs a rule: bounds of its result and of its
gradient. The table is keyed by ATen overload, as `torch.export` records them. Operations on parameters, buffers or
constants that never meet the batch need none, nor do element-wise calls on integers, such as `labels - 1` and
`labels == 3`, which are computed as they are. What is missing is refused before training starts, with the line of
code that calls it; [add a rule of your own](rules.md) for it.

A parameter may be changed before it meets the data (`x + self.position[:, :t]`, `x * self.scale.exp()`) by calls of the
table that act element by element or move elements; its gradient is taken back through them. `nn.LSTM`, `nn.GRU` and
`nn.RNN` are unrolled into the products and activations of each time step; they need `batch_first=True`, zeros as first
state; dropout between layers on a CPU alone. `nn.LSTMCell`, `nn.GRUCell` and `nn.RNNCell` start from any state.

The samples need not stay on axis 0. Code may fold them into another axis (`x.view(b * t, d)`, a loss over `b * t`
tokens, windows of an image) or move them (`(t, b, d)`, as `nn.MultiheadAttention` and `nn.TransformerEncoder` do
inside, heads as in `qkv.permute(2, 0, 3, 1, 4)`): calls in between that act on each sample alone are rewritten so that
the samples are first. So are values that are repeated for each sample, such as `self.cls_token.expand(len(x), -1, -1)`
and `torch.zeros(len(x), 1)`. Masks of attention may hide keys, by False or minus infinity, if no poison reaches them.
Dropout inside of attention and between recurrent layers is followed on a CPU; on other devices, whose kernels draw in
their own way, it is refused. So are dropout of values whose samples are elsewhere, and convolutions or batch statistics
over a folded axis.

Calls that torch makes of other calls (`einsum`, `kl_div`, `cosine_similarity`, `pairwise_distance`,
`triplet_margin_loss`, `margin_ranking_loss`, `poisson_nll_loss`, `multi_margin_loss`, `cosine_embedding_loss`,
`gaussian_nll_loss`, `alpha_dropout`, standard deviations, weight normalization) are written out as these. Random
numbers of a fixed distribution (`randn_like`, `rand`, `randint`, `torch.distributions.Normal.rsample`) are drawn again,
as dropout is. A penalty of parameters alone, such as `0.01 * sum(p.square().sum() for p in self.parameters())`, is
bounded under the box.

Batch normalization in training mode has no line in the table, since it takes all samples together: it is covered for
`BoundedAdversary` with `domains=["box"]` and `method="ibp"` in one process ([theory.md](theory.md), section 16).
The same holds of losses over a number of the batch: the root of a mean, such as `torch.sqrt(F.mse_loss(z, y) + 1e-6)`,
and class weights of `cross_entropy` with a mean, for logits of shape (batch, classes) and labels without smoothing.

Samples that are replaced, inserted or deleted (`UnboundedAdversary`) are covered by the box, and with `clip="norm"` by
the ball for one trained linear layer ([theory.md](theory.md), section 10.12); adjoint and influence refuse them.

*Exact* means that each bound, taken alone, is attained for some input in the box, up to rounding of the bounds'
arithmetic. All other rules say what they lose. Every rule refuses a call that cuts or mixes
the samples' axis, or moves it where the calls behind cannot be followed.

This file is written by `python docs/support_table.py`.

| operation | rule | bounds |
|---|---|---|
"""


def document() -> str:
    """The whole file."""
    notes = dict(_notes())
    lines = [f"| `{op}` | `{type(rule).__name__}` | {_note(rule, notes)} |" for op, rule in RULES.items()]
    return HEAD + "\n".join(sorted(lines)) + "\n"


def _note(rule: Rule, notes: dict[int, str]) -> str:
    """First line of the docstring under the rule's definition, or else of its class."""
    text = notes.get(id(rule)) or (inspect.getdoc(type(rule)) or "").splitlines()[0]
    if isinstance(rule, Monotone | PiecewiseMonotone):
        text = f"{text.rstrip('.')}; exact."
    return text.replace("``", "`").replace("|", "\\|")


def _notes() -> Iterator[tuple[int, str]]:
    """Docstrings under assignments such as ``relu = ...``, by identity of the rule."""
    for module in _modules():
        body = ast.parse(inspect.getsource(module)).body
        for statement, after in zip(body[:-1], body[1:], strict=True):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(statement, ast.Assign) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                name = ast.unparse(statement.targets[0])
                yield id(getattr(module, name)), text.value.strip().splitlines()[0]


def _modules() -> Iterator[ModuleType]:
    for module in pkgutil.iter_modules(rules.__path__, f"{rules.__name__}."):
        yield importlib.import_module(module.name)


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
