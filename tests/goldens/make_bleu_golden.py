"""Makes bleu.json: what sacrebleu says of cases that are easy to get wrong. Run it from the root of the
repository, with sacrebleu installed (the tests need only its result):

    python tests/goldens/make_bleu_golden.py

Its default settings, but for the tokenizer: words are what stands between spaces. null: this sentence has
fewer references than others.
"""
import json
import random
from pathlib import Path

import sacrebleu

here = Path(__file__).parent
cat = "the cat sat on the mat"
cases = {
    "equal": ([cat], [[cat]]),
    "one word wrong": (["the cat sat on a mat"], [[cat]]),
    "longer": ([f"{cat} and slept on it"], [[cat]]),
    "shorter": (["the cat sat on"], [[cat]]),
    "the most frequent word alone": (["the the the the the the the"], [[cat]]),
    "no four": (["the cat sat upon the mat"], [[cat]]),
    "no triple and no four": (["the cat is at the mat"], [[cat]]),
    "single words alone": (["mat the on sat cat the"], [[cat]]),
    "no word right": (["a dog lay under some table"], [[cat]]),
    "too short for a four": (["the cat sat"], [[cat]]),
    "empty": ([""], [[cat]]),
    "empty among others": (["", cat], [["a dog lay there"], [cat]]),
    "an empty reference": ([cat, "a dog lay there"], [[""], ["a dog lay there"]]),
    "two references": (["the cat lay on the mat"], [["a cat lay on a mat", cat]]),
    "the larger count of two references": (["the the the cat sat"], [["the the cat sat", "the cat cat sat"]]),
    "the longer reference is nearer": ([cat], [["the cat sat on the mat now", "the cat"]]),
    "two references equally near": ([cat], [["the cat sat on the mat and slept", "the cat sat down"]]),
    "one and three references": (
        [cat, "a dog lay there now"],
        [[cat, None, None], ["a dog lay", "the dog lay there", "a dog was there now"]]),
    "a corpus is no mean": (["a b c d e", "f g h i"], [["a b c d e f g h"], ["f g h j"]]),
}
rng = random.Random(0)
lines = [line for line in (here / "../../data/shakespeare.txt").read_text("utf-8").splitlines()
         if len(line.split()) > 5]
for size, share in (1, 0.3), (5, 0.2), (20, 0.4), (20, 0.8):
    references = rng.sample(lines, size)
    hypotheses = [" ".join(rng.choice(["", "the", "of", word]) if rng.random() < share else word
                           for word in line.split()) for line in references]
    cases[f"{size} lines, {share:.0%} of the words changed"] = (
        [" ".join(line.split()) for line in hypotheses], [[line] for line in references])
made = []
for name, (hypotheses, references) in cases.items():
    streams = [list(stream) for stream in zip(*references, strict=True)]
    score = sacrebleu.corpus_bleu(hypotheses, streams, tokenize="none").score
    made.append({"name": name, "hypotheses": hypotheses, "references": references, "bleu": score})
result = {"made by": f"sacrebleu {sacrebleu.__version__}", "cases": made}
(here / "bleu.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")
