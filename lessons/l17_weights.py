"""Lesson 17: weights. What is a trained model on disk, and what is left if the machine stops in mid-write?

A model folder holds three files, those of Hugging Face's GPT-2, so that `transformers` opens it:

    model.safetensors   the numbers: 8 bytes with the header's length, a header in JSON, array after array
    config.json         the sizes, and which variant of the formula the numbers are for
    tokenizer.json      lesson 5's; with another vocabulary, token 17 is another word

A training's checkpoint is one safetensors file with more arrays, and its settings in the header. Nothing in
the format (https://huggingface.co/docs/safetensors) is executed; a pickled .bin runs what its author wanted.
`make lesson 17` reads a file byte by byte, and ends processes while they write.
`python -m lessons weights FOLDER` lists a GPT-2's tensors.
"""
import contextlib
import json
import multiprocessing
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lessons.errors import InputError
from lessons.gpt2_folder import FLOATS, FORMULA, REST, SIZES, check_tensors, read_config
from lessons.l16_gpt import count_parameters
from lessons.parameters import Config, Parameters, init_parameters

STATE = "training state 1"  # the word in the metadata by which we know a checkpoint of ours; 1 is the version


def write_atomically(path, write):
    """write(temporary) fills a file beside path, which then takes path's place: old or new, never half.

    If write raises, the old file stays and the temporary one goes. A link stays, its target is replaced.
    InputError if path is a folder or a device. An OSError (a full disk) passes, with a file's name.
    """
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
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # not every system can sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        stack.callback(os.close, folder)
        os.fsync(folder)  # the new name itself


def packed(arrays, metadata):  # -> bytes
    """The package copies memory as it lies, so a transposed view is first laid out in its own order."""
    return save({name: np.asarray(array, order="C") for name, array in arrays.items()}, metadata)


def open_tensors(path):
    """The package's reader. It refuses headers that lie: lengths or offsets beyond the file, overlaps."""
    if not (Path(path).is_file() and os.access(path, os.R_OK)):
        raise InputError(f"there is no file {path} that we may read: name another, or train first")
    try:
        return safe_open(path, "numpy")
    except SafetensorError as error:
        raise InputError(f"{path} is no whole safetensors file ({error}): take another copy") from None


