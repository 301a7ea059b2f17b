"""Tiles as small as the models of the tests: the simulator runs every thread of a block, also those that have
nothing to do. The same functions make the large ones, of a GPU.
"""
import numpy as np

from kernels.cuda import attention, block, column_sums, layernorm, matmul
from kernels.cuda.compiled import cuda
from tests import cudasim
from tests.cudasim.arrays import Fault


def small(patch):
    """patch: pytest's monkeypatch."""
    patch.setattr(matmul, "SIZES", [matmul.registers(4, 4)])
    patch.setattr(attention, "TILES", {8: (attention.forward_tiles(8, 8, 4, 2),
                                           *attention.backward_tiles(8, 8, 4, 2))})
    if getattr(cuda, "simulated", False):  # a GPU's kernels are compiled, with these numbers
        patch.setattr(column_sums, "ROWS", 2)
        patch.setattr(block, "ROWS", 2)
        patch.setattr(layernorm, "STRIP_WARPS", 2)


def products_by_numpy(patch):
    """After small: for tests of what stands around products, which take the simulator most of a step."""
    if getattr(cuda, "simulated", False):
        for kernel in matmul.SIZES:
            patch.setitem(cudasim.STAND_INS, kernel.__wrapped__, product)


def product(a, b, out, bias, residual, slope, how):
    """As matmul_registers. It would not notice that a block writes what another one still reads."""
    for name, x in ("a", a), ("b", b):
        if np.may_share_memory(out, x):
            raise Fault(f"matmul_registers: {name} and out share memory")
    value = (a.T if how & matmul.A_TURNED else a) @ (b.T if how & matmul.B_TURNED else b)
    if how & matmul.BIAS:
        value += bias[0]
    if how & matmul.RESIDUAL:
        value += residual
    if how & matmul.GELU:
        value, slope[...] = np.vectorize(matmul.gelu, otypes=[np.float32] * 2)(value)
    out[...] = value
