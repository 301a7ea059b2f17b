"""Lesson 4's trees on a CPU: the histograms, the search for a set, the way down.

histograms     reads codes and positions, returns new tables
best_question  reads tables, returns a new set
best_cut       reads rows and order, overwrites left and yes
partition      reads codes and members, overwrites positions
smooth         reads counts and yes, returns a new array
find_leaves    reads all it is given, returns a new array

A cut moves one value from no to yes. Only the counts of its characters change: n log2 n of these is taken
anew, and nothing else is added up again. Most nodes have seen few values: rows hold only these.
"""
import numpy as np

from kernels.cpu.compiled import inlined, kernel

TURNS = 6  # as in the lesson
SMALL = np.arange(4096) * np.log2(np.maximum(np.arange(4096), 1))  # n log2 n of most counts there are


@kernel
def histograms(codes, positions, places, V):  # (N,), (m,) int64 -> (places, V, V) int32
    tables = np.zeros((places, V, V), np.int32)
    for i in positions:
        c = codes[i]
        for k in range(places):
            tables[k, codes[i - k - 1], c] += 1
    return tables


@inlined
def n_log_n(n):
    return SMALL[n] if n < SMALL.size else n * np.log2(n)


@kernel
def best_cut(rows, order, left, yes):  # (r, t) int32, (r,) int64, (t,) int64 twice -> gain, cut
    """The best cut of the rows in that order: the first `cut` of them say yes, 1 <= cut < r. In bits:

        gain = f(n) - f(n_yes) - f(n_no) - sum_c (f(n_c) - f(yes_c) - f(no_c))          f(n) = n log2 n

    (bits(counts) = f(n) - sum_c f(n_c)). From cut to cut one row moves from no to yes, so take out its
    characters' f(yes_c) + f(no_c) and put in the new ones; f is n_log_n. `left` is for the counts on the yes
    side, from 0 on; `yes` becomes a copy of it at the best cut, of equals the first. Returns gain, cut."""
    total = rows.sum(axis=0)
    n, n_yes, gain, cut = total.sum(), 0, -1.0, 0
    inside, left[:] = 0.0, 0  # the sum over c
    for j in range(order.size - 1):
        row = rows[order[j]]
        for c in range(row.size):
            if row[c]:
                old, new = left[c], left[c] + row[c]
                inside += n_log_n(new) - n_log_n(old) + n_log_n(total[c] - new) - n_log_n(total[c] - old)
                left[c] = new
                n_yes += row[c]
        now = n_log_n(n) - n_log_n(n_yes) - n_log_n(n - n_yes) + inside
        if now > gain:
            gain, cut, yes[:] = now, j + 1, left
    return gain, cut


@kernel
def best_question(tables, offered, price):  # (places, V, V) int32, (places,) bool -> k, (V,) bool, worth
    """The lesson's best_question with its best_set inside."""
    places, V, _ = tables.shape
    best_k, best, worth = 0, np.zeros(V, np.bool_), 0.0
    total = tables[0].sum(axis=0)
    occur = np.flatnonzero(total)
    total = total[occur]
    n, top = total.sum(), total.argmax() if total.size else 0
    left, yes, members = np.empty_like(total), np.empty_like(total), np.empty(V, np.bool_)
    rows, seen = np.empty((V, total.size), np.int32), np.empty(V, np.int64)
    sizes, score, direction = np.empty(V, np.int64), np.empty(V), np.empty(total.size)
    for k in range(places):
        if not offered[k]:
            continue
        r = 0
        for a in range(V):
            size = 0
            for c in range(occur.size):
                rows[r, c] = tables[k, a, occur[c]]
                size += rows[r, c]
            seen[r], sizes[r] = a, size
            r += size > 0
        if r < 2:
            continue
        direction[:] = 0
        direction[top] = 1
        gain = 0.0
        for _ in range(TURNS):
            for a in range(r):
                total_score = 0.0
                for c in range(occur.size):
                    total_score += rows[a, c] * direction[c]
                score[a] = total_score / sizes[a]
            order = np.argsort(score[:r], kind="mergesort")
            now, cut = best_cut(rows[:r], order, left, yes)
            if now <= gain + 1e-9:
                break
            gain, members[:] = now, False
            for j in range(cut):
                members[seen[order[j]]] = True
            for c in range(occur.size):
                q = total[c] / n
                direction[c] = np.log((yes[c] + q) / (total[c] - yes[c] + q))
        if gain - price * r > worth:
            best_k, worth, best[:] = k + 1, gain - price * r, members
    return best_k, best, worth


@kernel
def partition(codes, positions, k, members):  # (N,), (m,) int64, k >= 1, (V,) bool -> yes
    others, yes = np.empty_like(positions), 0
    for j in range(positions.size):
        i = positions[j]
        if members[codes[i - k]]:
            positions[yes] = i
            yes += 1
        else:
            others[j - yes] = i
    positions[yes:] = others[:positions.size - yes]
    return yes


@kernel
def smooth(counts, yes, trust):  # (n, V) int32, (n,) int64 -> (n, V) float64
    n, V = counts.shape
    p = np.full((n, V), 1 / V)
    for v in range(n):
        pull, total = 0.0, 0.0
        for c in range(V):
            pull += trust * (counts[v, c] > 0)
            total += counts[v, c]
        for c in range(V):
            p[v, c] = (counts[v, c] + pull * p[v, c]) / (total + pull)
        if yes[v]:
            p[yes[v]] = p[v]
            p[yes[v] + 1] = p[v]
    return p


@kernel
def find_leaves(text, start, ask, members, yes):  # (N,), ... -> (N - start,) int64
    """The leaf of each position start .. N - 1 of text. From the root 0 on, until ask[v] is 0: if
    members[v, the ask[v]-th last character before the position], go to yes[v], else to yes[v] + 1."""
    leaves = np.empty(text.size - start, np.int64)
    for j in range(leaves.size):
        v = 0
        while ask[v]:
            v = yes[v] if members[v, text[start + j - ask[v]]] else yes[v] + 1
        leaves[j] = v
    return leaves
