"""Compile the program of sums for an H100, by its path and the sizes of a tile; without a device, and without torch."""

import importlib.util
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

path, outputs, inputs, samples, warps = sys.argv[1], *map(int, sys.argv[2:])
spec = importlib.util.spec_from_file_location("triton_program", path)
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
for kind, number in (("stored", "fp32"), ("shared inputs", "fp64"), ("products", "fp64")):
    sizes = {"KIND": kind, "O": outputs, "K": inputs, "M": samples}
    if kind == "stored":
        sizes |= {"K": 1, "M": samples * inputs}
    types = dict.fromkeys(("first", "second", "sums"), f"*{number}")
    types |= dict.fromkeys(("outputs", "inputs", "samples", "n"), "i32") | dict.fromkeys(sizes, "constexpr")
    source = ASTSource(program.threshold_sums, types, constexprs=sizes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert compiled.asm["cubin"]
    print(kind.split()[0])  # noqa: T201  (what a test reads)
