"""One token of a GPT with a KV cache, on the GPU: the room's operations one after the other, and one kernel.

A token needs every weight once, 4 bytes for two operations: memory sets the pace, or for a small model the
launches, seven a layer. The keys and values of all tokens stay on the GPU if kv is an Array; a NumPy kv
travels there and back with every token.

attend   reads qkv (3C,) and the first `position` rows of kv[layer]; writes row `position` there, and out (C,)

Flash attention has tiles of 32 queries and more, and here is one. So attend gives a head a block, and the
keys to its threads. Keys and values of n positions are 2 * 4 n C bytes, with two operations a number.
"""
import copy
import math
import operator

import numpy as np

from kernels.cuda.block import layernorm_forward, linear_forward, linear_gelu_forward
from kernels.cuda.compiled import F1, F2, F3, ONE, WARP, ZERO, F, U, cuda, f32, kernel, u32
from kernels.cuda.embedding import embedding_forward
from kernels.cuda.memory import empty, on_gpu

THREADS, WARPS = 256, 8  # of a block


def decode_weights(p, int8=False):
    """p (Parameters), its views on the GPU. With int8 the matrices are what 255 levels leave of them, but
    they are kept as float32: rounded like the other rooms', and not smaller."""
    weights = copy.copy(p)
    weights.flat = weights.parts = None
    weights.lay_out({name: on_gpu(rounded(name, view) if int8 else view) for name, view in p.views.items()})
    return weights


def rounded(name, view):  # -> view, or what lesson 19's to_int8 leaves of a matrix (in, out)
    """The token table's outputs are its rows, as the head is x @ wte.T."""
    if view.ndim == 1 or name == "wpe.weight":
        return view
    weight = view.T if name == "wte.weight" else view
    scale = np.abs(weight).max(axis=0) / 127
    scale[scale < np.finfo(f32).tiny] = 1
    weight = np.round(weight / scale) * scale
    return weight.T if name == "wte.weight" else weight


def decode(weights, token, position, kv, threads=1):  # int, int, (L, block_size, 2C) float32 -> (V,)
    """Logits of what follows `token`. Positions before its own are filled in kv; its k and v are added. If kv
    is an Array, so are the logits. threads are the CPU's: a GPU does not ask how many."""
    token, position, threads = (operator.index(number) for number in (token, position, threads))
    wte, wpe = weights["wte.weight"], weights["wpe.weight"]
    (V, C), heads = wte.shape, weights.config.n_head
    check(token, position, threads, kv, V, (len(weights.blocks), len(wpe), 2 * C))
    kept, y, scores = on_gpu(kv), empty((1, 1, C)), empty((heads, len(wpe)))
    x, _ = embedding_forward(np.array([[token]]), wte, wpe, position)
    for layer, block in enumerate(weights.blocks):
        h, _ = layernorm_forward(x, *block["ln_1"])
        qkv, _ = linear_forward(h, *block["attn.c_attn"])
        attend[heads, THREADS](qkv.reshape(-1), kept, layer, position, scores, y.reshape(-1))
        x, _ = linear_forward(y, *block["attn.c_proj"], x)
        h, _ = layernorm_forward(x, *block["ln_2"])
        h, _ = linear_gelu_forward(h, *block["mlp.c_fc"])
        x, _ = linear_forward(h, *block["mlp.c_proj"], x)
    h, _ = layernorm_forward(x, *weights["ln_f"])
    logits = linear_forward(h, wte.T)[0].reshape(V)
    if kept is kv:
        return logits
    for layer, row in enumerate(kv[:, position]):
        row[:] = kept[layer][position].numpy()
    return logits.numpy()


def check(token, position, threads, kv, V, shape):
    """ValueError for what the kernels, which check no index, would read or write out of bounds."""
    if not 0 <= token < V:
        raise ValueError(f"token {token} has no row in a table of {V}: encode with the model's own tokenizer")
    if not 0 <= position < shape[1]:
        raise ValueError(f"position {position} is not in a block of {shape[1]}: read a shorter text anew")
    in_place = not isinstance(kv, np.ndarray) or kv.flags.c_contiguous and kv.flags.writeable
    if kv.shape != shape or kv.dtype != f32 or not in_place:
        raise ValueError(f"kv is {kv.dtype} {kv.shape}, but it must be writeable, contiguous float32 {shape}")
    if threads < 1:
        raise ValueError(f"threads is {threads}: at least 1 is needed")


@kernel(F1, F3, U, U, F2, F1)
def attend(qkv, kv, layer, position, scores, out):  # (3C,), (L, block_size, 2C), (H, block_size), (C,)
    """A block has head h. A thread has some channels of the new key and value; then some keys, whose scores
    q . k it writes; then it looks for the largest of all. Last, a warp has every WARPS-th value, and a thread
    of it every 32nd channel: neighbours read neighbours. The warps' sums meet in shared memory."""
    h, t = u32(cuda.blockIdx.x), u32(cuda.threadIdx.x)
    C, n, warp, lane = u32(out.size), position + u32(1), t // WARP, t % WARP
    D = C // u32(scores.shape[0])
    first, scale = h * D, ONE / math.sqrt(f32(D))
    sums = cuda.shared.array((WARPS, 32), F)
    masses = cuda.shared.array((WARPS, 32), F)
    for c in range(first + t, first + D, u32(THREADS)):
        kv[layer, position, c], kv[layer, position, C + c] = qkv[C + c], qkv[C + C + c]
    cuda.syncthreads()
    for j in range(t, n, u32(THREADS)):
        score = ZERO
        for c in range(first, first + D):
            score += qkv[c] * kv[layer, j, c]
        scores[h, j] = score * scale
    cuda.syncthreads()
    largest = scores[h, u32(0)]
    for j in range(n):
        largest = max(largest, scores[h, j])
    for start in range(first, first + D, WARP):
        c, total, mass = start + lane, ZERO, ZERO
        if c < first + D:
            for j in range(warp, n, u32(WARPS)):
                weight = math.exp(scores[h, j] - largest)
                total += weight * kv[layer, j, C + c]
                mass += weight
        sums[warp, lane], masses[warp, lane] = total, mass
        cuda.syncthreads()
        if warp == 0 and c < first + D:
            total, mass = ZERO, ZERO
            for w in range(WARPS):
                total += sums[w, lane]
                mass += masses[w, lane]
            out[c] = total / mass
        cuda.syncthreads()
