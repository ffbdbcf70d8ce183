"""Where tests run: threads, kernels and devices.

Small tensors only: threads cost more than they save, and Lightning raises their number for the whole process. So there
is one, unless ``OMP_NUM_THREADS`` says otherwise. With ``AGT_WITHOUT_ONEDNN=1`` tests compute without oneDNN. Programs
in Triton run in its interpreter if there is no GPU.
"""

import os
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from tests.distributed.pool import Pool

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read by Triton when it is imported

if os.environ.get("AGT_WITHOUT_ONEDNN") == "1":
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)  # would replace oneDNN, and is refused: it transforms convolutions


QUICK = 10
"""Of each test with several cases, one in so many runs with every change; ``thinned`` sets another number."""


@pytest.hookimpl(tryfirst=True)  # before ``-m`` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all but some cases of each test as slow, and skip ``gpu`` tests where there is no CUDA device."""
    counts: Counter[str] = Counter()
    for item in items:
        name, bracket, _ = item.nodeid.partition("[")
        thinned = item.get_closest_marker("thinned")
        if bracket or thinned:
            if counts[name] % (thinned.args[0] if thinned else QUICK):
                item.add_marker(pytest.mark.slow)
            counts[name] += 1
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pool(tmp_path_factory) -> Iterator[Pool]:
    """Three processes that wait for work."""
    made = Pool(3, tmp_path_factory.mktemp("stores"))
    yield made
    made.close()
