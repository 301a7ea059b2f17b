"""The command line of lesson 4: it grows the league's forest."""
import time

import numpy as np
from rich.progress import track

from lessons import devices
from lessons.errors import Parser, non_negative_int, number, positive_int
from lessons.l04_decision_tree import forest, nats
from lessons.model_file import check_place
from lessons.texts import numbered, read_text, split
from lessons.written_tree import parameters, save

some_leaves = number(int, lambda n: 1 <= n <= 200_000, "a whole number from 1 to 200000")
TREES, LEAVES = 10, 20_000  # more of either is a little better, and takes longer than a minute


def main(argv):
    parser = Parser("decision_tree", "Questions about what was written. Without an option: the first ones.")
    parser.add_argument("--train", action="store_true", help="grow the forest for the league of lesson 20")
    parser.add_argument("--trees", type=positive_int, default=TREES, help=f"(default: {TREES})")
    parser.add_argument("--leaves", type=some_leaves, default=LEAVES, help=f"of a tree (default: {LEAVES})")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="(default: 0)")
    parser.add_argument("--out", metavar="FILE", default="out/tree.npz", help="(default: out/tree.npz)")
    args = parser.parse_args(argv)
    if not args.train:
        parser.error("the other options need --train")
    check_place(args.out)
    text, ops = read_text("shakespeare"), devices.module("cpu", "decision_tree")
    codes, alphabet = numbered(text)
    training, validation = split(codes)
    print(f"{args.trees} trees of {args.leaves:,} leaves, grown on {len(training):,} characters: "
          "below a minute on two cores, if nothing is changed")
    start = time.perf_counter()
    grown = forest(ops, training, len(alphabet), args.trees, args.leaves, args.seed)
    model = list(track(grown, "", args.trees))
    seconds = time.perf_counter() - start
    save(args.out, text, seconds, model)
    bits = nats(ops, model, training[-1000:], validation).mean() / np.log(2)
    print(f"{seconds:.0f} s, {parameters(model):,} numbers, {bits:.3f} bits a character on the last tenth\n"
          f"written: {args.out}")
