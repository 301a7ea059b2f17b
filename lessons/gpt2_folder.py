"""What lesson 17 reads: safetensors files, and the config.json and tensors of a GPT-2 of Hugging Face's."""
import json
import os

import numpy as np
from safetensors import SafetensorError, safe_open

from lessons.errors import InputError
from lessons.parameters import Config, Parameters

SIZES = ["n_positions" if name == "block_size" else name for name in Config._fields]  # config.json's words
FORMULA = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
           "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
REST = {"architectures": ["GPT2LMHeadModel"], "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": True,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}  # what transformers would guess otherwise
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # NumPy has no bfloat16: its 16 bits


def shown(text, most=120):
    """A text from a file as a message may have it: on one line, not endless, no codes for the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])


def config_json(config):
    stored = FORMULA | dict(zip(SIZES, config)) | {"n_ctx": config.block_size} | REST
    return json.dumps(stored, indent=2)


def read_config(path):
    """config.json -> Config. InputError if it is none, or asks for another formula than lesson 16's."""
    if not os.path.isfile(path):
        raise InputError(f"no model in {path.parent} (no config.json): name another folder, or train first")
    try:
        stored = json.loads(path.read_bytes())
        config = Config(*[stored[name] for name in SIZES])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise InputError(f"{path} is damaged or lacks one of {', '.join(SIZES)}: take another copy") from None
    if not all(type(n) is int and 0 < n < 10**7 for n in config) or config.n_embd % config.n_head:
        raise InputError(f"{path} has sizes that no GPT can have, {shown(str(config))}: take another copy")
    for name, value in FORMULA.items():
        if (other := stored.get(name, value)) != value:
            raise InputError(f"{path}: {name} is {shown(repr(other))}, here it is {value!r}: "
                             "take another model")
    return config


def check_tensors(path, config, found):
    """InputError names what does not fit, before a number is read. found: name -> (type, *shape)."""
    n_layer = min(config.n_layer, len(found) // 12 + 9)  # more layers than tensors: a lie takes no memory
    want = config._replace(n_layer=n_layer).shapes()
    want |= {"lm_head.weight": want["wte.weight"]} if "lm_head.weight" in found else {}
    masks = {name for name in found if name.endswith((".attn.bias", ".attn.masked_bias"))}  # in old files
    problems = {"missing": want.keys() - found.keys(), "unexpected": found.keys() - want.keys() - masks,
                "wrong": {f"{name}: {found[name][0]} {[*found[name][1:]]} instead of floats {[*want[name]]}"
                          for name in want.keys() & found.keys()
                          if found[name][1:] != want[name] or found[name][0] not in FLOATS}}
    parts = [f"{what} {', '.join(map(shown, sorted(names)[:3]))}"
             + f" and {len(names) - 3} more" * (len(names) > 3) for what, names in problems.items() if names]
    if parts:
        raise InputError(f"{path} does not fit config.json: {'; '.join(parts)}")


def open_tensors(path):
    """The reader of the safetensors package. It refuses headers that lie: lengths or offsets beyond the file,
    offsets that overlap, shapes that do not fit."""
    if not (os.path.isfile(path) and os.access(path, os.R_OK)):  # a pipe would keep us waiting
        raise InputError(f"there is no file {path} that we may read: name another, or train first")
    try:
        return safe_open(path, "numpy")
    except (SafetensorError, OSError) as error:
        why = shown(str(error), 200)
        raise InputError(f"{path} is no whole safetensors file ({why}): take another copy") from None


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


def read_parameters(path, config, file):  # file: an open one -> Parameters
    """The numbers of a GPT-2 that check_tensors lets pass. InputError if its head is not its token table."""
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (it is not a dict)
    prefix = "" if "wte.weight" in slices else "transformer."
    keys = {key.removeprefix(prefix): key for key in slices}
    found = {name: (slices[key].get_dtype(), *slices[key].get_shape()) for name, key in keys.items()}
    check_tensors(path, config, found)
    p = Parameters(config)
    head = {name: np.empty_like(p["wte.weight"]) for name in found if name == "lm_head.weight"}
    with np.errstate(all="ignore"):  # too large for float32 is infinity, which the caller refuses
        for name, view in (p.views | head).items():
            by_hand = found[name][0] == "BF16"
            view[:] = tensor_by_hand(path, keys[name]) if by_hand else file.get_tensor(keys[name])
    if any((copy != p["wte.weight"]).any() for copy in head.values()):
        raise InputError(f"{path}: lm_head.weight differs from wte.weight, this GPT has one table for both")
    return p
