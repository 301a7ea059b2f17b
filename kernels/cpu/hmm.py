"""Lesson 3's recursions on a CPU. Most of emission may be 0: a state that cannot write a letter is skipped.

advance    reads alpha, a block of transition and emission; writes after, returns its sum
retreat    reads alpha, a block of transition and beta; adds to a block of moves, writes before
best_step  reads score, a block of transition and emission, all logarithms; writes after and back

Letter v is written by the states low[v] .. high[v] - 1 alone. From a letter to the next only a block of
transition matters: the m states of the one by the n states of the other. If every state can write every
letter, the block is all of it. Numbers are computed in transition's dtype; float32 takes 0.6 of the time.
"""
import numpy as np

from kernels.cpu.compiled import check_shapes, kernel


def forward(codes, initial, transition, emission):  # (T,), (S,), (S, S), (V, S) -> (T, S), (T,)
    codes, initial, transition, emission, low, high = ready(codes, initial, transition, emission)
    alpha, scale = np.zeros((codes.size, initial.size), transition.dtype), np.empty(codes.size)
    go_forward(codes, initial, transition, emission, low, high, low, alpha, scale)
    return alpha, scale


def expected_counts(codes, initial, transition, emission, starts, moves, letters):  # adds to the last three
    codes, initial, transition, emission, low, high = ready(codes, initial, transition, emission)
    check_shapes(initial.shape, starts=starts)
    check_shapes(transition.shape, moves=moves)
    check_shapes(emission.shape, letters=letters)
    return go_back(codes, initial, transition, emission, low, high, starts, moves, letters)


def viterbi(codes, initial, transition, emission):  # (T,), (S,), (S, S), (V, S) -> (T,), float
    codes, initial, transition, emission, low, high = ready(codes, initial, transition, emission)
    with np.errstate(divide="ignore"):  # ln 0 is -inf
        return best_path(codes, np.log(initial), np.log(transition), np.log(emission), low, high)


def ready(codes, initial, transition, emission):
    """All contiguous and of one dtype; for each letter the first state that can write it, and the one behind
    the last. ValueError if shapes do not fit, or a code is no letter: the kernels check no index."""
    V, S = emission.shape
    check_shapes((S,), initial=initial)
    check_shapes((S, S), transition=transition)
    codes = np.ascontiguousarray(codes, np.int64)
    if codes.min() < 0 or codes.max() >= V:
        raise ValueError(f"codes are from {codes.min()} to {codes.max()}, but there are {V} letters")
    transition = np.ascontiguousarray(transition)
    initial, emission = (np.ascontiguousarray(x, transition.dtype) for x in (initial, emission))
    can = emission > 0
    return codes, initial, transition, emission, can.argmax(axis=1), S - can[:, ::-1].argmax(axis=1)


@kernel
def advance(alpha, transition, i0, j0, emission, after):  # (m,), (S, S), int, int, (n,), (n,) -> float
    """One letter forward. With the block a_ij = transition[i0 + i, j0 + j], i < m, j < n:

        after_j = emission_j sum_i alpha_i a_ij,  then all of after is divided by its sum, which is returned

    after is overwritten, whatever was there. The inner loop runs over j, along a row of transition: numbers
    that lie side by side are loaded and multiplied eight at a time."""
    after[:] = 0
    for i in range(alpha.size):
        row = transition[i0 + i, j0:j0 + after.size]
        for j in range(after.size):
            after[j] += alpha[i] * row[j]
    total = transition.dtype.type(0)
    for j in range(after.size):
        after[j] *= emission[j]
        total += after[j]
    for j in range(after.size):
        after[j] /= total
    return total


@kernel
def retreat(alpha, transition, i0, j0, beta, moves, before):  # (m,), (S, S), int, int, (n,), (S, S), (m,)
    """One letter back, with the block a_ij = transition[i0 + i, j0 + j], i < m, j < n. beta_j is already
    multiplied by its letter's emission and divided by its scale. Writes before, adds to moves:

        before_i = sum_j a_ij beta_j            moves[i0 + i, j0 + j] += alpha_i a_ij beta_j

    Both from one reading of the row: a_ij beta_j serves twice. The sum is in the dtype of transition."""
    for i in range(alpha.size):
        row, count = transition[i0 + i, j0:j0 + beta.size], moves[i0 + i, j0:j0 + beta.size]
        total = transition.dtype.type(0)
        for j in range(beta.size):
            x = row[j] * beta[j]
            total += x
            count[j] += alpha[i] * x
        before[i] = total


