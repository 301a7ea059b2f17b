"""Word vectors. The oracle is the formula, written out number by number, and its finite differences."""
import math

import numpy as np
import pytest

from lessons import l07_word_vectors as lesson
from lessons import word_experiments
from tests.close import assert_close, numeric_grad, unchanged
from tests.skipgram_oracle import sigmoid, walk

TABLE = np.array([3, 0, 1, 1, 4, 2, 0, 3], np.int32)


def normal(*shapes, seed=7):
    g = np.random.default_rng(seed)
    return [g.normal(size=shape) for shape in shapes]


# keep_probability


def test_keep_probability_of_frequent_words_falls_and_rare_ones_stay():
    counts = np.array([5000, 3000, 1500, 499, 1])
    want = [min(1, math.sqrt(0.1 / f) + 0.1 / f) for f in counts / 10_000]
    assert 0.6 < want[0] < 0.8 and want[3:] == [1, 1]
    with unchanged(counts=counts):
        got = lesson.keep_probability(counts, 0.1)
    root = np.minimum(1, np.sqrt(0.1 / (counts / 10_000)))
    assert_close(got, want, "keep", mistakes={"eq. 5 has the root alone; its program adds the ratio": root})


def test_keep_probability_depends_on_shares_not_on_the_length_of_the_text():
    counts = np.array([70, 20, 10])
    assert_close(lesson.keep_probability(counts * 1000, 0.01), lesson.keep_probability(counts, 0.01), "keep")
    assert_close(lesson.keep_probability(counts, 0.01)[0], math.sqrt(1 / 70) + 1 / 70, "keep of 70 in 100")


# noise_table


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_noise_table(size):
    counts = np.array([81, 16, 0, 1, 16])
    shares = np.array([27, 8, 0, 1, 8]) / 44  # 81^0.75 = 27
    want = [next(w for w in range(5) if shares[:w + 1].sum() > (s + 0.5) / size) for s in range(size)]
    with unchanged(counts=counts):
        got = lesson.noise_table(counts, size)
    assert_close(got, want, "table", dtype=np.int32,
                 mistakes={"without the power: words by their count": by_count(counts, size)})


def by_count(counts, size):
    shares = np.cumsum(counts) / counts.sum()
    return np.searchsorted(shares, (np.arange(size) + 0.5) / size)


def test_noise_table_takes_a_middle_that_meets_a_bound_for_the_next_word():
    # shares 1/2, 1/2: the middle of the table's second place of three is exactly P_0
    assert_close(lesson.noise_table(np.array([3, 3]), 3), [0, 1, 1], "table", dtype=np.int32)


# skipgram_loss


@pytest.mark.parametrize("K", [0, 1, 4])
def test_skipgram_loss(K):
    v, u = normal(5, (1 + K, 5))
    want = -math.log(sigmoid(v @ u[0])) - sum(math.log(sigmoid(-v @ other)) for other in u[1:])
    with unchanged(v=v, u=u):
        loss, _, _ = lesson.skipgram_loss(v, u)
    assert type(loss) is float, f"the loss is a {type(loss).__name__}, not a float"
    assert_close(loss, want, "loss")


@pytest.mark.parametrize("K", [0, 1, 4])
def test_skipgram_loss_has_the_gradients_that_finite_differences_find(K):
    v, u = normal(5, (1 + K, 5))
    _, dv, du = lesson.skipgram_loss(v, u)
    assert_close(dv, numeric_grad(lambda v: lesson.skipgram_loss(v, u)[0], v), "dv", rtol=1e-6, atol=1e-8)
    assert_close(du, numeric_grad(lambda u: lesson.skipgram_loss(v, u)[0], u), "du", rtol=1e-6, atol=1e-8)


def test_skipgram_loss_has_the_gradients_of_the_formula():
    v, u = normal(3, (3, 3))
    g = [sigmoid(v @ u[0]) - 1, sigmoid(v @ u[1]), sigmoid(v @ u[2])]
    _, dv, du = lesson.skipgram_loss(v, u)
    assert_close(dv, g[0] * u[0] + g[1] * u[1] + g[2] * u[2], "dv")
    assert_close(du, [g[0] * v, g[1] * v, g[2] * v], "du")


