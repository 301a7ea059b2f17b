"""Lesson 17: weights. What is a trained model on disk, and what is left if the machine stops in mid-write?

A model folder holds three files, those of Hugging Face's GPT-2, so that `transformers` opens it:

    model.safetensors   the numbers: 8 bytes with the header's length, a header in JSON, array after array
    config.json         the sizes, and which variant of the formula the numbers are for
    tokenizer.json      lesson 5's; with another vocabulary, token 17 is another word

A training's checkpoint is one such file with more arrays. All carry checksums, for a model with one wrong
number still writes text. Nothing in the format (https://huggingface.co/docs/safetensors) is executed; a
pickled .bin runs what its author wanted. `make lesson 17` reads a file byte by byte, changes a bit, and ends
processes while they write; `python -m lessons weights FOLDER` lists a GPT-2's tensors.
"""
import contextlib
import json
import multiprocessing
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from lessons.errors import InputError
from lessons.gpt2_folder import config_json, open_tensors, read_config, read_parameters
from lessons.parameters import Config, init_parameters

# Ours in the metadata: two checksums of a model, and what a checkpoint is known by (version 2).
SEAL, TOKENS_SEAL, STATE = "crc32 of sizes and numbers", "crc32 of the tokens", "training state 2"


def write_atomically(path, write):  # write: a function of a path
    """Whoever opens path, at any time, finds the old file or the new one: never half of one.

    write(temporary) fills a file beside path, called like it with .tmp behind; what a killed process left
    there is removed first. Then its bytes go to the disk (os.fsync), it takes path's name (os.replace), and
    the folder goes to the disk where the system can do that. If anything is raised, Ctrl-C too, the temporary
    file is removed and the exception passes on; an OSError without a filename (a full disk) gets path's.
    If path is a link, its target is replaced. InputError if it is a folder or a device."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file: move it away, or write somewhere else")
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # what a killed process left
        write(temporary)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())  # or the new name may reach the disk before the bytes do
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # not every system can
        folder = os.open(path.parent, os.O_RDONLY)
        stack.callback(os.close, folder)
        os.fsync(folder)  # the new name itself


def laid_out(arrays):  # {name: array of any shape} -> {name: array of the same shape}, sorted by name
    """Each array as its bytes will lie in the file: a[i, j] of shape (m, n) is number n i + j (order C), and
    each number begins with its little end. What lies so already, as most do, is not copied: it is large."""
    return {name: np.asarray(a, a.dtype.newbyteorder("<"), order="C") for name, a in sorted(arrays.items())}


def write_tensors(path, arrays, metadata):  # {name: array of any shape}, {str: str}
    """A safetensors file by hand, through write_atomically:

        8 bytes    the header's length n, little end first
        n bytes    JSON: {"__metadata__": metadata, name: {"dtype": "F32", "shape": [2, 3], "data_offsets":
                   [begin, end]}, ...}, and spaces until n is a multiple of 8
        the rest   array after array as laid_out, no gaps: begin = 0 for the first, end = begin + its bytes

    dtype: F, I or U and the bits of a number, or BOOL. Wide types come first, equally wide ones by name. So
    every number lies at a multiple of its own size, and the same arrays give the same file."""
    arrays = dict(sorted(laid_out(arrays).items(), key=lambda item: -item[1].itemsize))
    header, end = {"__metadata__": metadata}, 0
    for name, a in arrays.items():
        dtype = "BOOL" if a.dtype == bool else f"{a.dtype.kind.upper()}{8 * a.itemsize}"  # F32, I64, ...
        header[name] = {"dtype": dtype, "shape": a.shape, "data_offsets": [end, end := end + a.nbytes]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(temporary):
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.writelines(arrays.values())  # from where they are: a large model is not copied

    write_atomically(path, write)


def checksum(arrays, about):  # {name: array of any shape}, what JSON can hold -> str, a decimal number
    """The CRC-32 of these bytes: json.dumps(about); then array by array, as laid_out has them, that of
    [name, dtype.str, shape] and the numbers. zlib.crc32(more, crc) goes on where crc ended."""
    crc = zlib.crc32(json.dumps(about).encode())
    for name, a in laid_out(arrays).items():
        crc = zlib.crc32(a, zlib.crc32(json.dumps([name, a.dtype.str, a.shape]).encode(), crc))
    return str(crc)


def save_model(folder, p, tokenizer):
    """Write the three files, float32; tokenizer may be None. The numbers come last: they make a folder a
    model. Their metadata has the checksums by which load_model knows that the three belong together."""
    from lessons.tokenizer_json import save_tokenizer  # here: it brings Numba, which takes half a second
    folder, numbers = Path(folder), {name: np.asarray(view, np.float32) for name, view in p.views.items()}
    metadata = {"format": "pt", SEAL: checksum(numbers, p.config)}
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        (folder / "tokenizer.json").unlink(missing_ok=True)  # it was another model's
    else:
        metadata[TOKENS_SEAL] = checksum({}, repr(tokenizer.tokens))
        write_atomically(folder / "tokenizer.json", lambda file: save_tokenizer(tokenizer, file))
    write_atomically(folder / "config.json", lambda file: file.write_text(config_json(p.config)))
    write_tensors(folder / "model.safetensors", numbers, metadata)


def load_model(folder):
    """A folder of ours, or a GPT-2 from elsewhere -> Parameters (float32), tokenizer or None.

    Names may begin with `transformer.`, there may be an lm_head.weight if it equals wte.weight, other floats
    become float32. InputError where we would compute other numbers. Files from elsewhere have no checksum."""
    from lessons.tokenizer_json import load_tokenizer
    config, path = read_config(Path(folder, "config.json")), Path(folder, "model.safetensors")
    with open_tensors(path) as file:
        p, metadata = read_parameters(path, config, file), file.metadata() or {}
    if metadata.get(SEAL) not in (None, checksum(p.views, config)):
        raise InputError(f"{path} or config.json is damaged (the checksum does not fit): take another copy")
    if not np.isfinite(p.flat).all():
        raise InputError(f"{path} holds NaN or infinity: take an earlier copy, or train anew")
    if not os.path.lexists(file := path.with_name("tokenizer.json")):
        return p, None
    if (tokenizer := load_tokenizer(file)).vocab_size > config.vocab_size:
        raise InputError(f"{file}: {tokenizer.vocab_size} tokens, model {config.vocab_size}: take another")
    if metadata.get(TOKENS_SEAL) not in (None, checksum({}, repr(tokenizer.tokens))):
        raise InputError(f"{file} is not the one that the model was saved with: take that one")
    return p, tokenizer


def save_state(path, arrays, settings):
    """Write {name: array} and a dict that JSON can hold: all that a training needs to go on, in one file."""
    state = {"crc32": checksum(arrays, settings), "settings": settings}
    write_tensors(path, arrays, {STATE: json.dumps(state)})


def load_state(path):
    """-> arrays, settings, as they were saved. InputError for another file, and for ours if a bit differs."""
    with open_tensors(path) as file:
        if STATE not in (metadata := file.metadata() or {}):
            raise InputError(f"{path} is not a {STATE}: name another file, or train anew")
        with contextlib.suppress(SafetensorError, ValueError, LookupError, TypeError, AttributeError):
            arrays, state = file.get_tensors(), json.loads(metadata[STATE])
            if state["crc32"] == checksum(arrays, state["settings"]):
                return arrays, state["settings"]
    raise InputError(f"{path} is damaged (its checksum does not fit): take another copy, or train anew")


def crash(path, point):
    """In a process of its own: write NEW, and end at `point` with no except and no finally, as by kill -9."""
    def write(path):
        with open(path, "wb", buffering=0) as file:
            file.write(b"NE")
            os._exit(9) if "halfway" in point else file.write(b"W")

    if "before" in point:
        os.replace = lambda *_: os._exit(9)
    write(path) if "in place" in point else write_atomically(path, write)


def main(folder=None):
    if folder is not None:
        p, _ = load_model(folder)
        for name, view in p.views.items():
            print(f"{name:24s}{view.shape!s:>14}{view.size:12,} mean {view.mean():+.3f} std {view.std():.3f}")
        return print(f"{sum(view.size for view in p.views.values()):,} parameters")
    from lessons.l05_tokenizer import char_tokenizer
    with tempfile.TemporaryDirectory() as place:
        path, tokenizer = Path(place, "model.safetensors"), char_tokenizer("to be or not to be")
        save_model(place, init_parameters(Config(tokenizer.vocab_size, 8, 1, 2, 4)), tokenizer)
        print("in the folder:    ", *(f"{f.name} ({f.stat().st_size} bytes)" for f in Path(place).iterdir()))
        n = int.from_bytes((data := path.read_bytes())[:8], "little")
        print(f"bytes 0 to 7:      {data[:8].hex(' ')} = {n}, little end first: so long is the header")
        print(f"bytes 8 to {7 + n}:   {data[8:90].decode()} ...")
        print(f"the last 8 bytes:  {data[-8:].hex(' ')} = {np.frombuffer(data[-8:], '<f4')}, of wte.weight")
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        try:
            load_model(place)
        except InputError as error:
            print(f"one bit changed:   {str(error).replace(place, '...')}")
        print("\nOLD is on the disk, NEW is being written, and the process ends:")
        target, spawn = Path(place, "weights"), multiprocessing.get_context("spawn")
        for point in "written in place, halfway", "atomically, halfway", "before the rename", "after it":
            target.write_text("OLD")
            child = spawn.Process(target=crash, args=(target, point))
            child.start()
            child.join()
            print(f"  {point:26s}", *(f"{f.name}: {f.read_text()}" for f in sorted(path.parent.glob("w*"))))
        print("Power loss would also take what the system has not put on the disk yet: hence fsync.")
