"""Processes that wait for work, so that a test of several processes does not start Python several times."""

from __future__ import annotations

import io
import os
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = 120.0
"""Seconds after which a case that hangs has failed."""


class FailedError(Exception):
    """A case raised; ``errors`` has (type, message) of each process, None where it did not raise."""

    def __init__(self, errors: list[tuple[str, str] | None], trace: str) -> None:
        super().__init__(f"{errors}\n{trace}")
        self.errors = errors


def forkserver() -> Any:
    """Return a context whose processes start in milliseconds: torch and Lightning are imported once for all of them."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.cases"])
    return context


class Pool:
    """``run(world, function, ...)`` calls a function of a test module in so many processes of one gloo group."""

    def __init__(self, size: int, folder: Path) -> None:
        context = forkserver()
        self.folder = folder
        self.serial = 0
        self.inboxes = [context.Queue() for _ in range(size)]
        self.outbox = context.Queue()
        self.workers = [
            context.Process(target=_work, args=(rank, inbox, self.outbox), daemon=True)
            for rank, inbox in enumerate(self.inboxes)
        ]
        for worker in self.workers:
            worker.start()

    def run(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What the function returned in each process, by rank."""
        self.serial += 1
        store = f"file://{self.folder / str(self.serial)}"
        for inbox in self.inboxes[:world]:
            inbox.put(pickle.dumps((store, world, function, args)))
        results: dict[int, Any] = {}
        try:
            while len(results) < world:
                rank, content = self.outbox.get(timeout=PATIENCE)
                results[rank] = torch.load(io.BytesIO(content), weights_only=False)
        except Empty:
            raise TimeoutError(f"Processes {set(range(world)) - set(results)} hang.") from None
        ordered = [results[rank] for rank in range(world)]
        errors = [result["error"] for result in ordered]
        if any(errors):
            raise FailedError(errors, "\n".join(result["trace"] for result in ordered))
        return [result["value"] for result in ordered]

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.join()


def _work(rank: int, inbox: Any, outbox: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while True:
        store, world, function, args = pickle.loads(inbox.get())
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=PATIENCE)
        )
        result = {"value": None, "error": None, "trace": ""}
        try:
            result["value"] = function(*args)
        except Exception as error:
            result |= {"error": (type(error).__name__, str(error)), "trace": traceback.format_exc()}
        finally:
            dist.destroy_process_group()
        content = io.BytesIO()
        torch.save(result, content)
        outbox.put((rank, content.getvalue()))
