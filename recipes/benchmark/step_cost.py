"""Cost of a certified step beside a plain one, in time and in memory."""

import multiprocessing
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Literal

import torch
from torch import Tensor, nn
from torch.profiler import profile, record_function

from agt_lightning import AbstractGradientEngine, BoundedAdversary
from agt_lightning.rounding import Floats
from recipes.benchmark.workloads import Batch, Module, Workload

STEPS_BEFORE = 2
"""The third step is measured: at the first, parameters are still known exactly, which is cheaper."""

PLAIN_STEPS = 5
"""Plain steps per certified one: they are short, and the first after a certified step finds cold caches."""


PARTS = ("nominal pass", "clean pass", "poisoned pass", "sums over samples", "update")
"""Parts of a certified step, by the package's labels for profilers."""

PARTS_OF = "certified step"

Clock = Literal["cpu", "wall"]
"""Time of the CPU, which other programs on the machine hardly change; or on the wall, which contains a GPU's work."""


@dataclass(frozen=True)
class Setting:
    """Settings of training and bounds.

    Args:
        device: of training and bounds.
        training: type of the parameters, hence of the plain step.
        bounds: type that bounds are computed in.
        repeats: certified steps to take the median over.
        floats: which runs the bounds contain.
        domains: that bounds are kept in.
    """

    device: str
    training: torch.dtype
    bounds: torch.dtype
    repeats: int
    floats: Floats = "run"
    domains: tuple[str, ...] = ("box",)

    @property
    def clock(self) -> Clock:
        """The clock that measures this device's work."""
        return "wall" if self.device == "cuda" else "cpu"


@dataclass(frozen=True)
class Seconds:
    """Duration of one step: on the wall, and CPU time of all threads of the process."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class StepCost:
    """Medians of a plain and a certified step; the certified one contains training's own work.

    Args:
        plain: of a plain step.
        certified: of a certified step.
        width: mean width of the parameters' bounds after it.
        clock: what a ratio compares.
    """

    plain: Seconds
    certified: Seconds
    width: float
    clock: Clock = "cpu"

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of a plain and of a certified step, by `clock`."""
        return getattr(self.plain, self.clock), getattr(self.certified, self.clock)

    @property
    def ratio(self) -> float:
        """Certified over plain time, by `clock`."""
        plain, certified = self.seconds
        return certified / plain

    @property
    def wall_ratio(self) -> float:
        """Certified over plain time on the wall."""
        return self.certified.wall / self.plain.wall


class Training:
    """A workload's training, whose third step can be repeated.

    Steps are those that Lightning's loop makes of a module: zero gradients, `training_step`, backward, optimizer. The
    loop's own overhead, which both kinds of step would share, is left out, so ratios are not flattered by it.

    Args:
        workload: what is trained.
        setting: of training and bounds.
        adversaries: that the training is certified for; none means that of the workload.
    """

    def __init__(self, workload: Workload, setting: Setting, adversaries: Sequence[BoundedAdversary] = ()) -> None:
        self.setting = setting
        self.batch: Batch = tuple(part.to(setting.device) for part in workload.batch(setting.training))  # type: ignore[assignment]
        self.module, self.replica = (workload.module(setting.training).to(setting.device) for _ in range(2))
        self.optimizer, self.plain_optimizer = self.module.configure_optimizers(), self.replica.configure_optimizers()
        self.engine = AbstractGradientEngine(
            self.module,
            loss,
            adversaries or workload.adversary,
            poisonable=workload.poisonable,
            dtype=setting.bounds,
            floats=setting.floats,
            domains=setting.domains,
        )

    def plain_step(self) -> None:
        """Make a step of the replica, which is not certified."""
        self.plain_optimizer.zero_grad()
        loss(self.replica, self.batch).backward()
        self.plain_optimizer.step()

    def certified_step(self) -> None:
        """Make the same step with that of the box."""
        self.engine.step([self.batch], self.optimizer)

    def costs(self) -> StepCost:
        """Return the medians of plain and certified steps in turns; each certified one is undone afterwards."""
        for _ in range(STEPS_BEFORE):
            self.plain_step()
            self.certified_step()
        parameters = {name: value.clone() for name, value in self.module.state_dict().items()}
        state = self.engine.state()
        plain, certified, width = [], [], 0.0
        for _ in range(self.setting.repeats):
            plain += [timed(self.plain_step, self.setting.device) for _ in range(PLAIN_STEPS)]
            certified.append(timed(self.certified_step, self.setting.device))
            width = self.engine.bounds.mean_width()
            self.module.load_state_dict(parameters)
            self.engine.restore(state)
        return StepCost(_median(plain), _median(certified), width, self.setting.clock)

    def parts(self) -> dict[str, float]:
        """Return milliseconds of each part of the third certified step by `torch.profiler`; all else is "training"."""
        for _ in range(STEPS_BEFORE):
            self.certified_step()
        with profile() as profiler, record_function(PARTS_OF):
            self.certified_step()
            if self.setting.device == "cuda":
                torch.cuda.synchronize()
        took = {event.key: event.cpu_time_total / 1e3 for event in profiler.key_averages()}
        parts = {name: took.get(f"agt: {name}", 0.0) for name in PARTS}
        return parts | {"training": took[PARTS_OF] - sum(parts.values())}

    def peaks(self) -> tuple[int, int]:
        """Return the most bytes in use during plain steps, and then during as many certified ones.

        On CUDA, those of torch's allocator, with all that the training keeps in both; on a CPU, the peak of the
        process's resident memory so far.
        """
        self.engine.objective(self.batch)  # the peak of recording is no step's
        return self._peak_of(self.plain_step), self._peak_of(self.certified_step)

    def _peak_of(self, step: Callable[[], None]) -> int:
        if self.setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(STEPS_BEFORE + 1):
            step()
        return _peak(self.setting.device)


def timed(step: Callable[[], object], device: str) -> Seconds:
    """Return how long a step takes; on CUDA, on the device itself, between events before and after it.

    Args:
        step: makes it.
        device: "cuda" or "cpu".
    """
    if device != "cuda":
        wall, cpu = perf_counter(), process_time()
        step()
        return Seconds(perf_counter() - wall, process_time() - cpu)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    cpu = process_time()
    start.record()
    step()
    end.record()
    end.synchronize()
    return Seconds(start.elapsed_time(end) / 1e3, process_time() - cpu)


def loss(module: nn.Module, batch: object) -> Tensor:
    """Return the loss of the module's training step."""
    assert isinstance(module, Module)
    return module.training_step(batch, 0)  # type: ignore[arg-type]


def extra_memory(workload: Callable[[], Workload], setting: Setting, threads: int) -> int:
    """Return the bytes by which the peak of three certified steps exceeds that of three plain ones.

    On a CPU the peak is that of a fresh process's resident memory, libraries and the recorded loss included in both;
    on CUDA, that of torch's allocator.

    Args:
        workload: a function that another process can find by name.
        setting: of training and bounds.
        threads: of torch.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_extra_memory, (workload, setting, threads))


def _extra_memory(workload: Callable[[], Workload], setting: Setting, threads: int) -> int:
    torch.set_num_threads(threads)
    plain, certified = Training(workload(), setting).peaks()
    return certified - plain


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # `getrusage` of Linux starts a new process at the peak of the one that made it
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _median(times: list[Seconds]) -> Seconds:
    return Seconds(median(time.wall for time in times), median(time.cpu for time in times))
