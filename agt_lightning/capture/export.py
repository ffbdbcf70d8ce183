"""Capture of a computation with `torch.export`, in a normal form."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from agt_lightning.capture.batch_statistics import by_batch_statistics
from agt_lightning.capture.composed import composed
from agt_lightning.capture.data_reads import DATA_DEPENDENT, depends_on_size, require_known_inputs
from agt_lightning.capture.disguise import observed, quiet
from agt_lightning.capture.draws import draws_of, generator_states
from agt_lightning.capture.dropout import masked
from agt_lightning.capture.explorer import Explorer
from agt_lightning.capture.functional import functional, nodes
from agt_lightning.capture.gradient_hooks import autograd_nodes, gradient_problem
from agt_lightning.capture.gradient_modes import inline_blocks, keep_gradient_modes, stops_gradients
from agt_lightning.capture.graph import SATURATING, UNDERFLOWING, Call, Graph, Reference
from agt_lightning.capture.hidden import finite_scores
from agt_lightning.capture.likelihoods import plainly_cut
from agt_lightning.capture.lookups import lookups
from agt_lightning.capture.reader import IDENTITIES, GraphReader
from agt_lightning.capture.recording import Recording, UnprovenCheckError
from agt_lightning.capture.recurrent import unrolled
from agt_lightning.capture.reductions import distributed, reduced, unweighted
from agt_lightning.capture.rewriting import renamed
from agt_lightning.capture.samples_first import samples_first
from agt_lightning.capture.shared_layers import shared_statistics
from agt_lightning.capture.source import as_forward, line_of
from agt_lightning.capture.totals import rooted
from agt_lightning.capture.traces import no_traces
from agt_lightning.capture.written import Watch
from agt_lightning.errors import CaptureError

_aten = torch.ops.aten

_PRODUCTS = frozenset({_aten.matmul.default, _aten.mm.default, _aten.addmm.default})
_TRANSPOSES = frozenset(
    {_aten.t.default, _aten.numpy_T.default, _aten.mT.default, _aten.transpose.int, _aten.permute.default}
)

_MOVES = frozenset(
    {
        _aten.flatten.using_ints,
        _aten.permute.default,
        _aten.reshape.default,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.transpose.int,
        _aten.unsqueeze.default,
        _aten.view.default,
    }
)
"""Calls that change places of elements, and so commute with a sigmoid."""


Function = Callable[[Sequence[Tensor]], Tensor]
"""Maps tensors of a batch to one tensor."""


class _Objective(nn.Module):
    """A module that wraps a function of tensors, so that `torch.export` finds the parameters of ``module``."""

    def __init__(self, module: nn.Module, function: Function, recording: Recording) -> None:
        super().__init__()
        self.module = module
        self.function = function
        self.recording = recording

    def forward(self, *leaves: Tensor) -> Tensor:
        # Here, since `torch.export` puts other tensors into the module, and back again.
        self.recording.watch = Watch(self.module)
        with observed(self.recording):
            result = self.function(leaves)
        self.recording.note_writes()
        nodes = autograd_nodes(result)
        problem = gradient_problem(nodes)
        if problem is not None:
            self.recording.refuse(problem)
        self.recording.require_proven(self.recording.finite_checks.unproven(result, nodes))
        return result


WRITE_OBJECTIVE = (
    "Remove that call, or mix in `CertifiedModule` and write `certified_objective(batch)`, which returns the same loss "
    "without it."
)
"""Advice if a loss cannot be recorded."""


def capture(module: nn.Module, function: Function, leaves: Sequence[Tensor], advice: str = WRITE_OBJECTIVE) -> Graph:
    """Record the calls that ``function`` makes on tensors like ``leaves``.

    Args:
        module: owner of the parameters and buffers, which the graph names as the module does.
        function: maps batch tensors to one tensor; it may use ``module``. Running it again must make the same calls.
        leaves: example tensors. The graph has their shapes; their values do not matter.
        advice: the way out if the code cannot be recorded.

    Returns:
        The graph of the result, without calls on which it does not depend.

    Raises:
        CaptureError: if the code cannot be recorded, or Python reads data and what it does can depend on them; the
            message quotes the reason and the line.
    """
    return record(lambda: (module, function), leaves, advice)


def record(
    make: Callable[[], tuple[nn.Module, Function]], leaves: Sequence[Tensor], advice: str = WRITE_OBJECTIVE
) -> Graph:
    """Record the calls of a function that may change its module; see `capture`.

    Code that reads data is recorded on every path that its branches can take, and with other numbers each time. All
    recordings that do not end in an error of the code's own must make the same calls.

    Args:
        make: returns a new replica of the module, and the function that uses it, for each recording.
        leaves: example tensors.
        advice: the way out if the code cannot be recorded.
    """
    return Explorer(lambda recording: _recorded(make, leaves, recording, advice)).graph()


def _recorded(
    make: Callable[[], tuple[nn.Module, Function]], leaves: Sequence[Tensor], recording: Recording, advice: str
) -> Graph:
    module, function = make()
    objective = _Objective(module, as_forward(function), recording)
    try:
        # In a validation gradients are off; code recorded so would lose its own `no_grad`.
        with warnings.catch_warnings(), quiet(), no_traces(module), torch.enable_grad():
            warnings.simplefilter("ignore")  # training shows the same warnings
            if recording.memory is not None:
                recording.memory.withhold(module, recording.looks, recording.probe)
            program, fixed = _exported(objective, tuple(leaves), recording)
    except UnprovenCheckError:
        raise
    except (SystemExit, KeyboardInterrupt) as error:
        if not recording.path.taken:
            raise
        raise CaptureError(
            f"{line_of(error)} ends the process where data decide. Raise an error in its place, such as `ValueError`."
        ) from error
    except Exception as error:
        shared = shared_statistics(module) if isinstance(error, AssertionError) else None
        raise CaptureError(shared or _reason(error, recording, advice)) from error
    recording.require_accepted()
    graph = finite_scores(_live(_detached(by_batch_statistics(*_graph(program)), fixed)))
    require_known_inputs(graph)
    on_cpu = all(leaf.device.type == "cpu" for leaf in leaves)
    drawn = masked(composed(unrolled(plainly_cut(graph), on_cpu=on_cpu)), on_cpu=on_cpu)
    normal = _live(distributed(reduced(unweighted(lookups(_fused(drawn))))))
    graph = _live(rooted(samples_first(normal)))
    return replace(graph, written=graph.written | recording.replaced_buffers)


def _reason(error: Exception, recording: Recording, advice: str) -> str:
    """Return why code could not be recorded, and the way out."""
    if recording.refusals:
        return recording.refusals[0]
    if isinstance(error, CaptureError):
        return str(error)
    if isinstance(error, DATA_DEPENDENT):
        return depends_on_size(line_of(error))
    return f"Expected code that torch.export can record, but {line_of(error)} raises {_first_lines(error)}\n{advice}"


def _exported(
    objective: nn.Module, leaves: tuple[Tensor, ...], recording: Recording
) -> tuple[torch.export.ExportedProgram, frozenset[str]]:
    """Return the recorded program, and the parameters that get no gradient."""
    before = generator_states()
    program = torch.export.export(objective, leaves, strict=False)
    recording.draws = draws_of(nodes(program.graph_module), before)
    fixed = _without_gradient(program)
    if any(_mutates(node) for node in nodes(program.graph_module)):
        keep_gradient_modes(program)
        inline_blocks(program)
        program = functional(program)
    return program, fixed


def _without_gradient(program: torch.export.ExportedProgram) -> frozenset[str]:
    """Return the parameters that code reads under `torch.no_grad` alone; decomposition forgets it."""
    placeholders = program.graph_signature.inputs_to_parameters
    return frozenset(
        placeholders[node.name]
        for node in program.graph.nodes
        if node.op == "placeholder"
        and node.name in placeholders
        and node.users
        and all(map(stops_gradients, node.users))
    )


def _mutates(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, OpOverload) and target._schema.is_mutable and target not in IDENTITIES


def _first_lines(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + "\n    ".join(lines[:6])


def _graph(program: torch.export.ExportedProgram) -> tuple[Graph, dict[str, str]]:
    """Return all calls, and the name of the value that each buffer ends with, by the name of each that is changed."""
    signature = program.graph_signature
    state = {**program.state_dict, **program.constants}
    strip = len("module.")
    origins = {name: state[target] for name, target in signature.inputs_to_lifted_tensor_constants.items()}
    parameters = {name: target[strip:] for name, target in signature.inputs_to_parameters.items()}
    buffers = {name: target[strip:] for name, target in signature.inputs_to_buffers.items()}
    leaves = {str(name): position for position, name in enumerate(signature.user_inputs)}
    for spec in signature.output_specs:
        if spec.kind.name == "PARAMETER_MUTATION":
            raise CaptureError(
                f"`training_step` changes the parameter `{str(spec.target)[strip:]}` in place, which the bounds do not "
                "cover. Remove it: instead of constraints use the optimizer's `weight_decay`, and set initial values "
                "before training."
            )
    reader = GraphReader(program.graph_module)
    results = reader.read()
    kinds = [spec.kind.name for spec in signature.output_specs]
    changed = [spec.target for spec in signature.output_specs if spec.kind.name == "USER_INPUT_MUTATION"]
    ends = zip(signature.output_specs, results, strict=True)
    written = {str(spec.target)[strip:]: name for spec, name in ends if spec.kind.name == "BUFFER_MUTATION"}
    graph = Graph(
        calls=tuple(reader.calls),
        parameters=parameters,
        buffers=buffers,
        constants={name: origin.detach().clone() for name, origin in origins.items()},
        leaves=leaves,
        shapes=reader.shapes,
        types=reader.types,
        output=results[kinds.index("USER_OUTPUT")],
        changed=frozenset(leaves[str(target)] for target in changed),
        origins=origins,
        written=frozenset(written),
        called=frozenset(reader.called),
    )
    return graph, written


def _detached(graph: Graph, fixed: frozenset[str]) -> Graph:
    """Let all calls read some parameters without their gradient."""
    strip = len("module.")
    names = {name for name, target in graph.parameters.items() if target in {each[strip:] for each in fixed}}
    if not names:
        return graph
    new = {name: f"{name}.without_gradient" for name in names}
    example = graph.calls[0]
    detached = [
        replace(
            example,
            name=new[name],
            op=_aten.detach.default,
            arguments={"self": Reference(name)},
            shape=graph.shapes[name],
            dtype=graph.types[name],
            module="",
        )
        for name in sorted(names)
    ]
    calls = [replace(call, arguments=renamed(call, new)) for call in graph.calls]
    shapes = dict(graph.shapes) | {new[name]: graph.shapes[name] for name in names}
    types = dict(graph.types) | {new[name]: graph.types[name] for name in names}
    return replace(graph, calls=(*detached, *calls), shapes=shapes, types=types)


def _fused(graph: Graph) -> Graph:
    """Fuse pairs of calls whose bounds are exact by one rule, and loose or unknown by two.

    ``nll_loss(log_softmax(z))`` and ``binary_cross_entropy(sigmoid(z))``, also of a reshaped sigmoid, have the gradient
    p - y; ``log(softmax(z))`` is ``log_softmax(z)``, and ``z @ W.T`` a linear layer.
    """
    graph = _sigmoid_last(graph)
    producers: dict[str, Call] = {}
    for call in graph.calls:
        producers[call.name] = _fused_call(call, producers)
    return replace(graph, calls=tuple(producers.values()))


def _sigmoid_last(graph: Graph) -> Graph:
    """Move sigmoids behind the changes of shape that lie between them and ``binary_cross_entropy``."""
    producers = {call.name: call for call in graph.calls}
    calls: list[Call] = []
    shapes = dict(graph.shapes)
    for call in graph.calls:
        moves, sigmoid = _moves_of_sigmoid(call, producers)
        if not moves or sigmoid is None:
            calls.append(call)
            continue
        name = sigmoid.inputs[0]
        for move in reversed(moves):
            moved = replace(
                move, name=f"{call.name}.{move.name}", arguments={**move.arguments, "self": Reference(name)}
            )
            calls.append(moved)
            name = moved.name
        last = calls[-1]
        shapes |= {moved.name: moved.shape for moved in calls[-len(moves) :]}
        activation = replace(sigmoid, name=f"{call.name}.{sigmoid.name}", shape=last.shape)
        shapes[activation.name] = last.shape
        calls.append(replace(activation, arguments={**sigmoid.arguments, "self": Reference(last.name)}))
        calls.append(replace(call, arguments={**call.arguments, "self": Reference(activation.name)}))
    return replace(graph, calls=tuple(calls), shapes=shapes)


def _moves_of_sigmoid(loss: Call, producers: Mapping[str, Call]) -> tuple[list[Call], Call | None]:
    """Return the changes of shape between a ``binary_cross_entropy`` and a sigmoid, last one first, and the sigmoid."""
    moves: list[Call] = []
    if loss.op is not _aten.binary_cross_entropy.default:
        return moves, None
    call = producers.get(loss.inputs[0])
    while call is not None and call.op in _MOVES:
        moves.append(call)
        call = producers.get(call.inputs[0])
    return moves, call if call is not None and call.op is _aten.sigmoid.default else None


def _fused_call(call: Call, producers: Mapping[str, Call]) -> Call:
    if call.op is _aten.cross_entropy_loss.default:
        return _fused_one_hot(call, producers)
    inner = producers.get(call.inputs[0]) if call.inputs else None
    if inner is None:
        return _fused_linear(call, producers)
    arguments = dict(call.arguments)
    logits = Reference(inner.inputs[0]) if inner.inputs else None
    if call.op is _aten.log.default and inner.op is _aten.softmax.int:
        return replace(call, op=_aten.log_softmax.int, arguments={**inner.arguments, UNDERFLOWING: True})
    if call.op is _aten.nll_loss_nd.default and inner.op is _aten.log_softmax.int and _over_classes(inner):
        arguments |= {"self": logits, "label_smoothing": 0.0}
        arguments |= {UNDERFLOWING: True} if inner.arguments.get(UNDERFLOWING) else {}
        return replace(call, op=_aten.cross_entropy_loss.default, arguments=arguments)
    if call.op is _aten.binary_cross_entropy.default and inner.op is _aten.sigmoid.default:
        arguments |= {"self": logits, "pos_weight": None, SATURATING: True}
        return replace(call, op=_aten.binary_cross_entropy_with_logits.default, arguments=arguments)
    return _fused_linear(call, producers)


def _fused_one_hot(call: Call, producers: Mapping[str, Call]) -> Call:
    """Replace one-hot target probabilities by the labels that they encode.

    Not in a mean that is weighted by class: torch divides it by the weights of labels, but by the number of targets.
    """
    if call.arguments["weight"] is not None and call.arguments["reduction"] == 1:
        return call
    target = producers.get(call.inputs[1])
    while target is not None and target.op in (_aten.to.dtype, _aten._to_copy.default):
        target = producers.get(target.inputs[0])
    if target is None or target.op is not _aten.one_hot.default or len(target.shape) != 2:
        return call
    return replace(call, arguments={**call.arguments, "target": Reference(target.inputs[0])})


def _fused_linear(call: Call, producers: Mapping[str, Call]) -> Call:
    bias = call.arguments["self"] if call.op is _aten.addmm.default else None
    if call.op not in _PRODUCTS or bias is not None and (call.arguments["alpha"] != 1 or call.arguments["beta"] != 1):
        return call
    data, weight = call.inputs[-2:]
    transpose = producers.get(weight)
    if transpose is None or not _swaps_two_axes(transpose):
        return call
    arguments = {"input": Reference(data), "weight": Reference(transpose.inputs[0]), "bias": bias}
    return replace(call, op=_aten.linear.default, arguments=arguments)


def _swaps_two_axes(call: Call) -> bool:
    if call.op not in _TRANSPOSES or len(call.shape) != 2:
        return False
    arguments = call.arguments
    order = arguments.get("dims", [arguments.get("dim0", 1), arguments.get("dim1", 0)])
    assert isinstance(order, list)
    normal = [axis % 2 for axis in order]
    return normal == [1, 0] or (call.op is _aten.transpose.int and normal == [0, 1])


def _over_classes(log_softmax: Call) -> bool:
    """Return whether the softmax runs over axis 1, the class axis of `nll_loss`."""
    dim = log_softmax.arguments["dim"]
    return isinstance(dim, int) and dim % len(log_softmax.shape) == 1


def _live(graph: Graph) -> Graph:
    """Drop calls on which the result does not depend, such as those of `self.log` and metrics."""
    needed = {graph.output}
    calls: list[Call] = []
    for call in reversed(graph.calls):
        if call.name in needed:
            needed.update(call.inputs)
            calls.append(call)
    return replace(
        graph,
        calls=tuple(reversed(calls)),
        parameters={name: target for name, target in graph.parameters.items() if name in needed},
        buffers={name: target for name, target in graph.buffers.items() if name in needed},
        constants={name: value for name, value in graph.constants.items() if name in needed},
        origins={name: value for name, value in graph.origins.items() if name in needed},
        leaves={name: position for name, position in graph.leaves.items() if name in needed},
    )
