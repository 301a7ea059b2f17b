"""Named views of one flat buffer: Hugging Face's names, aligned, in three parts, under a prefix.

The tests of f are test_f and test_f_*: two are lesson 16's exercises.
"""
import math

import numpy as np
import pytest

from lessons import parameters as lesson
from lessons.parameters import Config, Parameters, aligned_zeros
from tests.close import assert_close

CONFIG = Config(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8)
GPT2 = Config(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)


def hugging_face(config):
    """What GPT2LMHeadModel's state_dict lists, in its order; `transformer.` and the tied lm_head left out."""
    C = config.n_embd
    names = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.block_size, C)}
    for i in range(config.n_layer):
        names |= {
            f"h.{i}.ln_1.weight": (C,), f"h.{i}.ln_1.bias": (C,),
            f"h.{i}.attn.c_attn.weight": (C, 3 * C), f"h.{i}.attn.c_attn.bias": (3 * C,),
            f"h.{i}.attn.c_proj.weight": (C, C), f"h.{i}.attn.c_proj.bias": (C,),
            f"h.{i}.ln_2.weight": (C,), f"h.{i}.ln_2.bias": (C,),
            f"h.{i}.mlp.c_fc.weight": (C, 4 * C), f"h.{i}.mlp.c_fc.bias": (4 * C,),
            f"h.{i}.mlp.c_proj.weight": (4 * C, C), f"h.{i}.mlp.c_proj.bias": (C,)}
    return names | {"ln_f.weight": (C,), "ln_f.bias": (C,)}


@pytest.mark.parametrize("config", [CONFIG, GPT2, Config(5, 3, 1, 1, 3)])
def test_config_shapes_are_those_of_hugging_face(config):
    got, want = config.shapes(), hugging_face(config)
    assert set(got) == set(want), f"missing {sorted(set(want) - set(got))}, " \
        f"too many {sorted(set(got) - set(want))}"
    for name in want:
        assert got[name] == want[name], f"{name} has shape {got[name]}, expected {want[name]}"
    for place, (yours, name) in enumerate(zip(got, want)):
        assert yours == name, f"all names are there, but at place {place} got {yours}, expected {name}"


def test_config_shapes_of_a_block_with_more_modules():
    got = list(Config(7, 5, 2, 1, 4).shapes({"gate": (4, 6)}).items())
    for layer, first in enumerate((14, 28)):
        want = [(f"h.{layer}.gate.weight", (4, 6)), (f"h.{layer}.gate.bias", (6,))]
        assert got[first:first + 2] == want, (
            f"more is {{'gate': (4, 6)}}: at places {first} and {first + 1}, where block {layer} ends, "
            f"got {got[first:first + 2]}, expected {want}")
    assert got[30:] == [("ln_f.weight", (4,)), ("ln_f.bias", (4,))], f"behind the blocks: {got[30:]}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("config", [CONFIG, Config(5, 3, 1, 1, 3), Config(65, 64, 4, 4, 40)])
def test_parameters_are_views_of_one_flat_buffer_on_64_byte_boundaries(config, dtype):
    p = Parameters(config, dtype=dtype)
    assert p.flat.dtype == dtype and not p.flat.any(), "all zero at first"
    for number, (name, view) in enumerate(p.views.items(), 1):
        assert view.ctypes.data % 64 == 0, f"{name} does not start on a 64-byte boundary"
        assert view.flags.c_contiguous and np.shares_memory(view, p.flat), f"{name} is a copy, not a view"
        assert not view.any(), f"{name} overlaps a view before it"
        view[:] = number
    assert np.count_nonzero(p.flat) == sum(math.prod(shape) for shape in hugging_face(config).values())


def test_parameters_parts_hold_the_tables_the_matrices_and_the_rest():
    p = Parameters(CONFIG)
    for name, view in p.views.items():
        first = (view.ctypes.data - p.flat.ctypes.data) // 4
        assert (first < p.parts["tables"].stop) == (name in ("wte.weight", "wpe.weight")), name
        assert (first < p.parts["vectors"].start) == (view.ndim == 2), name


