"""What the kernels of kernels/cuda compile to: `make ptx`, or python -m tests.ptx [subject ...]

No GPU and no driver is needed. NVIDIA's compiler turns every kernel into PTX, the assembly of an imagined
GPU, and its assembler ptxas turns that into the code of a real one. They show what no simulator can:
arithmetic in float64, values that found no register and went to memory, arrays that no registers can hold.

PTX ISA: https://docs.nvidia.com/cuda/parallel-thread-execution
"""
import functools
import importlib
import importlib.metadata
import inspect
import multiprocessing
import pkgutil
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

from kernels.cuda.compiled import REGISTERS

PACKAGES = "numba-cuda", "nvidia-nvvm", "nvidia-cuda-nvrtc", "nvidia-cuda-nvcc"
CAPABILITIES = (7, 5), (8, 0), (9, 0)  # Turing (T4, RTX 20), Ampere (A100), Hopper (H100, H200)
SHARED = 48 * 1024  # bytes a block gets without asking the driver for more
NOT_SUBJECTS = "compiled", "memory"  # what the subjects are built on


def missing():  # -> names of the packages that are not installed
    return [name for name in PACKAGES if not any(importlib.metadata.distributions(name=name))]


@functools.cache
def ptxas():
    """The assembler of the package, not of the machine: it must know the compiler's version of PTX."""
    return next(str(file.locate()) for file in importlib.metadata.files("nvidia-cuda-nvcc")
                if file.stem == "ptxas")


def load(subjects):  # -> all kernels of these files, and of those that they import
    for subject in subjects:
        importlib.import_module(f"kernels.cuda.{subject}")
    from kernels.cuda.compiled import KERNELS
    return KERNELS


def compile_all(subjects, capability):  # -> what measured() says of every kernel
    """In a process of its own: the functions that kernels call are compiled once, for one capability."""
    from numba.cuda import dispatcher  # it would ask the driver for which GPU to compile these
    dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=capability)
    return [measured(kernel, capability) if capability >= least(kernel) else (None, [])
            for kernel in load(subjects)]


def least(kernel):
    """Some kernels use instructions that older GPUs do not have."""
    return getattr(kernel, "least", CAPABILITIES[0])


def measured(kernel, capability):  # -> (registers, shared bytes) or None, [what is wrong]
    from numba import cuda, void
    try:
        ptx, _ = cuda.compile_ptx(kernel.__wrapped__, void(*kernel.arguments), cc=capability,
                                  fastmath=kernel.fastmath, lineinfo=True)
    except Exception as error:  # noqa: BLE001 (Numba has dozens)
        return None, [f"does not compile: {essence(error)}"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx, "utf-8")
        command = (ptxas(), "-v", f"-arch=sm_{version(capability, '')}", f"-maxrregcount={REGISTERS}",
                   str(path), "-o", f"{path}.cubin")
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    said = done.stdout + done.stderr

    def most(pattern):
        return max(map(int, re.findall(pattern, said)), default=0)

    registers, shared = most(r"Used (\d+) registers"), most(r"(\d+) bytes smem")
    spilled, frame = most(r"(\d+) bytes spill stores"), most(r"(\d+) bytes stack frame")
    wrong = []
    if lines := float64_lines(ptx):
        places = ", ".join(map(str, lines))
        wrong.append(f"computes in float64 in line {places}: write ZERO, f32(0.5), f32(n)")
    if spilled:
        wrong.append(f"spills {spilled} bytes, since {registers} registers are too few (with more, two "
                     "blocks of 256 threads would not fit on a processor): make a thread's tile smaller")
    elif frame:
        wrong.append(f"keeps {frame} bytes in local memory, which is as slow as global memory: index local "
                     "arrays only by loops of a fixed length, and a short one")
    if shared > SHARED:
        wrong.append(f"takes {shared:,} bytes of shared memory: at most {SHARED:,}, with a smaller tile")
    elif done.returncode:
        wrong.append(f"is refused by ptxas: {essence(said)}")
    return (registers, shared), wrong


def float64_lines(ptx):  # -> lines of the kernel's file
    """What is in a function that it calls counts for the line of the call.

    >>> float64_lines(".loc 1 7 0 \\n add.f32 ... \\n .loc 1 9 0 \\n add.f64 ...")
    [9]
    """
    line, found = 0, set()
    for instruction in ptx.splitlines():
        if loc := re.match(r"\s*\.loc\s+\d+\s+(\d+)", instruction):
            line = int(loc[1]) or line  # 0: still the same one
        elif re.search(r"\.f64\b", instruction) and ".reg" not in instruction:
            found.add(line)
    return sorted(found)


def essence(message):
    """Of many lines the first, and the call and the place that Numba shows."""
    lines = [re.sub(r"'_Z\w+'", "", line).strip(" :") for line in str(message).splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Failed in", "ptxas info"))]
    more = [line for line in lines[1:] if line.startswith((">>>", "File \""))]
    return " ".join(lines[:1] + more[:1] + more[1:][-1:])


def labels(kernels):  # -> a name for each, no two alike
    """Kernels of one factory differ in what it filled in: matmul.tiled[side=16], matmul.tiled[side=32]."""
    names = [f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}" for kernel in kernels]
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i, other in enumerate(names) if other == name]
        filled = [inspect.getclosurevars(kernels[i].__wrapped__).nonlocals for i in same]
        values = {key: [made.get(key) for made in filled] for key in filled[0]
                  if isinstance(filled[0][key], int | np.number)}
        key = max(values, key=lambda key: len(set(values[key])), default=None)
        for i, value in zip(same, values.get(key, []), strict=False):
            names[i] += f"[{key}={value}]"
    return [f"{name} {names[:i + 1].count(name)}" if names.count(name) > 1 else name
            for i, name in enumerate(names)]


def version(capability, between="."):
    return between.join(map(str, capability))


def row(name, width, columns):
    return name.ljust(width) + "".join(column.rjust(16) for column in columns)


def main(subjects):
    if lacking := missing():
        print(f"To compile kernels, {', '.join(lacking)} must be installed: make ptx", file=sys.stderr)
        return 2
    from kernels import cuda
    every = [module.name for module in pkgutil.iter_modules(cuda.__path__) if module.name not in NOT_SUBJECTS]
    if unknown := [subject for subject in subjects if subject not in every]:
        print(f"There is no kernels/cuda/{unknown[0]}.py. There are: {', '.join(every)}.", file=sys.stderr)
        return 2
    subjects = subjects or every
    names = labels(load(subjects))
    print(f"Compiling {len(names)} kernels for {len(CAPABILITIES)} generations of GPUs ...\n", flush=True)
    with multiprocessing.Pool(len(CAPABILITIES)) as pool:
        results = pool.starmap(compile_all, [(subjects, capability) for capability in CAPABILITIES])
    width = max(map(len, names), default=0)
    print(row("registers, bytes of shared memory", width, [f"cc {version(c)}" for c in CAPABILITIES]))
    findings = {}
    for name, *outcomes in zip(names, *results, strict=True):
        print(row(name, width, ["{}, {:6}".format(*numbers) if numbers else "-" for numbers, _ in outcomes]))
        for capability, (_, wrong) in zip(CAPABILITIES, outcomes, strict=True):
            for text in wrong:
                findings.setdefault((name, text), []).append(version(capability))
    print()
    for (name, text), capabilities in findings.items():
        print(f"{name} (cc {', '.join(capabilities)}) {text}.")
    if not findings:
        print(f"{len(names)} kernels: no float64, no spills, no local memory, at most {REGISTERS} registers.")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
