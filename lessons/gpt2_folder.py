"""The config.json and the tensors of a GPT-2 as Hugging Face names them, which lesson 17 writes and reads."""
import json

from lessons.errors import InputError
from lessons.parameters import Config

SIZES = ["n_positions" if name == "block_size" else name for name in Config._fields]  # config.json's words
FORMULA = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
           "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
REST = {"architectures": ["GPT2LMHeadModel"], "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": True,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}  # what transformers would guess otherwise
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # NumPy has no bfloat16: its 16 bits


def read_config(path):
    """config.json -> Config. InputError if it is none, or asks for another formula than lesson 16's."""
    if not path.is_file():
        raise InputError(f"no model in {path.parent} (no config.json): name another folder, or train first")
    try:
        stored = json.loads(path.read_bytes())
        config = Config(*[stored[name] for name in SIZES])
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        raise InputError(f"{path} is damaged or lacks one of {', '.join(SIZES)}: take another copy") from None
    if not all(type(n) is int and 0 < n < 10**7 for n in config) or config.n_embd % config.n_head:
        raise InputError(f"{path} has sizes that no GPT can have, {config}: take another copy")
    for name, value in FORMULA.items():
        if stored.get(name, value) != value:
            raise InputError(f"{path}: {name} is {stored[name]!r}, here it is {value!r}: take another model")
    return config


def check_tensors(path, config, found):
    """InputError names what does not fit, before a number is read. found: name -> (type, *shape)."""
    want = config._replace(n_layer=min(config.n_layer, len(found) + 99)).shapes()  # a lie takes no memory
    want |= {"lm_head.weight": want["wte.weight"]} if "lm_head.weight" in found else {}
    masks = {name for name in found if name.endswith((".attn.bias", ".attn.masked_bias"))}  # in old files
    problems = {"missing": want.keys() - found.keys(), "unexpected": found.keys() - want.keys() - masks,
                "wrong": {f"{name}: {found[name][0]} {[*found[name][1:]]} instead of floats {[*want[name]]}"
                          for name in want.keys() & found.keys()
                          if found[name][1:] != want[name] or found[name][0] not in FLOATS}}
    parts = [f"{what} {', '.join(sorted(names)[:3])}" + f" and {len(names) - 3} more" * (len(names) > 3)
             for what, names in problems.items() if names]
    if parts:
        raise InputError(f"{path} does not fit config.json: {'; '.join(parts)}")
