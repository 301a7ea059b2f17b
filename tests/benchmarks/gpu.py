"""The GPU's kernels against PyTorch on the same GPU: float32, no TF32. What is wrong is not timed.

Single operations are checked against PyTorch in float64, training against the CPU's room as well. A step of a
worker launches the same work REPEAT times and waits once, as training does.
"""
import importlib.metadata
import statistics
import tempfile
from contextlib import ExitStack

import numpy as np

from kernels.cuda.compiled import problem
from lessons.parameters import Config
from tests.benchmarks import configs
from tests.benchmarks.race import race, ratios, worker
from tests.benchmarks.report import spread, table, write
from tests.benchmarks.training import check

SIZES = {  # of the operations
    "matmul": (4096, 4096, 4096),  # M, N, K
    "attention": (8, 12, 1024, 64),  # B, H, T, D; causal, forward and backward
    "layer norm": (32768, 768),  # N, C
    "layer norm backward": (32768, 768),
    "gelu": (32768, 3072),  # N, K; with the bias before it, and the slope for the way back
    "cross-entropy": (8192, 50257),  # N, V; with the gradient
    "AdamW": (124_475_904,),  # n: as many as GPT-2 has parameters
    "copy": (2**26,),  # n: the memory's limit
}
REPEAT = {"matmul": 4, "attention": 4, "124M": 1, "S": 20}  # all others: 10
MOVES = {  # name -> bytes that must move: each number is read once and written once
    "layer norm": lambda N, C: 4 * 2 * N * C, "layer norm backward": lambda N, C: 4 * 3 * N * C,
    "gelu": lambda N, K: 4 * 3 * N * K, "cross-entropy": lambda N, V: 4 * 2 * N * V,
    "AdamW": lambda n: 4 * 7 * n, "copy": lambda n: 4 * 2 * n}
CONFIGS = {"124M": (Config(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768), 8),
           "S": configs.CONFIGS["S"]}
MUST_AIM = {"matmul": "50 % / 80 %", "attention": "1 x / 3 x", "memory": "70 % / 90 %", "124M": "0.5 x / 1 x",
            "S": "1 x / 3 x"}
CLOSE = 1e-4  # relative to the largest number
STEPS = 50  # of training, whose losses are compared with the CPU's
SAMPLE = 10_000  # numbers of each result that are compared