@kernel
def best_step(score, transition, i0, j0, emission, after, back):  # (m,), (S, S), int, int, (n,), (n,), (n,)
    """One letter of Viterbi, in logarithms (-inf: impossible), with a_ij = transition[i0 + i, j0 + j]:

        after_j = max_i (score_i + a_ij) + emission_j           back_j = i0 + the first i that reaches it

    after and back are overwritten, whatever was there; back_j is i0 where all are -inf."""
    after[:] = -np.inf
    back[:] = i0
    for i in range(score.size):
        row = transition[i0 + i, j0:j0 + after.size]
        for j in range(after.size):
            if score[i] + row[j] > after[j]:
                after[j] = score[i] + row[j]
                back[j] = i0 + i
    for j in range(after.size):
        after[j] += emission[j]


@kernel
def go_forward(codes, initial, transition, emission, low, high, at, alpha, scale):
    """Row t of alpha has its n numbers from column at[v] on: low puts them where forward() wants them, 0s
    save space."""
    one = np.ones(1, transition.dtype)
    for t in range(codes.size):
        v = codes[t]
        n = high[v] - low[v]
        letter, after = emission[v, low[v]:high[v]], alpha[t, at[v]:at[v] + n]
        if t == 0:  # from one state before the first, with its transitions `initial`
            scale[t] = advance(one, initial.reshape(1, -1), 0, low[v], letter, after)
        else:
            u = codes[t - 1]
            before = alpha[t - 1, at[u]:at[u] + high[u] - low[u]]
            scale[t] = advance(before, transition, low[u], low[v], letter, after)


@kernel
def go_back(codes, initial, transition, emission, low, high, starts, moves, letters):
    """beta needs no array of T rows: each is used up where it is made."""
    T, widest = codes.size, (high - low).max()
    alpha, scale = np.empty((T, widest), transition.dtype), np.empty(T)
    go_forward(codes, initial, transition, emission, low, high, np.zeros_like(low), alpha, scale)
    beta, before = np.ones(widest, transition.dtype), np.empty(widest, transition.dtype)
    for t in range(T - 1, -1, -1):
        v = codes[t]
        n = high[v] - low[v]
        for j in range(n):
            letters[v, low[v] + j] += alpha[t, j] * beta[j]
        if t == 0:
            for j in range(n):
                starts[low[v] + j] += alpha[t, j] * beta[j]
        else:
            u, r = codes[t - 1], transition.dtype.type(1 / scale[t])
            m = high[u] - low[u]
            for j in range(n):
                beta[j] *= emission[v, low[v] + j] * r
            retreat(alpha[t - 1, :m], transition, low[u], low[v], beta[:n], moves, before[:m])
            beta, before = before, beta
    return np.log(scale).sum()


@kernel
def best_path(codes, initial, transition, emission, low, high):  # logarithms
    T, widest = codes.size, (high - low).max()
    score, after, back = np.empty(widest), np.empty(widest), np.empty((T, widest), np.int64)
    for t in range(T):
        v = codes[t]
        n = high[v] - low[v]
        letter = emission[v, low[v]:high[v]]
        if t == 0:
            for j in range(n):
                score[j] = initial[low[v] + j] + letter[j]
        else:
            u = codes[t - 1]
            best_step(score[:high[u] - low[u]], transition, low[u], low[v], letter, after[:n], back[t, :n])
            score, after = after, score
    path, n = np.empty(T, np.int64), high[codes[-1]] - low[codes[-1]]
    path[-1] = low[codes[-1]] + score[:n].argmax()
    for t in range(T - 1, 0, -1):
        path[t - 1] = back[t, path[t] - low[codes[t]]]
    return path, score[:n].max()
