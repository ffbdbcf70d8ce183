"""What every certificate assumes and nothing checks: the list of docs/explanation/guarantee.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agt_lightning.adversaries import Adversary
from agt_lightning.adversaries.base import counted, counted_in, inserts_and_deletes


@dataclass(frozen=True)
class Assumption:
    """Something that must hold for a certificate to be valid, and that no check can prove.

    Args:
        name: a few words.
        sentence: what must hold.
    """

    name: str
    sentence: str


ASSUMPTIONS = (
    Assumption(
        "the budget",
        "The adversary changes at most n samples of each optimizer step's batch, different ones in each step if it "
        "likes; n is counted per batch, not per data set. A sample is one row of all tensors of the batch, and the "
        "batch is that of all accumulated micro-batches and all processes together.",
    ),
    Assumption(
        "where samples are changed",
        "Batches are perturbed as they enter `training_step`, after transforms and transfer hooks. What these took "
        "from the data set (means, vocabularies, principal components) is the same in every run.",
    ),
    Assumption(
        "what is changed",
        "The adversary changes tensors of the batch within its limits. All other entries (numbers, strings, lists and "
        "other objects) are the same in every run.",
    ),
    Assumption(
        "order and number of steps",
        "Architecture, settings of the optimizer (learning rates among them), order and members of the batches but for "
        "the samples that the adversary changes, number of steps, and the step whose weights are used are the same in "
        "every run. No callback, hook or sampler of the user's own stops training, changes a rate, or chooses samples "
        "or weights by the data, the loss or a metric.",
    ),
    Assumption(
        "no sample twice",
        "No sample is drawn twice for one optimizer step. Samplers of PyTorch and Lightning are checked; code of the "
        "user's own that draws samples is not.",
    ),
    Assumption(
        "samples of the whole data set",
        "`certified_flips` counts samples as `sample_ids` names them, or, without names, distinct pairs of features "
        "and target; then no transform changes a sample that is drawn several times in the first epoch.",
    ),
    Assumption(
        "the start",
        "Initial parameters are the same in every run: the adversary had no influence on data that they were "
        "trained on before.",
    ),
    Assumption(
        "what else is read",
        "Whatever `training_step` and `forward` read besides batch and parameters (attributes, buffers, what `setup` "
        "computed, globals, the data module) is the same in every run. A class weight computed from the training "
        "labels is not. Only attributes of the module, the clock and learning rates may change during training; "
        "the rest is looked at again now and then.",
    ),
    Assumption(
        "one path through the code",
        "`training_step` computes the same loss in every run, whatever branches it takes. Where recording sees that "
        "code looks at values, each outcome leads to that loss or ends the run; elsewhere the code is tried on "
        "perturbed batches and with other numbers, which is a test, not a proof.",
    ),
    Assumption(
        "hooks",
        "Hooks and callbacks, before and after the optimizer's step too, leave batches, gradients and parameters alone "
        "in every run. They are tried on large gradients and parameters; that is a test, not a proof.",
    ),
    Assumption(
        "random numbers",
        "Dropout and random calls of `training_step` draw the same numbers in every run, from the same seeds; so do "
        "random transforms.",
    ),
    Assumption(
        "runs that end",
        "Only runs that end are bounded. An adversary can stop a run with an error, for example by NaN or a label that "
        "is no class.",
    ),
    Assumption(
        "extensions",
        "Rules of operations, domains and adversaries that do not come with this package are sound.",
    ),
)
"""Assumptions of every certificate."""

_A_SAMPLE = (
    "A sample is one row of all tensors of the batch, and the batch is that of all accumulated micro-batches and all "
    "processes together."
)

_WHOSE = (
    "`sources` names whom each sample of this run comes from: nobody puts samples under the name of another source."
)

OF_SOURCES = Assumption(
    'if `counts` is "sources", in place of the first',
    "The adversary changes samples of at most n sources in each optimizer step's batch, of other sources in each step "
    f"if it likes, and of these sources as many samples as it likes. {_WHOSE} {_A_SAMPLE}",
)

OF_DATASET = Assumption(
    'if `per` is "dataset", in place of the first',
    "The adversary changes at most n samples of the data set, the same ones in all steps; n is counted per data set, "
    "not per batch. A label that it writes is the same in all epochs. In each epoch a sample is at most one row of all "
    "tensors of one batch, that of all accumulated micro-batches and all processes together; samplers of "
    "PyTorch and Lightning are checked.",
)

OF_SOURCES_OF_DATASET = Assumption(
    'if `counts` is "sources" and `per` is "dataset", in place of the first',
    "The adversary changes samples of at most n sources, the same ones in all steps, and of these sources as many "
    f"samples as it likes. {_WHOSE} {_A_SAMPLE}",
)

OF_BUDGETS: Mapping[tuple[str, str], Assumption] = {
    ("samples", "batch"): ASSUMPTIONS[0],
    ("sources", "batch"): OF_SOURCES,
    ("samples", "dataset"): OF_DATASET,
    ("sources", "dataset"): OF_SOURCES_OF_DATASET,
}
"""The first assumption of a certificate, by what the adversary's n counts, and where."""

