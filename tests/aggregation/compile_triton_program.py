"""Compile the program of sums for an H100, by its path and the sizes of a tile; without a device, and without torch."""

import importlib.util
import sys


def main(path: str, outputs: int, inputs: int, samples: int, warps: int) -> None:
    """Compile all kinds of gains, and print the first word of each as it is done.

    Args:
        path: of the file with the program.
        outputs: of a tile.
        inputs: of a tile.
        samples: of a tile.
        warps: of a program.
    """
    import triton  # where there is no Triton, this file is collected and not run
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    spec = importlib.util.spec_from_file_location("triton_program", path)
    assert spec is not None
    assert spec.loader is not None
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


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
