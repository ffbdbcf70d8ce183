"""Code of the user's that gradients pass through on their way back, which no recorded graph contains."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node
from torch.nn.modules._functions import BackwardHookFunction


def gradient_problem(nodes: Iterable[Node]) -> str | None:
    """Return why the gradient of a result is not the one of the recorded calls; None if it is.

    Args:
        nodes: the autograd graph of the result.
    """
    for node in nodes:
        if not isinstance(node, BackwardCFunction):
            continue
        function: type = type(node)._forward_cls
        if issubclass(function, BackwardHookFunction):
            return (
                "A module has a full backward hook, which can change gradients in another run. Remove it; to log "
                "gradients, use `on_before_optimizer_step`."
            )
        if not function.__module__.startswith("torch."):
            return (
                f"`{function.__qualname__}` is a `torch.autograd.Function` with its own backward pass, which has no "
                "bounds. Write its forward pass with torch's functions, whose derivatives are known."
            )
    return None


def autograd_nodes(result: Tensor) -> list[Node]:
    """Return all nodes of the autograd graph that reach a tensor."""
    stack = [result.grad_fn]
    seen: dict[Node, None] = {}
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen[node] = None
            stack.extend(following for following, _ in node.next_functions)
    return list(seen)
