"""python -m tests.benchmarks [SUBJECT ...] [--rounds 8] [--configs S M L]"""
import argparse
import importlib
import importlib.util

from tests.benchmarks.configs import CONFIGS
from tests.benchmarks.report import machine

SUBJECTS = ["training", "limit", "generation", "mlm", "recurrent", "tokenizer", "word_vectors", "startup",
            "memory", "gradients", "gpu"]
NEED_TORCH = {"training", "generation", "mlm", "recurrent", "gradients", "gpu"}


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure, side by side.")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT",
                        help=f"{', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each worker (default: 8)")
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS),
                        help="models (default: S M L)")
    options = parser.parse_args()
    if unknown := set(options.subjects) - set(SUBJECTS):
        parser.error(f"unknown subject {', '.join(sorted(unknown))}: choose from {', '.join(SUBJECTS)}")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1 is needed")
    subjects = options.subjects or SUBJECTS
    left_out = NEED_TORCH & set(subjects) if importlib.util.find_spec("torch") is None else set()
    if left_out:
        print(f"left out without PyTorch, which `make bench` installs: {', '.join(sorted(left_out))}")
    here = machine()
    print(f"{here['cpu']}, {here['cores']} cores, load {here['load']:.1f}\n")
    for subject in [subject for subject in subjects if subject not in left_out]:
        importlib.import_module(f"tests.benchmarks.{subject}").run(options)


if __name__ == "__main__":
    main()