def inputs(name, *sizes):  # -> arrays, the same in every worker
    rng = np.random.default_rng(0)
    if name == "matmul":
        M, N, K = sizes
        shapes = (M, K), (K, N)
    elif name == "attention":
        B, H, T, D = sizes
        shapes = (B, T, 3 * H * D), (B, T, H * D)
    elif name == "cross-entropy":
        return rng.standard_normal(sizes, np.float32), rng.integers(0, sizes[1], sizes[0], np.int32)
    else:
        shapes = {"gelu": (sizes, sizes[1:]), "AdamW": (sizes, sizes), "copy": (sizes,)}.get(
            name, (sizes, sizes[1:], sizes[1:], sizes))  # layer norm: x, weight, bias, dout
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def sample(results):  # arrays -> {"0": some numbers of the first, ...}
    flat = [np.asarray(x, float).reshape(-1) for x in results]
    return {str(i): x[::max(1, x.size // SAMPLE)] for i, x in enumerate(flat)}


def batches(key):  # -> X, Y (steps, B, T), and a text for windows of it
    config, rows = CONFIGS[key]
    X, Y = configs.batches(config, rows, steps=configs.CHECKED_STEPS)
    return X, Y, np.random.default_rng(2).integers(0, config.vocab_size, 2**20)


def run(options):
    if why := problem() or pytorch_problem():
        print(f"GPU: left out, since {why}\n")
        return
    import torch
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}: float32, no TF32")
    results = {"gpu": gpu, "numba-cuda": importlib.metadata.version("numba-cuda"),
               "operations": operations(options.rounds), "training": training(options.rounds)}
    write("gpu", results, options.rounds)


def pytorch_problem():  # -> one line, or None
    import torch
    return None if torch.cuda.is_available() else "this PyTorch was built without CUDA: pip install torch"


def measured(workers, name, rounds):
    """{who: command} -> {who: seconds of one run, round by round}, {who: error}. All but copy do the same."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        with worker("gpu_pytorch", "float64", name) as ask:
            ask("check", f"{folder}/want.npz")
        asks = {who: stack.enter_context(worker(*command)) for who, command in workers.items()}
        errors = {}
        for who in asks.keys() - {"copy"}:
            asks[who]("check", f"{folder}/got.npz")
            errors[who] = largest_error(f"{folder}/got.npz", f"{folder}/want.npz")
            if not errors[who] <= CLOSE:
                raise SystemExit(f"{name} is not timed, for {who} is wrong: off by {errors[who]:.1e} of the "
                                 "largest number")
        times = race(asks, rounds)
    repeat = {who: REPEAT.get("copy" if who == "copy" else name, 10) for who in times}
    return {who: [s / repeat[who] for s in times[who]] for who in times}, errors


def largest_error(path, right):  # of two files -> float
    with np.load(path) as got, np.load(right) as want:
        assert set(got) == set(want), f"{set(got)} and {set(want)} are not the same results"
        return max(float(np.abs(got[name] - want[name]).max() / np.abs(want[name]).max()) for name in want)


def operations(rounds):
    found, rows = {}, []
    for name in [name for name in SIZES if name != "copy"]:
        workers = {"ours": ["gpu_ours", name], "PyTorch": ["gpu_pytorch", "float32", name]}
        if name == "attention":
            workers["materialised"] = ["gpu_ours", "attention, materialised"]
        if name in MOVES:
            workers["copy"] = ["gpu_ours", "copy"]
        seconds, errors = measured(workers, name, rounds)
        found[name] = {"seconds": seconds, "errors": errors}
        rows.append(line(name, seconds, max(errors.values())))
    table(["operation", "ours", "PyTorch", "share of the limit, or faster by", "must / aim", "error"], rows)
    return found


def line(name, seconds, error):  # -> cells
    """matmul: share of cuBLAS. Attention: against ours with all scores in memory. Others: share of copy."""
    ours, theirs = (statistics.median(seconds[who]) for who in ("ours", "PyTorch"))
    if name == "matmul":
        M, N, K = SIZES[name]
        speeds = [f"{2 * M * N * K / s / 1e12:.1f} TFLOP/s" for s in (ours, theirs)]
        share = spread(*(100 * x for x in ratios(seconds["PyTorch"], seconds["ours"])), " %")
    elif name == "attention":
        speeds = [f"{1e3 * s:.2f} ms" for s in (ours, theirs)]
        share = spread(*ratios(seconds["materialised"], seconds["ours"]))
    else:
        moved, copied = MOVES[name](*SIZES[name]), MOVES["copy"](*SIZES["copy"])
        speeds = [f"{moved / s / 1e9:,.0f} GB/s" for s in (ours, theirs)]
        shares = ratios([s / copied for s in seconds["copy"]], [s / moved for s in seconds["ours"]])
        share = spread(*(100 * x for x in shares), " %")
    return [name, *speeds, share, MUST_AIM.get(name, MUST_AIM["memory"]), f"{error:.0e}"]


def training(rounds):
    found, rows = {}, []
    with worker("gpu_ours", "losses") as ask:
        gpu, cpu = np.array(ask("check", "-"))
    off = float(np.abs(gpu / cpu - 1).max())
    print(f"  losses of {STEPS} steps, S: off by {off:.0e} from those of the CPU (must: {CLOSE:.0e})")
    for key, (config, batch) in CONFIGS.items():
        with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            asks = {"ours": stack.enter_context(worker("gpu_ours", key)),
                    "PyTorch": stack.enter_context(worker("gpu_pytorch", "float32", key))}
            agreement = check(asks, ["gpu_pytorch", "float64", key], folder)
            seconds = race(asks, rounds)
        tokens = REPEAT[key] * batch * config.block_size
        speed = {name: tokens / statistics.median(times) for name, times in seconds.items()}
        against = ratios(seconds["PyTorch"], seconds["ours"])
        found[key] = {"tokens per second": speed, "ratio": against, "seconds": seconds,
                      "agreement": agreement}
        rows.append([f"{key}: {batch} rows of {config.block_size}", *(f"{speed[who]:,.0f}" for who in asks),
                     spread(*against), MUST_AIM[key], f"{agreement['ours']['gradient']:.0e}"])
    table(["training, tokens a second", "ours", "PyTorch eager", "ours is faster by", "must / aim",
           "gradient"], rows)
    return {"losses": off, **found}
