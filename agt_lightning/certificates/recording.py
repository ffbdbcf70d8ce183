"""The recording of a network's `forward`, for one tensor of inputs and one tensor of outputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from agt_lightning.capture import Call, Graph, capture, flatten
from agt_lightning.capture.replica import replica
from agt_lightning.errors import CaptureError, UncertifiableError
from agt_lightning.propagation import Program
from agt_lightning.rules.base import name_of

SUBJECT = "The outputs of `forward`"
"""What cannot be certified, in messages."""

_WAY_OUT = "Remove that call from `forward`, or certify a module whose `forward` does without it."


def record_forward(module: nn.Module, x: Tensor, output: str | int | None = None) -> Graph:
    """Record the calls of `forward` in `eval` mode.

    Args:
        module: a replica, which is switched to `eval` mode.
        x: example inputs, (batch, ...).
        output: key, attribute or position of the outputs in what `forward` returns; None if it returns one tensor.

    Returns:
        The graph of the outputs.

    Raises:
        CaptureError: if `forward` cannot be recorded.
        UncertifiableError: if `forward` takes more than one input, or returns several tensors and ``output`` is None.
        ValueError: if ``output`` names no tensor.
    """
    module = module.eval()
    _require_one_input(module)
    refusals: list[Exception] = []

    def forward(leaves: Sequence[Tensor]) -> Tensor:
        result = module(leaves[0])
        try:
            return _chosen(result, output)
        except (UncertifiableError, ValueError) as error:
            refusals.append(error)
            raise

    try:
        return capture(module, forward, [x], _WAY_OUT)
    except CaptureError as error:
        if refusals:
            raise refusals[0] from None
        if isinstance(error.__cause__, NotImplementedError) and "forward" in str(error.__cause__):
            problem = (
                f"Expected outputs of `forward`, but there is none: {error.__cause__}. Give the module a method "
                "`forward(self, x)` that returns the outputs to certify; training does not need it."
            )
            raise UncertifiableError([problem], SUBJECT) from error
        raise error


def outputs_of(module: nn.Module, x: Tensor, output: str | int | None = None) -> Tensor:
    """Return the outputs of a copy of a module in `eval` mode; see `record_forward`."""
    with torch.no_grad():
        return _chosen(replica(module).eval()(x.detach()), output)


def forward_problems(program: Program, size: int) -> list[str]:
    """Return why a recording of `forward` has no bounds, each with its way out.

    Args:
        program: the recording.
        size: number of samples that it is for.
    """
    graph = program.graph
    if graph.masks:
        return [
            "`forward` draws a dropout mask in `eval` mode as well. Use `nn.Dropout`, or `F.dropout(x, p, "
            "training=self.training)`."
        ]
    per_sample = graph.output in program.samples and graph.shapes[graph.output][:1] == (size,)
    if per_sample and not program.problems:
        return []
    mixing = next((call for call in graph.calls if call.name in program.samples and call.shape[:1] != (size,)), None)
    if mixing is not None:
        return [_mixing_problem(mixing, size)]
    return list(program.problems) or [
        f"`forward` returns shape {graph.shapes[graph.output]} for a batch of {size}, from no value of that batch. "
        "Return an output of each sample."
    ]


def _mixing_problem(call: Call, size: int) -> str:
    return (
        f"`{name_of(call)}` at {call.source} turns a batch of {size} into shape {call.shape}. Let `forward` return a "
        "result for each sample alone, with the batch as first axis."
    )


def _require_one_input(module: nn.Module) -> None:
    try:
        inspect.signature(module.forward).bind(torch.empty(0))
    except TypeError as error:
        problem = (
            f"`forward` needs other arguments than one tensor of inputs ({error}). Give them defaults, or join the "
            "inputs in one tensor that `forward` splits."
        )
        raise UncertifiableError([problem], SUBJECT) from None


def _chosen(result: object, output: str | int | None) -> Tensor:
    """Return the tensor of outputs in what `forward` returned."""
    if output is None:
        return _only_tensor(result)
    found = None if isinstance(result, Tensor) else _entry(result, output)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"Expected `output` to name a tensor in what `forward` returns, {_describe(result)}, but got {output!r}. "
            "Give its key, attribute or position, or None if `forward` returns one tensor."
        )
    return found


def _only_tensor(result: object) -> Tensor:
    tensors, _ = flatten(result)
    if len(tensors) == 1:
        return tensors[0]
    if not tensors:
        raise UncertifiableError([f"`forward` returns {_describe(result)}. Return a tensor of outputs."], SUBJECT)
    raise UncertifiableError(
        [
            f"`forward` returns {_describe(result)}, and one tensor of outputs is expected. Name it: "
            "`certified_model(output=...)` or `CertifiedModel(..., output=...)`, with its key, attribute or position."
        ],
        SUBJECT,
    )


def _entry(result: object, output: str | int) -> object:
    """Return an entry of a mapping or sequence, or an attribute; None if there is none."""
    if isinstance(result, Mapping):
        return result.get(output)
    if isinstance(output, str):
        return getattr(result, output, None)
    if isinstance(result, tuple | list) and -len(result) <= output < len(result):
        return result[output]
    return None


def _describe(result: object) -> str:
    if isinstance(result, Tensor):
        return "one tensor"
    if isinstance(result, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, result))}"
    if isinstance(result, tuple | list):
        return f"a {type(result).__name__} of {len(result)} entries"
    return f"an object of type {type(result).__name__} with {len(flatten(result)[0])} tensors"
