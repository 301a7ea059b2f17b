"""Byte-pair encoding of 1 MB of Shakespeare: learning 4,096 tokens, and encoding the text with them.

Learning is compared with the tokenizers library; encoding with tiktoken, which is given our merges. Before
the clock starts, all merges and all ids must be the same. The workers are in this file too:

    python -m tests.benchmarks.tokenizer learn|encode ours|tokenizers|tiktoken
"""
import json
import statistics
import sys
from contextlib import ExitStack

from lessons.l05_tokenizer import train_bpe
from lessons.texts import read_text
from lessons.tokenizer_json import as_json
from tests.benchmarks.race import WorkerFailed, race, ratios, serve, worker
from tests.benchmarks.report import spread, table, write

VOCAB_SIZE = 4096
AGAINST = {"learn": "tokenizers", "encode": "tiktoken"}
MUST_AIM = {"learn": "1 x / 2 x", "encode": "0.3 x / 1 x"}
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # as OpenAI wrote it


def run(options):
    megabytes = len(read_text("shakespeare").encode()) / 1e6
    print(f"byte-pair encoding: {VOCAB_SIZE} tokens, {megabytes:.2f} MB of text")
    results, rows = {}, []
    for job, other in AGAINST.items():
        try:
            with ExitStack() as stack:
                asks = {name: stack.enter_context(worker("tokenizer", job, name)) for name in ("ours", other)}
                check(job, asks)
                seconds = race(asks, options.rounds)
        except WorkerFailed as reason:
            results[job] = {"absent": str(reason)}
            rows.append([f"{job}: not measured, {str(reason)[:80]}", "", "", ""])
            continue
        faster = ratios(seconds[other], seconds["ours"])
        results[job] = {"ratios": faster, "seconds": seconds}
        for name, times in seconds.items():
            last = [spread(*faster), MUST_AIM[job]] if name == other else ["", ""]
            rows.append([f"{job}, {name}", f"{statistics.median(times) * 1000:.1f} ms", *last])
    table(["", "time", "ours is faster by", "must / aim"], rows)
    write("tokenizer", results, options.rounds)


def check(job, asks):
    """SystemExit unless the workers found the same merges, or the same ids."""
    found = [ask("check", job) for ask in asks.values()]
    if found[0] != found[1]:
        raise SystemExit(f"{job} is not timed, for {' and '.join(asks)} differ")


def make_step(job, name, text):  # -> what is timed, and what makes a list of its result
    if job == "learn" and name == "ours":
        return lambda: train_bpe(text, VOCAB_SIZE), lambda learned: as_json(learned)["model"]["merges"]
    if job == "learn":
        return lambda: with_tokenizers(text), lambda learned: json.loads(learned.to_str())["model"]["merges"]
    ours = train_bpe(text, VOCAB_SIZE)
    if name == "ours":
        return lambda: ours.encode(text), lambda ids: ids.tolist()
    import tiktoken
    ranks = {token: id for id, token in enumerate(ours.tokens)}
    theirs = tiktoken.Encoding("ours", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    return lambda: theirs.encode_ordinary(text), list


def with_tokenizers(text):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def main(job, name):
    step, as_list = make_step(job, name, read_text("shakespeare"))
    step()  # compiles; where a library is absent, it fails here
    serve(lambda i: step(), lambda job: as_list(step()))


if __name__ == "__main__":
    main(*sys.argv[1:])
