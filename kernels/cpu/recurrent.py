"""Lesson 11's step of an LSTM, compiled: all that stands between one matrix product and the next.

step           reads product, bias and c_before; turns gates into i, f, g, o in place; writes c and h
step_backward  reads dh, c_before and c; turns gates into their gradients and dc into dc_before, in place

Arrays are float32, rows of a batch. A row is worked on in several short loops, each over few arrays: LLVM
vectorises a loop only after it has made sure at run time that no two of its arrays overlap, and for a dozen
arrays it gives up. The row stays in the L1 cache in between.
"""
from kernels.cpu.compiled import check_shapes, exp, f32, inlined, kernel

ONE, TWO = f32(1), f32(2)


def lstm_step_forward(gates, product, bias, c_before, c, h):
    B, H = c.shape
    check_shapes((B, 4 * H), gates=gates, product=product)
    check_shapes((4 * H,), bias=bias)
    check_shapes((B, H), c_before=c_before, h=h)
    step(gates, product, bias, c_before, c, h)


def lstm_step_backward(dh, dc, gates, c_before, c):
    B, H = c.shape
    check_shapes((B, 4 * H), gates=gates)
    check_shapes((B, H), dh=dh, dc=dc, c_before=c_before)
    step_backward(dh, dc, gates, c_before, c)


@inlined
def sigmoid(x):  # float32 -> float32
    return ONE / (ONE + exp(-x))


@inlined
def tanh(x):  # float32 -> float32
    """2 sigmoid(2x) - 1: one exp. Its error is 1e-7 of 1, not of x: enough where 1 is the largest there is.
    A NaN stays one. Write ONE and TWO: with a bare 1 or 2 Numba computes in float64."""
    return TWO * sigmoid(TWO * x) - ONE


@kernel
def step(gates, product, bias, c_before, c, h):  # (B, 4H) twice, (4H,), (B, H) three times
    """Columns of gates: four blocks of H, in the order i, f, g, o. With z = gates + product + bias write

        i, f, o = sigmoid(z), g = tanh(z) of their blocks, over gates
        c = f * c_before + i * g
        h = o * tanh(c)

    One row b after the other, and in it one short loop after the other (see above): the sum z over all 4H;
    sigmoid of the first 2H; tanh of g and sigmoid of o; c; h. z = gates[b] and i, f, g, o = z[:H], ... are
    views. The other arguments are only read.
    """
    B, H = c.shape
    for b in range(B):
        z, add = gates[b], product[b]
        for k in range(z.size):
            z[k] += add[k] + bias[k]
        i, f, g, o = z[:H], z[H:2 * H], z[2 * H:3 * H], z[3 * H:]
        for k in range(H):
            i[k] = sigmoid(i[k])
            f[k] = sigmoid(f[k])
        for k in range(H):
            g[k] = tanh(g[k])
            o[k] = sigmoid(o[k])
        before, now, out = c_before[b], c[b], h[b]
        for k in range(H):
            now[k] = f[k] * before[k] + i[k] * g[k]
        for k in range(H):
            out[k] = o[k] * tanh(now[k])


@kernel
def step_backward(dh, dc, gates, c_before, c):  # (B, H), (B, H), (B, 4H), (B, H), (B, H)
    """gates holds i, f, g, o. With t = tanh(c), and d for the whole gradient of c, write

        d = dc + dh * o * (1 - t^2)
        dz_o = dh * t * o (1 - o)                      over o
        dz_i = d * g * i (1 - i)                       over i: keep the old i for g's
        dz_g = d * i * (1 - g^2)                       over g
        dz_f = d * c_before * f (1 - f)                over f: keep the old f for dc's
        dc = d * f                                     what the step before gets

    One row b after the other, and in it three short loops: d (kept in dc) and o; i and g; f and dc. What is
    written over must have been read before. dh, c_before and c are only read.
    """
    B, H = c.shape
    for b in range(B):
        z, d, dout, before, now = gates[b], dc[b], dh[b], c_before[b], c[b]
        i, f, g, o = z[:H], z[H:2 * H], z[2 * H:3 * H], z[3 * H:]
        for k in range(H):
            t = tanh(now[k])
            d[k] += dout[k] * o[k] * (ONE - t * t)
            o[k] = dout[k] * t * o[k] * (ONE - o[k])
        for k in range(H):
            old = i[k]
            i[k] = d[k] * g[k] * old * (ONE - old)
            g[k] = d[k] * old * (ONE - g[k] * g[k])
        for k in range(H):
            old = f[k]
            f[k] = d[k] * before[k] * old * (ONE - old)
            d[k] *= old