def test_parameters_by_name_by_module_and_by_block():
    p = Parameters(CONFIG)
    assert p["wte.weight"] is p.views["wte.weight"]
    weight, bias = p["h.1.mlp.c_fc"]
    assert weight is p.views["h.1.mlp.c_fc.weight"] and bias is p.views["h.1.mlp.c_fc.bias"]
    assert p.blocks[1]["mlp.c_fc"][0] is weight and p.blocks[1]["mlp.c_fc"][1] is bias
    assert len(p.blocks) == 2
    assert set(p.blocks[0]) == {"ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"}


def test_parameters_can_be_laid_over_a_buffer_that_exists():
    p = lesson.init_parameters(CONFIG)
    q = Parameters(CONFIG, p.flat)
    assert all(np.shares_memory(p[name], q[name]) and (p[name] == q[name]).all() for name in p.views)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 16, 1001])
def test_aligned_zeros(dtype, n):
    for _ in range(20):  # by luck, one buffer may be aligned by itself
        a = aligned_zeros(n, dtype)
        assert a.shape == (n,) and a.dtype == dtype and not a.any()
        assert a.ctypes.data % 64 == 0


def spread(name, config):
    """What the spread of a random parameter must be."""
    if name in ("wte.weight", "wpe.weight"):
        return 0.02
    return 0.5 / math.sqrt(config.n_embd) / (math.sqrt(2 * config.n_layer) if "c_proj" in name else 1)


def test_init_parameters():
    config = Config(vocab_size=300, block_size=200, n_layer=3, n_head=4, n_embd=100)
    p = lesson.init_parameters(config, seed=3)
    for name, view in p.views.items():
        if view.ndim == 2:
            want = spread(name, config)
            assert_close(view.std(), want, f"spread of {name}", rtol=0.03)
            assert_close(view.mean() / want, 0, f"mean of {name}, in spreads", atol=0.05)
            assert_close((abs(view) < want).mean(), 0.683, f"share of {name} within one spread", rtol=0.03)
        else:
            want = 1 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0
            assert_close(view, np.full(view.shape, want), name)


def test_init_parameters_depends_on_the_seed_alone():
    a, b, c = (lesson.init_parameters(CONFIG, seed) for seed in (1, 1, 2))
    for name in "wte.weight", "h.1.mlp.c_fc.weight":
        assert_close(b[name], a[name], f"{name} of a second model with the same seed")
        assert (a[name] != c[name]).any(), f"{name} is the same for the seeds 1 and 2"
        assert (a[name] != a[name][0]).any(), f"all rows of {name} are the same"


def test_init_parameters_draws_view_after_view_from_one_generator():
    p, rng = lesson.init_parameters(CONFIG, seed=5, dtype=np.float64), np.random.default_rng(5)
    for name, view in p.views.items():
        if view.ndim == 2:
            assert_close(view, spread(name, CONFIG) * rng.standard_normal(view.shape), name)


def test_init_parameters_has_the_dtype_it_is_told():
    for dtype in np.float32, np.float64:
        got = lesson.init_parameters(CONFIG, dtype=dtype).flat.dtype
        assert got == dtype, f"flat is {got}, expected {np.dtype(dtype)}"


class Pair(Config):
    """Two stacks, as lesson 15 has them."""

    def shapes(self):
        return {f"{stack}.{name}": shape for stack in ("left", "right")
                for name, shape in Config.shapes(self, {"extra": (3, 5)}).items()}


def test_parameters_under_a_prefix_are_a_model_of_their_own():
    p = Parameters(Pair(*CONFIG))
    right = p.under("right.")
    assert right["ln_f"][0] is p["right.ln_f"][0] and right["wte.weight"] is p["right.wte.weight"]
    assert set(right.views) == set(hugging_face(CONFIG)) | {f"h.{i}.extra.{name}" for i in range(2)
                                                            for name in ("weight", "bias")}
    assert right.blocks[1]["extra"][0].shape == (3, 5) and right.blocks[1]["extra"][1].shape == (5,)
    tables = p.flat[p.parts["tables"]]
    assert np.shares_memory(tables, p["left.wpe.weight"]) and np.shares_memory(tables, right["wpe.weight"])
    assert len(p.blocks) == 2 and not p.blocks[0], "the whole has no blocks without a prefix"
