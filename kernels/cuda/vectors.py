"""Four numbers at once: a GPU reads 16 bytes by one instruction, if they lie at a multiple of 16 bytes.

Numba cannot know that they do, and reads them one by one. load4 promises it. As it stands here it runs in the
simulator; load_vector is what the GPU's compiler gets in its place, in LLVM's words, as Python has none.
"""
from llvmlite import ir
from numba import float32, types, uint64
from numba.extending import intrinsic, overload

WIDTH = 4
VECTOR = ir.VectorType(ir.FloatType(), WIDTH)


def wide(array):
    """May load4 read this matrix (Array (., .)), as it lies in memory?"""
    return array.start % 16 == 0 and array.data.shape[1] % WIDTH == 0


def load4(x, row, column):  # -> (number, number, number, number)
    """x[row, column], x[row, column + 1], ... of a wide matrix; column is a multiple of 4."""
    return tuple([x[row, column + i] for i in range(WIDTH)])


@overload(load4, target="cuda")
def load4_on_gpu(x, row, column):
    return lambda x, row, column: load_vector(x, row, column)


@intrinsic
def load_vector(context, x, row, column):
    def generate(context, builder, signature, arguments):
        vector = builder.load(address(context, builder, signature, arguments), align=16)
        numbers = [builder.extract_element(vector, lane(i)) for i in range(WIDTH)]
        return context.make_tuple(builder, signature.return_type, numbers)
    return types.UniTuple(float32, WIDTH)(x, uint64, uint64), generate


def address(context, builder, signature, arguments):
    """Where x[row, column] lies, as LLVM's pointer to four numbers."""
    x = context.make_array(signature.args[0])(context, builder, arguments[0])
    columns = builder.extract_value(x.shape, 1)
    place = builder.add(builder.mul(arguments[1], columns), arguments[2])
    return builder.bitcast(builder.gep(x.data, [place]), VECTOR.as_pointer())


def lane(i):
    return ir.Constant(ir.IntType(32), i)
