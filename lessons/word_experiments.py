"""What lesson 7 tries with its vectors: recipes, analogies with an honest score, a map of words.

Lesson 7 shows how each is trained; here is what it needs besides, so that it can be read without.
"""
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import numpy as np
import regex

from lessons.l07_word_vectors import (
    cooccurrences,
    keep_probability,
    nearest,
    noise_table,
    principal_components,
)

ANALOGIES = {  # kind: pairs that differ in the same way; each is asked with the help of every other
    "he and she": "king queen, man woman, father mother, son daughter, brother sister, boy girl, "
                  "prince princess, husband wife, uncle aunt, lord lady, he she, his her, himself herself",
    "now and then": "go went, come came, give gave, take took, see saw, know knew, speak spoke, say said, "
                    "eat ate, make made, find found, stand stood, think thought, hear heard, bring brought",
    "one and many": "man men, woman women, day days, hand hands, eye eyes, friend friends, word words, "
                    "king kings, brother brothers, child children, tear tears, lord lords, year years",
    "you and thou": "you thou, your thy, yours thine, yourself thyself, have hast, are art, do dost, "
                    "will wilt, has hath, does doth, were wert, shall shalt, says saith",
    "more": "great greater, old older, fair fairer, strong stronger, good better, bad worse, long longer, "
            "much more, little less",
}
GROUPS = ("king queen prince princess duke lord lady",
          "father mother son daughter brother sister wife husband",
          "wolf fox cat dog horse bird lion", "head hand eye heart foot tongue face",
          "thou thee thy hast art dost wilt", "two three four five six ten hundred",
          "house castle wood forest tree garden door", "sword blood war death fight battle",
)


def number_words(text, least=5):  # -> codes (n,) int32, names: word i of the text is names[codes[i]]
    """Words in lower case, the most frequent first. Those that occur fewer than `least` times go: of a word
    seen twice there is nothing to learn."""
    found = regex.findall(r"\p{L}+(?:'\p{L}+)?", text.lower().replace("’", "'"))
    names = [word for word, times in Counter(found).most_common() if times >= least]
    number = {word: n for n, word in enumerate(names)}
    return np.array([number[word] for word in found if word in number], np.int32), names


def skipgram(ops, words, V, D=64, epochs=5, rate=0.025, threads=1, seed=0):  # -> (V, D)
    """The centres' rows. Each thread walks over its piece of the text; all move the same vectors. What two
    do to one row at once may be lost: with more than one thread no run is like another, and all are as good.
    One thread gives the same bits each time."""
    rng, counts = np.random.default_rng(seed), np.bincount(words, minlength=V)
    vectors = np.zeros((2, V, D), np.float32)
    vectors[0] = rng.uniform(-1 / D, 1 / D, (V, D))
    table, keep = noise_table(counts, 1 << 18), keep_probability(counts, 1e-3)
    pieces, states = np.array_split(words, threads), rng.integers(1, 2**31 - 1, (threads, 1))
    with ThreadPoolExecutor(threads) as pool:
        for epoch in range(epochs):
            rates = [rate * max(1 - now / epochs, 1e-4) for now in (epoch, epoch + 1)]
            kept = [piece[rng.random(len(piece)) < keep[piece]] for piece in pieces]
            list(pool.map(lambda piece, state, rates=rates: ops.train_skipgram(
                piece, vectors, table, 5, 5, rates, state), kept, states))
    return vectors[0]