def test_skipgram_loss_survives_scores_of_1000():
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        loss, dv, du = lesson.skipgram_loss(np.array([1000.0, 0]), np.array([[-1.0, 2], [1, 3], [-1, 5]]))
    assert_close(loss, 2000, "loss of two scores of 1000 that are wrong and one that is right")
    assert_close(dv, [1 + 1, -2 + 3], "dv")
    assert_close(du, [[-1000, 0], [1000, 0], [0, 0]], "du")


# draw: the numbers that every machine has


def test_draw_follows_park_and_miller():
    state = np.array([1])
    for _ in range(10_000):
        lesson.draw(state, 10)
    assert state[0] == 399268537  # 48271^10000 mod 2^31 - 1; 1043618065 is the one for 16807
    drawn = [lesson.draw(state, 6) for _ in range(6000)]
    assert sorted(set(drawn)) == list(range(6)) and min(np.bincount(drawn)) > 900


# train_skipgram


@pytest.mark.parametrize("window, negatives", [(1, 1), (3, 2), (5, 6)])
def test_train_skipgram(window, negatives):
    words = np.array([0, 1, 2, 0, 3, 3, 4, 1, 0], np.int32)
    vectors, = normal((2, 5, 3))
    state = np.array([12345])
    want, seed = walk(words, vectors, TABLE, window, negatives, (0.5, 0.1), 12345)
    with unchanged(words=words, table=TABLE):
        lesson.train_skipgram(words, vectors, TABLE, window, negatives, (0.5, 0.1), state)
    assert_close(state, [seed], "state, which says how many numbers were drawn")
    assert_close(vectors[1], want[1], "neighbours' rows, u")
    assert_close(vectors[0], want[0], "centres' rows, v")


def test_train_skipgram_lets_its_rate_fall():
    words, (vectors,) = np.array([0, 1, 2, 0, 1], np.int32), normal((2, 5, 3))
    still = vectors.copy()
    lesson.train_skipgram(words, still, TABLE, 2, 2, (0, 0), np.array([5]))
    assert_close(still, vectors, "vectors, after a walk of rate 0")
    want, _ = walk(words, vectors, TABLE, 2, 2, (1, 0), 5)
    lesson.train_skipgram(words, vectors, TABLE, 2, 2, (1, 0), np.array([5]))
    assert_close(vectors, want, "vectors, after a walk from rate 1 to 0")


def test_train_skipgram_moves_a_word_twice_that_is_drawn_twice():
    vectors, = normal((2, 3, 4))
    words, table = np.array([0, 1], np.int32), np.array([2], np.int32)  # each draw is word 2
    want, _ = walk(words, vectors, table, 1, 3, (0.5, 0.5), 1)
    lesson.train_skipgram(words, vectors, table, 1, 3, (0.5, 0.5), np.array([1]))
    assert_close(vectors[1, 2], want[1, 2], "the row of a word that is drawn three times at once")


def test_train_skipgram_leaves_out_a_drawn_word_that_is_the_true_neighbour():
    vectors, = normal((2, 2, 4))
    words, table = np.array([0, 1], np.int32), np.array([1], np.int32)
    want, _ = walk(words, vectors, table, 1, 2, (0.5, 0.5), 1)
    lesson.train_skipgram(words, vectors, table, 1, 2, (0.5, 0.5), np.array([1]))
    assert_close(vectors, want, "vectors, where only word 1 is ever drawn")


# cooccurrences


@pytest.mark.parametrize("window", [1, 2, 4, 20])
def test_cooccurrences(window):
    words, V = np.random.default_rng(window).integers(0, 5, 15).astype(np.int32), 5
    words[words == 3] = 4  # 3 never occurs
    want = np.zeros((V, V))
    for i, a in enumerate(words):
        for j, b in enumerate(words):
            if 0 < abs(i - j) <= window:
                want[a, b] += 1 / abs(i - j)
    with unchanged(words=words):
        first, second, X = lesson.cooccurrences(words, V, window)
    assert_close(first, np.nonzero(want)[0], "first")
    assert_close(second, np.nonzero(want)[1], "second")
    assert_close(X, want[np.nonzero(want)], "X")


