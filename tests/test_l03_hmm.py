"""The tests of f are test_f and test_f_*: they are also lesson 3's exercises.

The oracle is brute force: p(z, x) of every path z, one after the other, on models of two or three states.
"""
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest

from lessons import devices, hmm_run, vowels
from lessons import l03_hmm as lesson
from lessons.errors import InputError
from tests.close import assert_close, unchanged

EXACT = {"rtol": 1e-9, "atol": 1e-12}
rng = np.random.default_rng(3)


def model(S=3, V=4):
    """Nothing in it is symmetric, so that each mistake shows."""
    random = lambda *shape: rng.gamma(1.0, size=shape) + 0.05
    initial, transition, emission = random(S), random(S, S), random(V, S)
    return lesson.HMM(initial / initial.sum(), transition / transition.sum(axis=1, keepdims=True),
                      emission / emission.sum(axis=0))


ANY = model()
CODES = np.array([2, 0, 1, 1, 3, 2])
ONE = np.array([3])
# State 0 writes a or b, state 1 writes c; from 1 the writer never stays.
ZEROS = lesson.HMM(np.array([0.25, 0.75]), np.array([[0.5, 0.5], [1.0, 0.0]]),
                   np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]]))
for shared in (*ANY, *ZEROS, CODES, ONE):
    shared.setflags(write=False)


def paths(codes, m):
    """{path: p(path, codes)}, every one."""
    table = {}
    for z in product(range(len(m.initial)), repeat=len(codes)):
        p = m.initial[z[0]] * m.emission[codes[0], z[0]]
        for t in range(1, len(codes)):
            p *= m.transition[z[t - 1], z[t]] * m.emission[codes[t], z[t]]
        table[z] = p
    return table


def likelihood(codes, m):  # p(x); of no letters it is 1
    return sum(paths(codes, m).values()) if len(codes) else 1.0


def scales(codes, m):
    p = [likelihood(codes[:t], m) for t in range(len(codes) + 1)]
    return np.array(p[1:]) / p[:-1]


def state_given(codes, t, m):  # -> (S,), p(z_t | codes)
    table = paths(codes, m)
    return np.array([sum(p for z, p in table.items() if z[t] == i) for i in range(len(m.initial))]
                    ) / sum(table.values())


def filtered(codes, m):
    return np.array([state_given(codes[:t + 1], t, m) for t in range(len(codes))])


# forward


@pytest.mark.parametrize("codes, m", [(CODES, ANY), (ONE, ANY), (np.array([2, 0, 2, 1, 1]), ZEROS)],
                         ids=["six letters", "one letter", "zeros in the model"])
def test_forward_agrees_with_a_sum_over_all_paths(codes, m):
    with unchanged(codes=codes, **m._asdict()):
        alpha, scale = lesson.forward(codes, *m)
    assert_close(scale, scales(codes, m), "scale", **EXACT, dtype=float)
    assert_close(alpha, filtered(codes, m), "alpha", **EXACT, dtype=float, mistakes={
        "this is p(z_t | all of x): the future is beta's": np.array(
            [state_given(codes, t, m) for t in range(len(codes))]),
        "alpha is not divided by its sum": filtered(codes, m) * np.cumprod(scales(codes, m))[:, None]})


def test_forward_does_not_underflow_in_a_text_of_3000_letters():
    alpha, scale = lesson.forward(np.tile(CODES, 500), *ANY)
    assert_close(alpha.sum(axis=1), np.ones(3000), "sums of alpha's rows", **EXACT)
    assert np.isfinite(np.log(scale)).all(), "a scale is 0: without the division p(x) is 0 after 300 letters"


# backward


@pytest.mark.parametrize("codes, m", [(CODES, ANY), (ONE, ANY), (np.array([2, 0, 2, 1, 1]), ZEROS)],
                         ids=["six letters", "one letter", "zeros in the model"])
