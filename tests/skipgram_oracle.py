"""Skip-gram's walk over a text in the plainest way, in float64: the oracle for both rooms of lesson 7."""
import math


def sigmoid(s):
    return 1 / (1 + math.exp(-s))


def stepped(v, outputs, targets, rate):  # -> v and outputs after one step; target 0 is the true one
    v, outputs = v.astype(float), outputs.astype(float)
    g = [rate * ((k == 0) - sigmoid(v @ outputs[t])) for k, t in enumerate(targets)]
    after = v + sum(x * outputs[t] for x, t in zip(g, targets))
    for x, t in zip(g, targets):
        outputs[t] += x * v
    return after, outputs


def walk(words, vectors, table, window, negatives, rates, seed):  # -> vectors afterwards, the last state
    """With a random generator of its own writing."""
    vectors = vectors.astype(float)

    def pick(n):
        nonlocal seed
        seed = seed * 48271 % (2**31 - 1)
        return seed * n // 2**31

    for i, word in enumerate(words):
        reach = 1 + pick(window)
        rate = rates[0] + (rates[1] - rates[0]) * i / len(words)
        for j, near in enumerate(words):
            if j != i and abs(j - i) <= reach:
                drawn = [table[pick(len(table))] for _ in range(negatives)]
                targets = [near] + [other for other in drawn if other != near]
                vectors[0, word], vectors[1] = stepped(vectors[0, word], vectors[1], targets, rate)
    return vectors, seed
