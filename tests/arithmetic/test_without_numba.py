"""Without numba the package works, says that it is slower, and computes the same in torch."""

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["numba"] = None  # what is not installed
import torch
from agt_lightning.aggregation.kernels import kernel_for
from agt_lightning.aggregation.top_n import top_n_sum
from agt_lightning.arithmetic.compiled import readable
gains = torch.tensor([[3.0, -1.0, 2.0], [-1.0, -2.0, -3.0]])
print(type(kernel_for(gains.device)).__name__, readable(gains), top_n_sum(gains, 2).tolist())
"""


def test_torch_takes_the_place_of_compiled_loops():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=2) == ["TorchKernel", "False", "[5.0, 0.0]\n"]
    assert "numba is not installed: bounds are the same, but slower on a CPU." in done.stderr
