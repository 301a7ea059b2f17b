"""The command line around lesson 19: a model folder and a prompt become a text on the terminal."""
import codecs
import itertools
import sys
import time
from pathlib import Path

import numpy as np

from lessons import devices, errors
from lessons.decoding import rounded
from lessons.l16_gpt import gpt_forward
from lessons.l17_weights import load_model
from lessons.l19_generation import beam_search, generate
from lessons.parameters import Parameters

FOLDER = "out/shakespeare"  # where `make train` leaves its model


def parse(argv):
    parser = errors.Parser("generation", "Write a text on with a trained GPT.")
    add = parser.add_argument
    add("--model", metavar="DIR", default=FOLDER, help=f"a model folder (default: {FOLDER})")
    add("--prompt", metavar="TEXT", default="", help="how the text begins (default: as a new line does)")
    add("--tokens", metavar="N", default=200, help="how many to write (default: 200)",
        type=errors.number(int, lambda n: 1 <= n <= 1_000_000, "a whole number, 1 to 1,000,000"))
    add("--temperature", metavar="X", type=errors.non_negative_float, default=0.8,
        help="below 1 more careful, above 1 more daring; 0: always the most probable token (default: 0.8)")
    add("--top-k", metavar="K", type=errors.positive_int, default=40,
        help="choose among the K most probable tokens (default: 40)")
    add("--top-p", metavar="P", type=errors.fraction, default=1.0,
        help="choose among the most probable that have this much probability together (default: 1.0, all)")
    add("--beams", metavar="N", type=errors.number(int, lambda n: 1 <= n <= 100, "a whole number, 1 to 100"),
        default=1, help="search the most probable text with N beams; temperature, top-k, top-p and seed "
        "play no part then (default: 1, no search)")
    add("--seed", metavar="N", type=errors.non_negative_int, default=0,
        help="another seed, another text (default: 0)")
    add("--int8", action="store_true", help="weights of 8 bits: faster, a little less exact")
    add("--threads", metavar="N", default=devices.cores(),
        help="cores that read the weights side by side (default: all)",
        type=errors.number(int, lambda n: 1 <= n <= 256, "a whole number, 1 to 256"))
    add("--device", default="cpu", help="cpu (default), or numpy: the lessons' own lines")
    return parser.parse_args(argv)


def run(argv):
    """Generate as the command line says. Standard output gets the text alone, as it is produced (beams: at
    the end)."""
    args = parse(argv)
    ops = devices.ops(args.device)
    p, tokenizer = load(args.model)
    prompt = encode_prompt(tokenizer, args.prompt)
    print(args.prompt, end="", flush=True)
    start, found = time.perf_counter(), ""
    if args.beams > 1:
        tokens, log_p = beam_search(ops, rounded(p) if args.int8 else p, prompt, args.tokens, args.beams)
        found = f", mean log p of a token {log_p / args.tokens:.2f}"
        tokens = iter(tokens)
    else:
        tokens = generate(ops, p, prompt, args.tokens, args.temperature, args.top_k, args.top_p, args.seed,
                          args.int8, args.threads)
        first = next(tokens)  # behind it lie the prompt, and compiling: the clock starts here
        start, tokens = time.perf_counter(), itertools.chain([first], tokens)
    for piece in text_pieces(tokenizer, tokens):
        print(piece, end="", flush=True)
    speed = (args.tokens - (args.beams == 1)) / (time.perf_counter() - start)
    print(flush=True)
    print(f"{args.tokens} tokens, {speed:,.0f} a second{found}", file=sys.stderr)


def load(folder):  # -> Parameters, tokenizer
    """load_model, where a tokenizer must be there. Rows of the token table that stand for no token, as some
    have for the sake of a round number, are left out."""
    p, tokenizer = load_model(folder)
    if tokenizer is None:
        raise errors.InputError(f"{folder} has no tokenizer.json: copy the one of its training into it")
    q = Parameters(p.config._replace(vocab_size=tokenizer.vocab_size))
    for name, view in q.views.items():
        view[:] = p[name][:len(view)]
    return q, tokenizer


def text_pieces(tokenizer, tokens):  # token ids -> yields str
    """The text as it grows. A token can end in the first of the two bytes of "é": it waits for the second."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if piece := decoder.decode(tokenizer.token_bytes(token)):
            yield piece
    if piece := decoder.decode(b"", final=True):
        yield piece


def encode_prompt(tokenizer, text):  # -> (T,) with T >= 1
    """The prompt's tokens. An empty one starts as a new line does, or with token 0 if there is no newline."""
    try:
        text.encode()
        return tokenizer.encode(text or "\n")
    except UnicodeEncodeError as error:  # Python marks what it could not read on the command line
        raise errors.InputError(f"--prompt: what stands at offset {error.start} is not UTF-8: "
                                "leave it out, or set the terminal to UTF-8") from None
    except errors.InputError as error:
        if text:
            raise errors.InputError(f"--prompt: {error}") from None
        return np.array([0])


def model_at_hand():  # -> (Parameters, tokenizer)
    """For the demonstration: what `make train` left, or else a small model trained now."""
    if Path(FOLDER, "model.safetensors").exists():
        return load(FOLDER)
    from lessons.l18_training import quick_model
    from lessons.texts import read_text
    print("No trained model yet (make train makes one in about three minutes). A small one, trained now:")
    return quick_model(read_text("shakespeare"))


def loss_on_validation_text(ops, p, tokenizer):  # -> nats a token, over at most 60 blocks
    from lessons.texts import read_text, split
    T, tokens = p.config.block_size, tokenizer.encode(split(read_text("shakespeare"))[1])
    tokens = tokens[:min((len(tokens) - 1) // T, 60) * T + 1]
    X, Y = tokens[:-1].reshape(-1, T), tokens[1:].reshape(-1, T)
    return sum(ops.cross_entropy(gpt_forward(ops, p, X[i:i + 8])[0], Y[i:i + 8], Y.size)[0]
               for i in range(0, len(X), 8))
