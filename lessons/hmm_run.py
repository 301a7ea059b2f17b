"""The command line of lesson 3: it trains the league's hidden Markov model and writes with it."""
import time

import numpy as np
from rich.progress import track

from lessons import devices
from lessons.errors import Parser, non_negative_int, number, positive_int
from lessons.l03_hmm import nats, parameters, sample, train
from lessons.model_file import check_place, save_model
from lessons.texts import numbered, read_text, split

few_states = number(int, lambda n: 1 <= n <= 5000, "a whole number from 1 to 5000")
STATES, ROUNDS = 1000, 50  # more of either: a little better, and longer than two minutes on two cores


def main(argv):
    parser = Parser("hmm", "Hidden states on letters. Without an option: vowels and consonants.")
    parser.add_argument("--train", action="store_true", help="train the model for the league of lesson 20")
    parser.add_argument("--states", type=few_states, default=STATES, help=f"(default: {STATES})")
    parser.add_argument("--rounds", type=positive_int, default=ROUNDS, help=f"(default: {ROUNDS})")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="(default: 0)")
    parser.add_argument("--out", metavar="FILE", default="out/hmm.npz", help="(default: out/hmm.npz)")
    args = parser.parse_args(argv)
    if not args.train:
        parser.error("the other options need --train")
    check_place(args.out)
    text, ops = read_text("shakespeare"), devices.module("cpu", "hmm")
    codes, alphabet = numbered(text)
    training, validation = split(codes)
    print(f"{args.states} states, {args.rounds} rounds of Baum-Welch over {len(training):,} letters: "
          "about two minutes on two cores, if nothing is changed")
    start = time.perf_counter()
    model = train(ops, training, len(alphabet), args.states, track(range(args.rounds), ""), args.seed)
    seconds = time.perf_counter() - start
    save_model(args.out, text, seconds, **model._asdict())
    bits = nats(ops, model, training[-1000:], validation).mean() / np.log(2)
    print(f"{seconds:.0f} s, {parameters(model):,} numbers, {bits:.3f} bits a character on the last tenth")
    print(f"written: {args.out}\nIt writes:")
    print("".join(alphabet[v] for v in sample(model, 300, np.random.default_rng(args.seed))))
