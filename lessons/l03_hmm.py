"""Lesson 3: hidden Markov models. What can be learned about what nobody wrote down?

A writer is always in one of S states, which nobody sees. It writes a letter, goes to its next state, writes:

    p(z, x) = initial[z_0] emission[x_0, z_0] prod_{t=1}^{T-1} transition[z_{t-1}, z_t] emission[x_t, z_t]

z are its states and x the text, T letters of an alphabet of V. Row i of transition (S, S) says where it goes
from state i; column i of emission (V, S) says what it writes there. p(x) is the sum over all S^T paths z, and
two recursions take S^2 T steps for it: forward and backward. From both, Baum-Welch counts what the writer has
probably done, and makes of the counts a better model: Baum et al. 1970; Rabiner 1989, section III and V.A.

`make lesson 3` shows that two states on letters find vowels and consonants (Cave & Neuwirth 1980).
`make lesson 3 ARGS="--train"` trains the model for the league of lesson 20: minutes, and out/hmm.npz.
"""
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from lessons import devices
from lessons.errors import InputError
from lessons.model_file import load_model

PIECE = 1000  # letters that are worked on at a time: T x S numbers must be kept
PRIOR = 0.5  # moves that each state has made before, so to say; and it wrote one letter


class HMM(NamedTuple):
    """The probabilities, or counts of the same shapes. Sums to 1: initial, a row of transition, a column of
    emission."""
    initial: np.ndarray  # (S,)
    transition: np.ndarray  # (S, S), from the state of the row to that of the column
    emission: np.ndarray  # (V, S)


def forward(codes, initial, transition, emission):  # (T,), (S,), (S, S), (V, S) -> alpha (T, S), scale (T,)
    """Where is the writer, as far as the text up to t can tell? And how likely was letter t before it came?

        alpha[t, j] = p(z_t = j | x_0 .. x_t)            scale[t] = p(x_t | x_0 .. x_{t-1})

    The state is guessed, then the letter seen, then all is divided by the sum, which is scale[t]:

        joint[j] = emission[x_t, j] sum_i alpha[t-1, i] transition[i, j]     (at t = 0 the sum is initial[j])
        scale[t] = sum_j joint[j]        alpha[t] = joint / scale[t]

    Without the division alpha would shrink tenfold with each letter, and be 0 after 300 (Rabiner's scaling).
    p(x) is the product of all scales, so ln p(x) is the sum of their logarithms."""
    alpha, scale = np.empty((len(codes), len(initial))), np.empty(len(codes))
    guess = initial
    for t, code in enumerate(codes):
        joint = guess * emission[code]
        scale[t] = joint.sum()
        alpha[t] = joint / scale[t]
        guess = alpha[t] @ transition
    return alpha, scale


def backward(codes, scale, transition, emission):  # (T,), (T,), (S, S), (V, S) -> beta (T, S)
    """By what factor does the rest of the text change what we believe of the state at t? From the end:

        beta[T-1, i] = 1
        beta[t, i] = sum_j transition[i, j] emission[x_{t+1}, j] beta[t+1, j] / scale[t+1]

    scale is forward's: so alpha[t] * beta[t] sums to 1, and is p(z_t | all of x)."""
    beta = np.ones((len(codes), len(transition)))
    for t in range(len(codes) - 2, -1, -1):
        code = codes[t + 1]
        beta[t] = transition @ (emission[code] * beta[t + 1]) / scale[t + 1]
    return beta


def expected_counts(codes, initial, transition, emission, starts, moves, letters):  # adds to the last three
    """Return ln p(x). If the states could be seen, they would be counted; so each is counted in parts, as
    often as it is to be expected. Add to starts (S,), moves (S, S) and letters (V, S), in place:

        starts[i]     += p(z_0 = i | x)                      = alpha[0, i] beta[0, i]
        letters[v, i] += sum over the t with x_t = v of p(z_t = i | x) = alpha[t, i] beta[t, i]
        moves[i, j]   += sum_{t=1}^{T-1} p(z_{t-1} = i, z_t = j | x)
                       = sum_t alpha[t-1, i] transition[i, j] emission[x_t, j] beta[t, j] / scale[t]

    np.add.at(letters, codes, rows) adds row t to letters[codes[t]], also where a letter occurs twice."""
    alpha, scale = forward(codes, initial, transition, emission)
    beta = backward(codes, scale, transition, emission)
    starts += alpha[0] * beta[0]
    np.add.at(letters, codes, alpha * beta)
    seen = emission[codes] * beta / scale[:, None]
    moves += transition * (alpha[:-1].T @ seen[1:])
    return np.log(scale).sum()


def normalized(starts, moves, letters):  # counts (S,), (S, S), (V, S) -> HMM
    """Shares of the counts: initial sums to 1, and so does every row of transition and every column of
    emission. The counts are not changed; each sum is above 0."""
    return HMM(starts / starts.sum(), moves / moves.sum(axis=1, keepdims=True), letters / letters.sum(axis=0))