def tensor_by_hand(path, name):
    """One tensor without the package, which cannot give NumPy a bfloat16: here it becomes float32."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        begin, end = entry["data_offsets"]  # counted from the end of the header
        file.seek(8 + length + begin)
        numbers = np.frombuffer(file.read(end - begin), FLOATS[entry["dtype"]])
    if entry["dtype"] == "BF16":  # the upper half of a float32: sign, exponent, 7 of 23 bits
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.reshape(entry["shape"])


def save_model(folder, p, tokenizer):
    """Write the three files, float32; the numbers last: they make a folder a model. tokenizer may be None."""
    from lessons.tokenizer_json import save_tokenizer
    folder = Path(folder)
    config = FORMULA | dict(zip(SIZES, p.config)) | {"n_ctx": p.config.block_size} | REST
    data = packed({name: view.astype(np.float32) for name, view in p.views.items()}, {"format": "pt"})
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        (folder / "tokenizer.json").unlink(missing_ok=True)  # it was another model's
    else:
        write_atomically(folder / "tokenizer.json", lambda file: save_tokenizer(tokenizer, file))
    write_atomically(folder / "config.json", lambda file: file.write_text(json.dumps(config, indent=2)))
    write_atomically(folder / "model.safetensors", lambda file: file.write_bytes(data))


def load_model(folder):
    """A folder of ours, or a GPT-2 from elsewhere -> Parameters (float32), tokenizer or None.

    Names may begin with `transformer.`; an lm_head.weight may be there if it equals wte.weight; float64,
    float16 and bfloat16 become float32. InputError, in one line, where we would compute something else.
    """
    from lessons.tokenizer_json import load_tokenizer
    config, path = read_config(Path(folder, "config.json")), Path(folder, "model.safetensors")
    with open_tensors(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (it is not a dict)
        prefix = "" if "wte.weight" in slices else "transformer."
        keys = {key.removeprefix(prefix): key for key in slices}
        found = {name: (slices[key].get_dtype(), *slices[key].get_shape()) for name, key in keys.items()}
        check_tensors(path, config, found)
        p = Parameters(config)
        head = {name: np.empty_like(p["wte.weight"]) for name in found if name == "lm_head.weight"}
        for name, view in (p.views | head).items():
            by_hand = found[name][0] == "BF16"
            view[:] = tensor_by_hand(path, keys[name]) if by_hand else file.get_tensor(keys[name])
    if not np.isfinite(p.flat).all():
        raise InputError(f"{path} holds NaN or infinity: take an earlier copy, or train anew")
    if any((copy != p["wte.weight"]).any() for copy in head.values()):
        raise InputError(f"{path}: lm_head.weight differs from wte.weight, this GPT has one table for both")
    file = path.with_name("tokenizer.json")
    tokenizer = load_tokenizer(file) if file.exists() else None
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise InputError(f"{file}: {tokenizer.vocab_size} tokens, model {config.vocab_size}: take another")
    return p, tokenizer


def save_state(path, arrays, settings):
    """Write {name: array} and a dict that JSON can hold: all that a training needs to go on, in one file."""
    crc = zlib.crc32(packed(arrays, {"settings": json.dumps(settings)}))
    data = packed(arrays, {STATE: json.dumps({"crc32": crc, "settings": settings})})
    write_atomically(path, lambda file: file.write_bytes(data))


def load_state(path):
    """-> arrays, settings, as they were saved. InputError for another file, and for ours if a bit differs."""
    with open_tensors(path) as file:
        if STATE not in (metadata := file.metadata() or {}):
            raise InputError(f"{path} is not a {STATE}: name another file, or train anew")
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
            arrays, state = file.get_tensors(), json.loads(metadata[STATE])
            if state["crc32"] == zlib.crc32(packed(arrays, {"settings": json.dumps(state["settings"])})):
                return arrays, state["settings"]
    raise InputError(f"{path} is damaged (its checksum does not fit): take another copy, or train anew")


def crash(path, point):
    """In a process of its own: write NEW, and end at `point` with no except and no finally, as by kill -9."""
    def write(path):
        with open(path, "wb", buffering=0) as file:
            file.write(b"NE")
            if "halfway" in point:
                os._exit(9)
            file.write(b"W")

    if "before" in point:
        os.replace = lambda *_: os._exit(9)
    write(path) if "in place" in point else write_atomically(path, write)


def main(folder=None):
    if folder is not None:
        p, _ = load_model(folder)
        for name, view in p.views.items():
            print(f"{name:24s}{view.shape!s:>14}{view.size:12,} mean {view.mean():+.3f} std {view.std():.3f}")
        return print(f"{count_parameters(p.config):,} parameters")
    from lessons.l05_tokenizer import char_tokenizer
    with tempfile.TemporaryDirectory() as place:
        path, tokenizer = Path(place, "model.safetensors"), char_tokenizer("to be or not to be")
        p = init_parameters(Config(tokenizer.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=4))
        save_model(place, p, tokenizer)
        print("in the folder:    ", *(f"{f.name} ({f.stat().st_size} bytes)" for f in Path(place).iterdir()))
        data = path.read_bytes()
        n = int.from_bytes(data[:8], "little")
        print(f"bytes 0 to 7:      {data[:8].hex(' ')} = {n}, little end first: so long is the header")
        print(f"bytes 8 to {7 + n}:   {data[8:90].decode()} ...")
        print(f"                   ... {data[n - 60:n + 8].decode().rstrip()}, and spaces")
        print(f"the last 8 bytes:  {data[-8:].hex(' ')} = {np.frombuffer(data[-8:], '<f4')}")
        by_hand, table = tensor_by_hand(path, "wte.weight"), p["wte.weight"]
        print(f"end of wte.weight: {by_hand[-1, -2:]} read by hand, {table[-1, -2:]} in memory")
        print("\nOLD is on the disk, NEW is being written, and the process ends:")
        target = Path(place, "weights")
        for point in "written in place, halfway", "atomically, halfway", "before the rename", "after it":
            target.write_text("OLD")
            child = multiprocessing.get_context("spawn").Process(target=crash, args=(target, point))
            child.start()
            child.join()
            left = [f"{file.name}: {file.read_text()}" for file in sorted(target.parent.glob("weights*"))]
            print(f"  {point:26s} {', '.join(left)}")
        print("Power loss would also take what the system has not put on the disk yet: hence fsync.")