def test_cooccurrences_of_words_with_large_numbers():
    words, V = np.array([99_999, 0, 99_998], np.int32), 100_000  # V * V is more than an int32 holds
    first, second, X = lesson.cooccurrences(words, V, 1)
    assert_close(first, [0, 0, 99_998, 99_999], "first")
    assert_close(second, [99_998, 99_999, 0, 0], "second")
    assert_close(X, [1, 1, 1, 1], "X")


# glove_loss


X = np.array([0.25, 1.0, 3.0, 4.0, 40.0])


def test_glove_loss():
    row, other = normal((5, 4), (5, 4))
    want = 0
    for r, o, x in zip(row, other, X):
        gap = r[0] * o[0] + r[1] * o[1] + r[2] * o[2] + r[3] + o[3] - math.log(x)
        want += min(1, (x / 4) ** 0.75) * gap**2
    with unchanged(row=row, other=other, X=X):
        loss, _, _ = lesson.glove_loss(row, other, X, 4)
    assert type(loss) is float, f"the loss is a {type(loss).__name__}, not a float"
    assert_close(loss, want, "loss")


def test_glove_loss_has_the_gradients_that_finite_differences_find():
    row, other = normal((5, 4), (5, 4))
    _, drow, dother = lesson.glove_loss(row, other, X, 4)
    for name, got, want in (
            ("drow", drow, numeric_grad(lambda row: lesson.glove_loss(row, other, X, 4)[0], row)),
            ("dother", dother, numeric_grad(lambda other: lesson.glove_loss(row, other, X, 4)[0], other))):
        assert_close(got[:, :-1], want[:, :-1], name, rtol=1e-6, atol=1e-7)
        assert_close(got[:, -1], want[:, -1], f"{name} of the biases", rtol=1e-6, atol=1e-7)


def test_glove_loss_has_the_gradients_of_the_formula():
    row, other = np.array([[2.0, 3, 0.5]]), np.array([[1.0, -1, 0.25]])
    pull = 2 * 0.5**0.75 * (2 - 3 + 0.5 + 0.25 - math.log(2))
    _, drow, dother = lesson.glove_loss(row, other, np.array([2.0]), 4)
    assert_close(drow, [[pull, -pull, pull]], "drow")
    assert_close(dother, [[2 * pull, 3 * pull, pull]], "dother")


# train_glove


def test_train_glove():
    vectors, squares = normal((2, 3, 4), (2, 3, 4))
    squares = 1 + squares**2
    first, second, X = np.array([0, 2, 0]), np.array([1, 1, 0]), np.array([2.0, 9.0, 1.0])
    want, want_squares, total = vectors.copy(), squares.copy(), 0
    for i, j, x in zip(first, second, X):
        v, u = want[0, i].copy(), want[1, j].copy()
        gap, f = v[:3] @ u[:3] + v[3] + u[3] - math.log(x), min(1, (x / 5) ** 0.75)
        total += f * gap**2
        for half, word, gradient in (0, i, [*u[:3], 1]), (1, j, [*v[:3], 1]):
            gradient = 2 * f * gap * np.array(gradient)
            want[half, word] -= 0.1 * gradient / np.sqrt(want_squares[half, word])
            want_squares[half, word] += gradient**2
    with unchanged(first=first, second=second, X=X):
        loss = lesson.train_glove(first, second, X, vectors, squares, 0.1, 5)
    assert_close(loss, total, "loss")
    assert_close(squares, want_squares, "squares")
    assert_close(vectors, want, "vectors")


# nearest


def test_nearest():
    vectors = np.array([[1.0, 0], [50, 60], [0, 3], [-2, 0.1], [0.01, 0.002]])
    with unchanged(vectors=vectors):
        got = lesson.nearest(vectors, np.array([0.7, 0]), 5)
    assert_close(got, [0, 4, 1, 2, 3], "the nearest", mistakes={
        "a long row is not nearer than a short one: divide by |v|": np.argsort(-vectors[:, 0])})
    assert_close(lesson.nearest(vectors, np.array([7.0, 0]), 2), [0, 4], "the two nearest")


