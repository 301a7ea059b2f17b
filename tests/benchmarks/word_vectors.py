"""Skip-gram on Grimm's tales and Shakespeare: words a second, against gensim's Word2Vec.

Equal for both: words, 100 numbers a word, window, negatives, subsampling, learning rate, threads. gensim has
two ways: sentences in memory, and a file, where its threads need no lock of Python's; ours is compared with
the faster one. Before the clock starts, the 10 nearest words of the 500 most frequent must be those of gensim
about as often as two gensim runs with different seeds agree. The workers are in this file too:

    python -m tests.benchmarks.word_vectors ours|sentences|file THREADS
"""
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from lessons import devices
from lessons.l07_word_vectors import nearest
from lessons.texts import read_text
from lessons.word_experiments import number_words, skipgram
from tests.benchmarks.race import WorkerFailed, race, ratios, serve, worker
from tests.benchmarks.report import spread, table, write

D, EPOCHS, FREQUENT, NEAR = 100, 5, 500, 10
MUST_AIM = "0.8 x / 1.5 x"
LEAST = 0.95  # of the agreement of two gensim runs


def run(options):
    n = len(text()[0])
    print(f"word vectors: skip-gram, {n:,} words, {D} numbers a word, window 5, 5 negatives")
    results, rows = {}, []
    try:
        results["agreement"] = check()
        for threads in sorted({1, devices.cores()}):
            with ExitStack() as stack:
                asks = {name: stack.enter_context(worker("word_vectors", name, str(threads)))
                        for name in ("ours", "sentences", "file")}
                seconds = race(asks, options.rounds)
            best = min(("sentences", "file"), key=lambda name: statistics.median(seconds[name]))
            faster = ratios(seconds[best], seconds["ours"])
            results[threads] = {"seconds": seconds, "compared with": best, "ratios": faster}
            for name, times in seconds.items():
                last = [spread(*faster), MUST_AIM] if name == best else ["", ""]
                label = name if name == "ours" else f"gensim, {name}"
                rows.append([f"{threads} thread{'s' * (threads > 1)}, {label}",
                             f"{n / statistics.median(times):,.0f}", *last])
    except WorkerFailed as reason:
        results["absent"] = str(reason)
        rows.append([f"not measured: {str(reason)[:80]}", "", "", ""])
    table(["", "words/s", "ours is faster by", "must / aim"], rows)
    write("word_vectors", results, options.rounds)


def check():  # -> {who: the share of common neighbours}
    """SystemExit if ours and gensim agree clearly less than two gensim runs do."""
    with worker("word_vectors", "ours", "1") as ours, worker("word_vectors", "sentences", "1") as gensim:
        a, b = ([ask("check", seed) for seed in (1, 2)] for ask in (ours, gensim))
    found = {"gensim and gensim, another seed": common(*b), "ours and ours, another seed": common(*a),
             "ours and gensim": statistics.mean(common(x, y) for x in a for y in b)}
    print(f"  of the {NEAR} nearest words of the {FREQUENT} most frequent, the same for")
    for who, share in found.items():
        print(f"    {who:31} {share:.1%}")
    if not found["ours and gensim"] >= LEAST * found["gensim and gensim, another seed"]:
        raise SystemExit("it is not timed, for ours and gensim differ more than gensim from itself")
    return found


def common(a, b):  # (words, NEAR) twice -> float
    return statistics.mean(len({*x} & {*y}) / NEAR for x, y in zip(a, b, strict=True))


def text():
    return number_words(read_text("grimm") + read_text("shakespeare"))


def neighbours(vectors):  # (V, D) -> (words, NEAR) as lists
    return [nearest(vectors, vectors[w], NEAR, [w]).tolist() for w in range(FREQUENT)]


def make(name, threads, folder):  # -> train(epochs, seed) -> (V, D)
    words, names = text()
    if name == "ours":
        ops = devices.module("cpu", "word_vectors")
        return lambda epochs, seed: skipgram(ops, words, len(names), D, epochs, threads=threads, seed=seed)
    from gensim.models import Word2Vec
    lines = [[names[w] for w in words[at:at + 1000]] for at in range(0, len(words), 1000)]
    source = {"corpus_iterable": lines}
    if name == "file":
        path = Path(folder, "text.txt")
        path.write_text("\n".join(map(" ".join, lines)), encoding="utf-8")
        source = {"corpus_file": str(path)}
    models = {}  # the vocabulary is not timed: it is counted once for each seed

    def train(epochs, seed):
        if seed not in models:
            models[seed] = Word2Vec(sg=1, vector_size=D, window=5, negative=5, sample=1e-3, min_count=1,
                                    alpha=0.025, min_alpha=0.025e-4, workers=threads, seed=seed)
            models[seed].build_vocab(**source)
        model = models[seed]
        model.train(**source, total_examples=len(lines), total_words=len(words), epochs=epochs)
        return model.wv[names]
    return train


def main(name, threads):
    with tempfile.TemporaryDirectory() as folder:
        train = make(name, int(threads), folder)
        train(1, 0)  # compiles; where gensim is absent, it fails before
        serve(lambda i: train(1, 0), lambda seed: neighbours(train(EPOCHS, int(seed))))


if __name__ == "__main__":
    main(*sys.argv[1:])