def test_backward_agrees_with_a_sum_over_all_paths(codes, m):
    scale = scales(codes, m)
    with unchanged(codes=codes, scale=scale, **m._asdict()):
        beta = lesson.backward(codes, scale, m.transition, m.emission)
    want = np.ones((len(codes), len(m.initial)))
    for t in range(len(codes) - 1):
        for i in range(len(m.initial)):  # the rest of the text, as if the writer started from state i
            rest = likelihood(codes[t + 1:], m._replace(initial=m.transition[i]))
            want[t, i] = rest / scale[t + 1:].prod()
    assert_close(beta, want, "beta", **EXACT, dtype=float)


# expected_counts


def counted(codes, m, begin):
    """expected_counts' three arrays, which held `begin` before, and what it returned."""
    counts = [np.full(part.shape, begin) for part in m]
    with unchanged(codes=codes, **m._asdict()):
        nats = lesson.expected_counts(codes, *m, *counts)
    return counts, nats


def expected(codes, m):
    table, counts = paths(codes, m), [np.zeros(part.shape) for part in m]
    for z, p in table.items():
        share = p / sum(table.values())
        counts[0][z[0]] += share
        for t, code in enumerate(codes):
            counts[2][code, z[t]] += share
        for i, j in pairwise(z):
            counts[1][i, j] += share
    return counts


@pytest.fixture
def recursions(monkeypatch):
    """forward and backward by brute force: expected_counts is tested by itself."""
    def backward(codes, scale, transition, emission):
        m = next(m for m in (ANY, ZEROS) if m.transition is transition)
        whole = np.array([state_given(codes, t, m) for t in range(len(codes))])
        part = filtered(codes, m)
        return np.divide(whole, part, out=np.ones_like(whole), where=part > 0)
    monkeypatch.setattr(lesson, "forward", lambda codes, *m: (filtered(codes, lesson.HMM(*m)),
                                                              scales(codes, lesson.HMM(*m))))
    monkeypatch.setattr(lesson, "backward", backward)


@pytest.mark.parametrize("codes, m", [(CODES[1:], ANY), (ONE, ANY), (np.array([2, 0, 2, 1]), ZEROS)],
                         ids=["five letters", "one letter", "zeros in the model"])
@pytest.mark.parametrize("begin", [0.0, 5.0])
def test_expected_counts_are_those_of_all_paths_by_their_probability(codes, m, begin, recursions):
    got, nats = counted(codes, m, begin)
    for part, want, name in zip(got, expected(codes, m), ("starts", "moves", "letters")):
        assert_close(part, begin + want, f"{name}, which was {begin:g} before,", **EXACT)
    assert_close(nats, np.log(likelihood(codes, m)), "what is returned, ln p(x),", **EXACT)


def test_expected_counts_of_a_long_text_return_no_infinity():
    """Each state is as likely after any other, so the letters are independent: p(x) is a product of sums."""
    codes, share = np.tile(CODES, 200), ANY.initial
    _, nats = counted(codes, ANY._replace(transition=np.tile(share, (3, 1))), 0.0)
    want = np.log(ANY.emission[codes] @ share).sum()
    assert_close(nats, want, "ln p of 1200 letters, whose p is no number any more,", **EXACT)


# normalized


def test_normalized_makes_shares_of_counts():
    counts = [np.array([1.0, 3.0]), np.array([[1.0, 1.0], [4.0, 0.0]]), np.array([[2.0, 0.0], [6.0, 5.0]])]
    with unchanged(starts=counts[0], moves=counts[1], letters=counts[2]):
        got = lesson.normalized(*counts)
    want = [[0.25, 0.75], [[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.0], [0.75, 1.0]]]
    assert isinstance(got, lesson.HMM), f"normalized returns an HMM, not a {type(got).__name__}"
    for part, expected, name in zip(got, want, lesson.HMM._fields):
        assert_close(part, expected, name, **EXACT, dtype=float)


# viterbi


def best(codes, m):
    table = paths(codes, m)
    return max(table, key=table.get)  # of several the first in the order of product


