"""Lesson 4: decision trees. Which questions about what was written tell most about the next letter?

"Is the last character one of a e i o u?" After a yes other letters come than after a no, and other questions
are best. A tree asks one question a node; what was counted at the leaf it comes to is its guess. The best
question saves most bits. With n_c the times that c came next at a node, n their sum:

    bits(node) = sum_c n_c log2(n / n_c)                 what its characters cost, each at its own price
    gain       = bits(node) - bits(yes) - bits(no)       0 or more: the more questions, the better the fit

But small nodes fit by luck. So a node trusts its parent too, the more so the more kinds of characters (types)
it has seen in few (Witten & Bell 1991, method C, has TRUST = 1, for counts that nobody chose):

    p(c | node) = (n_c + TRUST types p(c | parent)) / (n + TRUST types)

Trees that chance keeps apart err in different places: a random forest multiplies what they say.
Bahl, Brown, de Souza & Mercer 1989 (a tree as a language model); Nadas et al. 1991 (sets by turns); Breiman
et al. 1984 (the order of values); Xu & Jelinek 2004 (forests). `make lesson 4` shows what a tree asks first.
K places, V characters; tables (K, V, V): tables[k - 1, a, c] counts c after an a as k-th last character.
"""
import heapq
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lessons import devices
from lessons.texts import numbered, read_text, split
from lessons.written_tree import Tree, first, load, outline, parameters  # noqa: F401 (the league uses all)

K = 8  # a question may be about one of the last 8 characters
TURNS = 6  # from set to order and back, at most
# PRICE, TRUST and OFFERED: of those tried, the best for the last tenth of the training text, grown without it
PRICE = 2.0  # bits that a question must gain for each value that its set could hold, or it is luck
TRUST, OFFERED = 24.0, 0.6  # OFFERED: the chance of a place to be asked about, at each node of a forest


def bits(counts):  # (..., V) -> (...) float64
    """What the counted characters cost, each at its own price: sum_c n_c log2(n / n_c), where n = sum_c n_c
    and a count of 0 costs nothing. No counts at all: 0.

    >>> bits(np.array([[2, 2], [4, 0], [0, 0]]))
    array([4., 0., 0.])
    """
    n = counts.sum(axis=-1, keepdims=True)
    return (counts * np.log2(np.maximum(n, 1) / np.maximum(counts, 1))).sum(axis=-1)


def histograms(codes, positions, places, V):  # (N,), (m,) int64 -> (places, V, V) int32
    """tables[k - 1, a, c]: at how many of the positions i stands c = codes[i], and a = codes[i - k]?
    k is 1 .. places. Each k is one np.bincount of a V + c, reshaped. positions are places or more."""
    tables = [np.bincount(codes[positions - k] * V + codes[positions], minlength=V * V)
              for k in range(1, places + 1)]
    return np.array(tables, np.int32).reshape(places, V, V)


def best_set(table):  # (V, V) -> (V,) bool, gain
    """One place: which of its values say yes? There are 2^V sets, but in an order of the values only V - 1
    cuts: the first part says yes. rows: those of the table's values and next characters that occur.

        1. score(a): the share of rows[a] that is the most frequent character (of those equal, the first)
        2. cut: order by score, upward (equals in the table's order: kind="stable"); yes[j] = the sum of the
           first j + 1 rows, no[j] = the rest; gain: the first largest bits(total) - bits(yes) - bits(no)
        3. score(a) = sum_c rows[a, c] / n_a * log((yes(c) + q(c)) / (no(c) + q(c))), the sides of that cut:
           where next characters like those of a stand. q(c) = total(c) / n, lest one be 0

    2 and 3 by turns, at most TURNS cuts, until one gains no more (by 1e-9) than the one before, or 0: then
    that stays, or no members, 0.0; so too for less than two values. If only two characters can come next, the
    best of all 2^V sets is one of these cuts."""
    seen, total = np.flatnonzero(table.any(axis=1)), table.sum(axis=0)
    members, gain = np.zeros(len(table), bool), 0.0
    rows, total = table[seen][:, total > 0], total[total > 0]
    if len(seen) < 2:
        return members, gain
    shares, q = rows / rows.sum(axis=1, keepdims=True), total / total.sum()
    score = shares[:, total.argmax()]
    for _ in range(TURNS):
        order = np.argsort(score, kind="stable")
        yes = rows[order].cumsum(axis=0)[:-1]
        gains = bits(total) - bits(yes) - bits(total - yes)
        cut = gains.argmax()
        if gains[cut] <= gain + 1e-9:
            break
        gain, members[:] = gains[cut], False
        members[seen[order[:cut + 1]]] = True
        score = shares @ np.log((yes[cut] + q) / (total - yes[cut] + q))
    return members, gain


def best_question(tables, offered, price):  # (places, V, V), (places,) bool -> k, (V,) bool, worth
    """Of the offered places the one with the most worth = gain - price * values seen there. A set of many
    values can fit by luck. If nothing is worth more than 0: k = 0, no members, 0.0."""
    best = 0, np.zeros(tables.shape[1], bool), 0.0
    for k in np.flatnonzero(offered) + 1:
        members, gain = best_set(tables[k - 1])
        worth = gain - price * tables[k - 1].any(axis=1).sum()
        if worth > best[2]:
            best = int(k), members, float(worth)
    return best


def partition(codes, positions, k, members):  # (N,), (m,) int64, int, (V,) bool -> how many yes
    """In place: first the positions i with members[codes[i - k]], then the others, all in the old order."""
    yes = members[codes[positions - k]]
    positions[:] = np.concatenate([positions[yes], positions[~yes]])
    return yes.sum()