def test_nearest_without_some_words():
    vectors, = normal((6, 3))
    cosines = [v @ vectors[2] / np.linalg.norm(v) for v in vectors]
    want = [n for n in sorted(range(6), key=lambda n: -cosines[n]) if n not in (2, 4)]
    assert_close(lesson.nearest(vectors, vectors[2], 4, [4, 2]), want, "the nearest but 2 and 4")


def test_nearest_of_rows_that_point_alike_is_the_first():
    assert_close(lesson.nearest(np.ones((40, 2)), np.ones(2), 3), [0, 1, 2], "the nearest of equals")


# principal_components


def test_principal_components():
    x, = normal((8, 4))
    x = x * [1, 5, 0.1, 2] + 30
    with unchanged(x=x):
        got = lesson.principal_components(x, 2)
    directions = np.linalg.eigh(np.cov(x.T))[1]  # the smallest first
    want = (x - x.mean(axis=0)) @ directions[:, [3, 2]]
    signs = np.sign((got * want).sum(axis=0)) if got is not None and got.shape == want.shape else 1
    assert_close(got, want * np.where(signs == 0, 1, signs), "components, up to the sign of each column")


def test_principal_components_of_a_line_lie_as_far_apart_as_its_points():
    x = np.outer([1.0, 2, 4], [0, 3, 4]) + [9, 9, 9]
    got = lesson.principal_components(x, 1)
    assert_close(got.shape, (3, 1), "shape")
    assert_close(np.abs(np.diff(got[:, 0])), [5, 10], "distances")
    assert_close(got.mean(), 0, "the mean of the components")


# what main uses besides


def test_words_are_numbered_the_most_frequent_first():
    codes, names = word_experiments.number_words("The fox’s den. the FOX! Fox's, a the", least=2)
    assert names == ["the", "fox's"] and codes.tolist() == [0, 1, 0, 1, 0]


def test_the_recipe_of_skip_gram_is_the_same_for_the_same_seed():
    words = np.arange(40, dtype=np.int32) % 8
    one, two = (word_experiments.skipgram(lesson, words, 8, D=4, epochs=1, seed=3) for _ in range(2))
    assert np.array_equal(one, two) and one.shape == (8, 4) and one.dtype == np.float32


def test_the_recipe_of_glove_adds_both_rows():
    words = np.array([0, 1, 2, 1, 0, 2, 2], np.int32)
    got = word_experiments.glove(lesson, words, 3, D=4, epochs=1)
    assert got.shape == (3, 4) and got.dtype == np.float32 and np.isfinite(got).all()


def test_analogies_that_hold_exactly_are_all_right():
    number = {word: n for n, word in enumerate(["king", "queen", "man", "woman", "boy", "girl", "hay"])}
    g = np.random.default_rng(1)
    base, step = g.normal(size=(3, 40)), g.normal(size=40)
    rows = np.concatenate([np.repeat(base, 2, axis=0), g.normal(size=(1, 40))])
    rows[1:6:2] += step
    kind, asked, right, near = word_experiments.analogies(rows, number)[0]
    assert (kind, asked) == ("he and she", 6) and right >= 5 and near <= 6


def test_labels_that_overlap_go_apart_and_others_stay():
    boxes = np.array([[0.0, 0, 10, 4], [6, 1, 16, 5], [100, 100, 110, 104], [8, -2, 18, 2]])
    moved = word_experiments.part(boxes)
    after = boxes + np.hstack([moved, moved])
    assert not moved[2].any() and moved[[0, 1, 3]].any()
    for a in range(4):
        for b in range(a):
            assert (np.minimum(after[a, 2:], after[b, 2:]) <= np.maximum(after[a, :2], after[b, :2])).any()


def test_the_map_and_the_scores_need_only_the_words_that_there_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    number = {word: n for n, word in enumerate(" ".join(word_experiments.GROUPS[:4]).split())}
    vectors, = normal((len(number), 5))
    assert word_experiments.draw_map(vectors, number).stat().st_size > 10_000
    monkeypatch.setattr(word_experiments, "ANALOGIES", dict([*word_experiments.ANALOGIES.items()][:1]))
    word_experiments.print_analogies({"skip-gram": vectors}, number)
    lines = capsys.readouterr().out.splitlines()
    assert "chance: 3.45%" in lines[1] and lines[3].split()[:4] == ["he", "and", "she", "42"]