NO_INSERTIONS = Assumption(
    'unless `edits` is "insert-delete"',
    "Samples are substituted or perturbed in place; none is inserted or deleted.",
)

MADE_BY_CONTENT = Assumption(
    'if `edits` is "insert-delete"',
    "In every run each sample is in the batch that its own content decides, whatever other samples there are, as "
    "`ContentBatches` makes them; at most n samples of each batch are inserted or deleted. What `training_step` gets "
    "of a sample does not depend on other samples: transforms draw no random numbers from a common generator. No code "
    "but a mean over the batch looks at how many samples a batch or the data set has.",
)

FLOAT_RUNS = Assumption(
    'if `floats` is "run", the default',
    "Runs compute in the types of the recorded program by IEEE arithmetic that rounds to nearest, with products and "
    "sums in any order; not by Strassen's, Winograd's or Fourier's algorithms, nor with factors or sums cut to fewer "
    "bits. Elementary functions are right within the units that docs/floats.md lists, and so is torch's documentation.",
)

REAL_RUNS = Assumption(
    'if `floats` is "real"',
    "Bounds hold for runs in real arithmetic: a run on hardware can leave them by its rounding errors.",
)

OWN_OBJECTIVE = Assumption(
    "if `certified_objective` is overridden",
    "`certified_objective` has the gradient of the loss of `training_step` in every run. On the data of this run that "
    "is checked at every step.",
)

NAMED_SAMPLES = Assumption(
    "if `poisonable` or `sample_ids` is given",
    "`poisonable` and `sample_ids` name the same samples in every run, and samples that `poisonable` leaves out are "
    "clean.",
)

EVALUATED_AS_IT_IS = Assumption(
    "if a frozen part has operations without rules",
    "What neither poison nor training reaches, and has operations without rules, is computed to the same bits in every "
    "run: on the same hardware and versions, by deterministic algorithms.",
)


def assumptions(
    adversary: Adversary,
    *,
    own_objective: bool = False,
    named_samples: bool = False,
    real: bool = False,
    evaluated: bool = False,
) -> list[str]:
    """Return all assumptions of one certificate, in words.

    Args:
        adversary: the threat model, which may add its own.
        own_objective: whether `certified_objective` was certified in place of `training_step`, at any step.
        named_samples: whether `poisonable` or `sample_ids` was given, at any step.
        real: whether bounds are about runs in real arithmetic, at any step.
        evaluated: whether some part was evaluated as it is, without rules, at any step.
    """
    edited = inserts_and_deletes(adversary)
    conditional = (
        (NO_INSERTIONS, not edited),
        (MADE_BY_CONTENT, edited),
        (FLOAT_RUNS, not real),
        (REAL_RUNS, real),
        (OWN_OBJECTIVE, own_objective),
        (NAMED_SAMPLES, named_samples),
        (EVALUATED_AS_IT_IS, evaluated),
    )
    first = OF_BUDGETS[counted(adversary), counted_in(adversary)]
    listed = [first, *ASSUMPTIONS[1:], *(assumption for assumption, applies in conditional if applies)]
    return [*(assumption.sentence for assumption in listed), *adversary.assumptions]