def grow(ops, codes, V, leaves, offer=lambda: np.ones(K, bool), price=PRICE):  # (N,) -> Tree
    """Best first: of all leaves the one is split whose question is worth most, until there are `leaves` of
    them, or none is worth more than 0. The positions K .. N - 1 lie in one array; a node owns a span of it,
    and partition sorts it into two. offer() says, once a node, of which places it may ask.

    A new node v, from the root on: tables = ops.histograms(codes, its positions, K, V); counts[v]; then
    ops.best_question(tables, offer(), price). If k > 0, (-worth, v, k, members) goes onto a heap: heapq gives
    the smallest back, and of those equally worth the oldest. A split writes ask, members and yes, and makes
    two new nodes, behind all that there are: yes first, then no. Unused rows are cut off at the end."""
    positions, spans, heap, size = np.arange(K, len(codes)), [], [], 2 * leaves - 1
    tree = Tree(*(np.zeros(shape, kind) for shape, kind in (
        (size, np.int64), ((size, V), bool), (size, np.int64), ((size, V), np.int32))))

    def add(start, stop):
        v = len(spans)
        spans.append((start, stop))
        tables = ops.histograms(codes, positions[start:stop], K, V)
        tree.counts[v] = tables[0].sum(axis=0)
        k, members, worth = ops.best_question(tables, offer(), price)
        if k > 0:
            heapq.heappush(heap, (-worth, v, k, members))
    add(0, len(positions))
    while heap and len(spans) < size:
        _, v, k, members = heapq.heappop(heap)
        start, stop = spans[v]
        middle = start + ops.partition(codes, positions[start:stop], k, members)
        tree.ask[v], tree.members[v], tree.yes[v] = k, members, len(spans)
        add(start, middle)
        add(middle, stop)
    return Tree(*(array[:len(spans)] for array in tree))


def smooth(counts, yes, trust):  # (n, V), (n,) -> (n, V) float64
    """p(c | node) of the formula on top. The root's parent gives each character 1 / V; types = how many
    counts of a node are not 0. Children have higher numbers than their parent: from 0 upward will do."""
    pull = trust * (counts > 0).sum(axis=1, keepdims=True)
    total, p = counts.sum(axis=1, keepdims=True) + pull, np.full(counts.shape, 1 / counts.shape[1])
    for v in range(len(yes)):
        p[v] = (counts[v] + pull[v] * p[v]) / total[v]
        if yes[v]:
            p[yes[v]:yes[v] + 2] = p[v]
    return p


def find_leaves(text, start, ask, members, yes):  # (N,), ... -> (N - start,) int64
    """The leaf of each position start .. N - 1 of text: from the root, yes[v] or, if no, yes[v] + 1."""
    positions = np.arange(start, len(text))
    node = np.zeros(len(positions), np.int64)
    while (at := np.flatnonzero(ask[node])).size:
        v = node[at]
        node[at] = yes[v] + ~members[v, text[positions[at] - ask[v]]]
    return node


def nats(ops, model, before, codes):  # [Tree, ...], (b,), (m,) int64 -> (m,) float64
    """-ln p of each code, the trees' product: p(c) is exp(mean of their ln p(c)), divided by its sum over c.
    What stands before the beginning counts as code 0, a line's end."""
    text, V = np.concatenate([np.zeros(K, np.int64), before[-K:], codes]), model[0].counts.shape[1]
    start, logs = len(text) - len(codes), np.zeros((len(codes), V), np.float32)
    for tree in model:
        p = ops.smooth(tree.counts, tree.yes, TRUST)
        logs += np.log(p).astype(np.float32)[ops.find_leaves(text, start, *tree[:3])]
    logs /= len(model)
    return np.log(np.exp(logs).sum(axis=1, dtype=float)) - logs[np.arange(len(codes)), codes]


def forest(ops, codes, V, trees, leaves, seed=0):
    """Yields the trees, each with a chance of its own, on as many threads as there are cores."""
    def one(number):
        rng = np.random.default_rng([seed, number])
        return grow(ops, codes, V, leaves, lambda: rng.random(K) < OFFERED)
    with ThreadPoolExecutor(devices.cores()) as pool:
        yield from pool.map(one, range(trees))


def main(*argv):
    if argv:
        from lessons.decision_tree_run import main as run
        return run(argv)
    ops = devices.module("cpu", "decision_tree")
    codes, alphabet = numbered(read_text("shakespeare"))
    (training, validation), V, model = split(codes), len(alphabet), []
    score = lambda model, codes=validation: nats(ops, model, training, codes).mean() / np.log(2)
    tree = grow(ops, training := training[-100_000:], V, 2000)
    print(f"The first questions about {len(training):,} characters [bits saved, how often asked]:")
    print(*outline(tree, bits, alphabet, 3), sep="\n")
    print("Bits a character of this tree as it grows, on what it grew on and on the last tenth:")
    for young in (first(tree, leaves) for leaves in (1, 10, 100, 1000, 2000)):
        print(f"  {len(young.ask) // 2 + 1:5,} leaves {score([young], training):7.3f} {score([young]):7.3f}")
    print("Trees that may not ask all, together:")
    for grown in forest(ops, training, V, 3, 2000):
        model.append(grown)
        print(f"  {len(model)} of 2,000 leaves {score(model):7.3f}")
    print('Ten of 20,000 leaves, on the whole training text, below a minute: make lesson 4 ARGS="--train"')
