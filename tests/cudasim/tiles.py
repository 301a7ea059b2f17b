"""Tiles as small as the models of the tests: the simulator runs every thread of a block, also those that have
nothing to do. The same functions make the large ones, of a GPU.
"""
from kernels.cuda import attention, matmul


def small(patch):
    """patch: pytest's monkeypatch."""
    patch.setattr(matmul, "SIZES", [matmul.registers(4, 4)])
    patch.setattr(attention, "TILES", {8: (attention.forward_tiles(8, 8, 4, 2),
                                           *attention.backward_tiles(8, 8, 4, 2))})
