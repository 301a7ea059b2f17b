"""The demonstration of lesson 3: two states find vowels and consonants."""
import re

import numpy as np

from lessons import devices
from lessons.l03_hmm import baum_welch, first_guess, sample
from lessons.texts import numbered, read_text

STARTS = 3, 4, 5  # seeds
ROUNDS = 1, 10, 20, 40, 100  # those that are shown
LINE = "to be or not to be that is the question"


def main():
    ops = devices.module("cpu", "hmm")
    codes, alphabet = numbered(re.sub("[^a-z]+", " ", read_text("shakespeare").lower())[:30_000])
    print(f"{len(codes):,} letters of Shakespeare, two states (_ is a space). Bits a letter, from three "
          "random starts:")
    print("  rounds ", *(f"{n:7}" for n in ROUNDS))
    found = []
    for seed in STARTS:
        model, bits = first_guess(codes, len(alphabet), 2, seed), []
        for _ in range(ROUNDS[-1]):
            model, likelihood = baum_welch(ops, [codes], model, prior=(0, 0, 0))
            bits.append(-likelihood / np.log(2) / len(codes))
        found.append((bits[-1], seed, model))
        print(f"  start {seed} ", *(f"{bits[n - 1]:7.3f}" for n in ROUNDS))
    (_, seed, model), letters = min(found), alphabet.replace(" ", "_")
    print(f"No round is worse than the one before, yet some starts end worse. The best, {seed}, in percent:")
    for state, chances in enumerate(model.emission.T):
        most = [f"{letters[v]} {100 * chances[v]:.0f}" for v in (-chances).argsort() if chances[v] > 0.005]
        mine = [letters[v] for v in np.flatnonzero(model.emission.argmax(axis=1) == state)]
        print(f"  state {state}: {', '.join(most)}")
        print("    letters that it writes more often than the other:", *mine)
    path, _ = ops.viterbi([alphabet.index(letter) for letter in LINE], *model)
    print("Nobody told it of vowels. A line, its most probable states, and what the model writes itself:")
    print(f"  {LINE}\n  {''.join(map(str, path))}")
    written = sample(model, 60, np.random.default_rng(seed))
    print(" ", "".join(alphabet[v] for v in written))