@pytest.mark.parametrize("codes, m", [(CODES, ANY), (ONE, ANY), (np.array([2, 0, 2, 1, 1]), ZEROS)],
                         ids=["six letters", "one letter", "zeros in the model"])
def test_viterbi_finds_the_best_of_all_paths(codes, m):
    with unchanged(codes=codes, **m._asdict()):
        path, nats = lesson.viterbi(codes, *m)
    want = best(codes, m)
    assert_close(path, want, "path", mistakes={
        "each state is the most probable by itself: that path need not be possible": [
            int(state_given(codes, t, m).argmax()) for t in range(len(codes))],
        "the path is turned round": want[::-1]})
    assert path.dtype == np.int64, f"path is {path.dtype}, expected int64"
    assert_close(nats, np.log(paths(codes, m)[want]), "ln p of the path", **EXACT)


def test_viterbi_is_right_for_forty_random_models():
    for n in range(40):
        m, codes = model(S=2 + n % 2, V=3), rng.integers(0, 3, 4)
        path, _ = lesson.viterbi(codes, *m)
        assert_close(path, best(codes, m), f"path of model {n}")


def test_viterbi_takes_the_first_of_paths_equally_good():
    path, _ = lesson.viterbi(np.zeros(4, int), np.full(3, 1 / 3), np.full((3, 3), 1 / 3), np.ones((1, 3)))
    assert_close(path, np.zeros(4, int), "path, where all are equal,")


def test_viterbi_of_a_text_that_no_path_writes():
    with np.errstate(divide="ignore"):
        _, nats = lesson.viterbi(np.array([2, 2]), *ZEROS)
    assert nats == -np.inf, f"ln p is {nats}, expected -inf, the logarithm of 0: no path writes this"


def test_viterbi_does_not_underflow_and_is_at_least_as_likely_as_sampled_paths():
    codes = np.tile(CODES, 200)
    path, nats = lesson.viterbi(codes, *ANY)
    log = lambda z: np.log(ANY.initial[z[0]] * ANY.emission[codes[0], z[0]]) + np.log(
        ANY.transition[z[:-1], z[1:]] * ANY.emission[codes[1:], z[1:]]).sum()
    assert_close(nats, log(path), "ln p of the path", **EXACT)
    for _ in range(50):
        other = np.where(rng.random(len(path)) < 0.05, rng.integers(0, 3, len(path)), path)
        assert log(other) <= nats, "a path with a few other states is more likely"


# nats

ROOM = SimpleNamespace(forward=lambda codes, *m: (filtered(codes, lesson.HMM(*m)),
                                                  scales(codes, lesson.HMM(*m))))


@pytest.mark.parametrize("piece", [1, 2, 3, 9])
def test_nats_of_pieces_are_those_of_the_whole_text(piece, monkeypatch):
    monkeypatch.setattr(lesson, "PIECE", piece)
    want = -np.log(scales(CODES, ANY))
    for n in 0, 1, 2, 4:
        with unchanged(codes=CODES, **ANY._asdict()):
            got = lesson.nats(ROOM, ANY, CODES[:n], CODES[n:])
        assert_close(got, want[n:], f"nats behind {n} letters, in pieces of {piece}", **EXACT, dtype=float)


def test_nats_never_asks_for_more_than_a_piece(monkeypatch):
    lengths = []

    def forward(codes, *model):
        lengths.append(len(codes))
        return lesson.forward(codes, *model)
    monkeypatch.setattr(lesson, "PIECE", 4)
    lesson.nats(SimpleNamespace(forward=forward), ANY, CODES[:3], CODES[3:])
    assert lengths == [4, 2], f"ops.forward got {lengths} letters; pieces of PIECE = 4 are 4 and 2"


# what no exercise is about