def glove(ops, words, V, D=64, epochs=10, rate=0.1, threads=1, seed=0):  # -> (V, D)
    """Both rows of a word are alike in what they do, so their sum is its vector (section 4.2). Each thread
    has its share of the pairs, in an order by chance."""
    rng = np.random.default_rng(seed)
    first, second, X = cooccurrences(words, V, 5)
    vectors = rng.uniform(-0.5 / D, 0.5 / D, (2, V, D + 1)).astype(np.float32)
    squares = np.ones_like(vectors)
    shares = [(first[s], second[s], X[s]) for s in np.array_split(rng.permutation(len(X)), threads)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(epochs):
            list(pool.map(lambda share: ops.train_glove(*share, vectors, squares, rate, 10), shares))
    return vectors.sum(axis=0)[:, :D]


def analogies(vectors, number):  # (V, D), {word: row} -> [(kind, asked, right, right without the analogy)]
    """a : b = c : d is right if d is the word nearest to b - a + c, each divided by its length, when a, b and
    c themselves may not be the answer (Mikolov, Yih & Zweig 2013). An honest score says, too, how often d is
    the word nearest to c, since then there is no need of a and b (Linzen 2016)."""
    unit, results = vectors / np.linalg.norm(vectors, axis=1, keepdims=True), []
    for kind, text in ANALOGIES.items():
        pairs = [[number[word] for word in pair.split()] for pair in text.split(", ")
                 if all(word in number for word in pair.split())]
        right = near = 0
        for (a, b), (c, d) in permutations(pairs, 2):
            right += nearest(unit, unit[b] - unit[a] + unit[c], 1, [a, b, c])[0] == d
            near += nearest(unit, unit[c], 1, [a, b, c])[0] == d
        results.append((kind, len(pairs) * (len(pairs) - 1), right, near))
    return results


def print_analogies(models, number):
    """The score of each model in each kind, and the score of a guess that only looks near c."""
    print("analogies, as king : queen = man : woman. How often the first guess is right, and beside it",
          f"how often the word that is nearest to 'man' alone is (chance: {1 / len(number):.2%})",
          f"  {'':14} asked" + "".join(f"{name:>12}   nearest" for name in models), sep="\n")
    for results in zip(*(analogies(vectors, number) for vectors in models.values())):
        kind, asked = results[0][:2]
        print(f"  {kind:14}{asked:6}" + "".join(f"{right / asked:12.1%}{near / asked:10.1%}"
                                              for _, _, right, near in results))


def draw_map(vectors, number):  # (V, D), {word: row} -> path
    """Two principal components of some words' vectors; each group of words has a colour. Of labels that would
    lie on each other, each gives way a little."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    groups = [[word for word in group.split() if word in number] for group in GROUPS]
    words = [word for group in groups for word in group]
    rows = vectors[[number[word] for word in words]]
    at = principal_components(rows / np.linalg.norm(rows, axis=1, keepdims=True), 2)
    figure = Figure(figsize=(10, 8), layout="constrained")
    renderer, panel = FigureCanvasAgg(figure).get_renderer(), figure.subplots()
    colours = [f"C{g}" for g, group in enumerate(groups) for _ in group]
    panel.scatter(*at.T, c=colours, s=12)
    panel.margins(0.08)
    panel.set(title="words of Grimm and Shakespeare, two principal components of their vectors",
              xticks=[], yticks=[])
    labels = [panel.annotate(word, place, (0, 4), textcoords="offset points", ha="center", color=colour)
              for word, place, colour in zip(words, at, colours)]
    figure.draw_without_rendering()
    boxes = np.array([label.get_window_extent(renderer).padded(1).extents for label in labels])  # x, y, x, y
    moved = part(boxes) * 72 / figure.dpi
    for label, place, (dx, dy) in zip(labels, at, moved):
        label.set_position((dx, 4 + dy))
        if np.hypot(dx, dy) > 12:
            panel.annotate("", place, (dx, 8 + dy), textcoords="offset points",
                           arrowprops={"arrowstyle": "-", "lw": 0.5, "color": label.get_color()})
    path = Path("out/lessons/word_vectors.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=figure.dpi)
    return path


def part(boxes):  # (N, 4): left, bottom, right, top -> (N, 2), by how much each must move
    """Two boxes that overlap go apart, half the way each, where the way is shorter; at most 500 times."""
    boxes, moved = boxes.copy(), np.zeros((len(boxes), 2))
    for _ in range(500):
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        overlap = np.minimum(high, high.swapaxes(0, 1)) - np.maximum(low, low.swapaxes(0, 1))  # (N, N, 2)
        meet = (overlap > 0).all(axis=2)
        np.fill_diagonal(meet, False)
        if not meet.any():
            break
        side = np.where((low + high) >= (low + high).swapaxes(0, 1), 1, -1)
        along = overlap[..., :1] < overlap[..., 1:]  # go sideways where that is shorter
        way = np.where(np.concatenate([along, ~along], axis=2) & meet[..., None], side * (overlap + 1) / 2, 0)
        step = way.sum(axis=1) / 2
        boxes, moved = boxes + np.hstack([step, step]), moved + step
    return moved