def baum_welch(ops, texts, model, prior):  # -> a better HMM, ln p of all texts with the old one
    """One round: expected counts of all texts, then normalized. ln p never falls from round to round, unless
    there is a prior: counts of what we believe to have seen before, an HMM, added to what is counted. A
    probability of 0 stays 0. Each core counts its share of the texts, in the dtype of the model."""
    def count(share):
        counts = HMM(*map(np.zeros_like, model))
        return counts, sum(ops.expected_counts(codes, *model, *counts) for codes in share)
    cores = devices.cores()
    with ThreadPoolExecutor(cores) as pool:
        parts, nats = zip(*pool.map(count, [texts[core::cores] for core in range(cores)]))
    return normalized(*map(sum, zip(prior, *parts))), sum(nats)


def viterbi(codes, initial, transition, emission):  # (T,), (S,), (S, S), (V, S) -> path (T,) int64, ln p
    """The most probable path z for all of x, and its ln p(z, x). It works with logarithms, where 0 becomes
    -inf (NumPy warns of it, unless np.errstate(divide="ignore") is around):

        best[j] = ln initial[j] + ln emission[x_0, j]
        best[j] = max_i (best[i] + ln transition[i, j]) + ln emission[x_t, j]            t = 1 .. T-1

    For each t and j the i is kept that reached the maximum, the first of several. The path ends in the state
    with the largest best, again the first, and what was kept leads back from there to t = 0."""
    with np.errstate(divide="ignore"):
        initial, transition, emission = np.log(initial), np.log(transition), np.log(emission)
    best, came_from = initial + emission[codes[0]], []
    for code in codes[1:]:
        ways = best[:, None] + transition
        came_from.append(ways.argmax(axis=0))
        best = ways.max(axis=0) + emission[code]
    path = [best.argmax()]
    for back in reversed(came_from):
        path.append(back[path[-1]])
    return np.array(path[::-1]), best.max()


def nats(ops, model, before, codes):  # HMM, (n,), (m,) -> (m,) float64
    """-ln p of each of codes, given all that precede it, those of `before` too: -ln scale, by ops.forward
    over both joined, without the first len(before). It goes in pieces of PIECE letters: the first begins
    with model.initial, each other with alpha[-1] @ transition, where alpha is that of the piece before."""
    text, guess, scales = np.concatenate([before, codes]), model.initial, []
    for at in range(0, len(text), PIECE):
        alpha, scale = ops.forward(text[at:at + PIECE], guess, model.transition, model.emission)
        guess = alpha[-1] @ model.transition
        scales.append(scale)
    return -np.log(np.concatenate(scales)[len(before):])


def first_guess(codes, V, states, seed):  # -> HMM
    """Random, for equal states would stay equal for ever. From V states on each writes one letter only, and a
    frequent letter has many: they tell its contexts apart. Baum-Welch leaves those zeros of emission alone,
    and the kernels skip them, so that 1000 states cost no more than 70 that write all letters."""
    rng = np.random.default_rng(seed)
    frequency = (np.bincount(codes, minlength=V) + 1) / (len(codes) + V)
    own = np.ones((V, states))
    if states >= V:
        clones = 1 + np.floor((states - V) * frequency).astype(int)
        clones[frequency.argmax()] += states - clones.sum()
        own = np.repeat(np.eye(V), clones, axis=1)
    share = frequency / own.sum(axis=1) @ own  # of the text, that a state writes
    return normalized(share, share * rng.exponential(size=(states, states)),
                      own * frequency[:, None] * rng.uniform(0.5, 1.5, (V, states)))


def train(ops, codes, V, states, rounds, seed=0):  # rounds: an iterable, so that a progress bar can watch
    """Baum-Welch on pieces of the text. The prior, PRIOR moves of each state, keeps all moves possible."""
    model = first_guess(codes, V, states, seed)
    share = model.initial
    prior = HMM(share, PRIOR * np.tile(share, (states, 1)), model.emission)
    texts = [codes[at:at + PIECE] for at in range(0, len(codes), PIECE)]
    for _ in rounds:
        model, _ = baum_welch(ops, texts, HMM(*(part.astype(np.float32) for part in model)), prior)
    return model


def sample(model, length, rng):  # -> (length,) int64
    """Be the writer: a state, its letter, the next state."""
    V, S = model.emission.shape
    codes, chances = np.empty(length, np.int64), model.initial
    for t in range(length):
        state = rng.choice(S, p=chances)
        codes[t] = rng.choice(V, p=model.emission[:, state])
        chances = model.transition[state]
    return codes


def parameters(model):
    return sum(map(np.count_nonzero, model))


def load(path, text):  # -> HMM, seconds of training
    arrays, seconds = load_model(path, text)
    S, V = arrays.get("initial", np.empty(0)).size, len(set(text))
    want = {"initial": ("f", S), "transition": ("f", S, S), "emission": ("f", V, S)}
    if want != {name: (array.dtype.kind, *array.shape) for name, array in arrays.items()}:
        raise InputError(f"{path} is no model of lesson 3: train anew")
    return HMM(**arrays), seconds


def main(*argv):
    from lessons import hmm_run, vowels  # here, because they import this file
    hmm_run.main(argv) if argv else vowels.main()