def test_main_training_never_makes_the_text_less_likely_without_a_prior():
    room, codes = devices.module("numpy", "hmm"), rng.integers(0, 4, 60)
    m, before = lesson.first_guess(codes, 4, 3, seed=0), -np.inf
    for _ in range(25):
        m, now = lesson.baum_welch(room, [codes[:25], codes[25:]], m, (0, 0, 0))
        assert now >= before - 1e-9, f"ln p fell from {before} to {now}"
        before = now


@pytest.mark.parametrize("states", [2, 4, 9, 23])
def test_main_training_gives_probabilities_and_nothing_is_impossible(states):
    codes = np.array([0, 1, 2, 0, 1, 1, 2] * 30)  # 3 never occurs
    m = lesson.train(devices.module("numpy", "hmm"), codes, 4, states, range(3))
    assert [part.shape for part in m] == [(states,), (states, states), (4, states)]
    assert_close(m.initial.sum(), 1, "initial")
    assert_close(m.transition.sum(axis=1), np.ones(states), "rows of transition")
    assert_close(m.emission.sum(axis=0), np.ones(states), "columns of emission")
    _, scale = lesson.forward(np.array([3, 3, 0, 3]), *m)
    assert (scale > 0).all()
    for code in range(4):  # the chances of all letters behind a text
        alpha, _ = lesson.forward(np.array([0, 1, code]), *m)
        assert_close((m.emission @ (alpha[-1] @ m.transition)).sum(), 1, "chances")
    assert lesson.parameters(m) == sum((part > 0).sum() for part in m)


def test_main_sample_writes_what_the_model_can_write():
    codes = lesson.sample(ZEROS, 1000, np.random.default_rng(0))
    c = codes == 2
    assert not (c[:-1] & c[1:]).any(), "cc is impossible"
    assert_close(c.mean(), 1 / 3, "share of c", atol=0.05)


def test_main_finds_the_vowels(monkeypatch, capsys):
    monkeypatch.setattr(vowels, "STARTS", (3,))
    lesson.main()
    assert "a e i o u" in capsys.readouterr().out


def test_main_trains_saves_and_loads(tmp_path, monkeypatch, capsys):
    text, path = "to be or not to be, that is the question. " * 50, tmp_path / "hmm.npz"
    monkeypatch.setattr(hmm_run, "read_text", lambda name: text)
    lesson.main("--train", "--states", "30", "--rounds", "2", "--out", str(path))
    assert "bits a character" in capsys.readouterr().out
    m, seconds = lesson.load(path, text)
    assert m.transition.shape == (30, 30) and seconds > 0


@pytest.mark.parametrize("options, words", [
    (["--rounds", "3"], "need --train"), (["--train", "--states", "0"], "'0' is not a whole number"),
    (["--train", "--states", "99999"], "'99999' is not .* from 1 to 5000"),
    (["--train", "--out", "."], "cannot be written: Is a directory"),
    (["--colour"], "unrecognized arguments: --colour")])
def test_main_says_what_is_wrong_with_an_option(options, words):
    with pytest.raises(InputError, match=words):
        lesson.main(*options)


def test_main_says_that_a_file_is_another_lessons(tmp_path):
    from lessons.model_file import save_model
    save_model(tmp_path / "tree.npz", "text", 1.0, leaves=np.ones(3))
    with pytest.raises(InputError, match="is no model of lesson 3"):
        lesson.load(tmp_path / "tree.npz", "text")


@pytest.mark.parametrize("change", [
    {"transition": np.ones((2, 3))}, {"emission": np.ones((5, 2))}, {"initial": np.array(["a", "b"])},
    {"initial": np.array(1.0)}, {"more": np.ones(2)}])
def test_main_says_that_a_file_has_other_shapes(change, tmp_path):
    from lessons.model_file import save_model
    arrays = {"initial": np.ones(2), "transition": np.ones((2, 2)), "emission": np.ones((3, 2))} | change
    save_model(tmp_path / "hmm.npz", "abc", 1.0, **arrays)
    with pytest.raises(InputError, match="is no model of lesson 3"):
        lesson.load(tmp_path / "hmm.npz", "abc")
