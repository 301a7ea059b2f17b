"""The limit: what share of a training step's time its weight matrices' products alone would take."""
import statistics
from contextlib import ExitStack

from tests.benchmarks.configs import CONFIGS, tokens_per_step
from tests.benchmarks.race import race, ratios, worker
from tests.benchmarks.report import table, write

MUST_AIM = "78 % / 85 %"


def run(options):
    print("training, share of the limit: the products with weight matrices alone, 2 threads")
    results, rows = {}, []
    for key in options.configs:
        with ExitStack() as stack:
            asks = {name: stack.enter_context(worker(name, key)) for name in ("ours", "matmuls")}
            seconds = race(asks, options.rounds)
        share, low, high = ratios(seconds["matmuls"], seconds["ours"])
        speed = {name: tokens_per_step(key) / statistics.median(times) for name, times in seconds.items()}
        gigaflops = products(key) / statistics.median(seconds["matmuls"]) / 1e9
        results[key] = {"share": [share, low, high], "tokens per second": speed,
                        "gigaflops at the limit": gigaflops, "seconds": seconds}
        rows.append([key, f"{speed['ours']:,.0f}", f"{speed['matmuls']:,.0f}", f"{gigaflops:.0f}",
                     f"{share:.0%} [{low:.0%} .. {high:.0%}]", MUST_AIM])
    table(["", "tokens a second", "at the limit", "its Gflop/s", "share", "must / aim"], rows)
    write("limit", results, options.rounds)


def products(key):
    """Operations in them: two a multiply-add, forward once and backward twice."""
    config, _ = CONFIGS[key]
    numbers = 12 * config.n_embd**2 * config.n_layer + config.vocab_size * config.n_embd
    return 6 * numbers * tokens_per_step(key)
