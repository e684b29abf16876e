"""Compiled programs: traces, passes, sorts and memory, never wall time."""

import contextlib
import re

import catalogue
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import calls
from rows import exhaustive, make, traces
from unoptimised import to_read

import jaxsample as js
from jaxsample import SamplingParams, sample

pytestmark = pytest.mark.slow

BATCH, VOCAB = 32, 128256


# Exempt from the bound: they write intermediate logits, or have default arguments on the host.
WRITERS = (
    "tail_free_logits",
    "sample, full call",
    "bad_words_logits",
    "sequence_biased_logits",
    "min_tokens_logits",
    "packed_bitmask",
    "green_list_logits",
    "synthid_logits",
    "gumbel_watermark_sample",
    "mirostat_v1_sample",
    "mirostat_v2_sample",
    "adaptive_p_sample",
)
SEARCHED = (
    *("top_k_logits", "top_p_logits", "typical_p_logits", "top_h_logits", "process_logits"),
    *("sample", "sample, masks", "sample, outputs"),
)
NAMES = [
    exhaustive(name) if name == "sample, outputs" else name
    for name in catalogue.NAMES
    if name not in WRITERS
]


@pytest.fixture(scope="module")
def compiled():
    cache = {}

    def get(name, dtype):
        if (name, dtype) not in cache:
            function, arguments = calls(jnp.zeros((BATCH, VOCAB), dtype))[name]
            cache[name, dtype] = to_read(jax.jit(function), arguments)
        return cache[name, dtype]

    return get


def assert_not_sorted(compiled):
    for line in compiled.as_text().splitlines():
        if re.search(r"sort\(|TopK|cub_sort", line):  # the last two are calls of libraries
            sizes = [int(n) for dims in re.findall(r"\[([\d,]+)\]", line) for n in dims.split(",")]
            assert max(sizes, default=0) < VOCAB // 8, line


@pytest.mark.parametrize("dtype", ["float32", exhaustive("bfloat16")])
@pytest.mark.parametrize("name", NAMES)
def test_no_row_is_sorted(compiled, name, dtype):
    assert_not_sorted(compiled(name, dtype))


def test_a_sort_is_detected():
    x = jnp.zeros((BATCH, VOCAB))
    with pytest.raises(AssertionError):
        assert_not_sorted(jax.jit(jnp.sort).lower(x).compile())


WRITE_BFLOAT16 = (
    "dry_penalized_logits",
    "no_repeat_ngram_logits",
    "biased_logits",
    "suppressed_logits",
)


@pytest.mark.parametrize("dtype", ["float32", exhaustive("bfloat16")])
@pytest.mark.parametrize("name", NAMES)
def test_temporaries_are_a_fraction_of_the_logits(compiled, name, dtype):
    if jax.__version_info__ < (0, 10):
        pytest.skip("the CPU compiler before 0.10 does not fuse the passes")
    if name.endswith("beam_step"):
        pytest.skip("the CPU compiler copies logits [rows, 1, vocab]; test_beams has more beams")
    if dtype == "bfloat16" and name in WRITE_BFLOAT16:
        pytest.skip("XLA's scatter on the CPU is of float32")
    # Searched rows are copied with their weights, four at a time for any batch size.
    rows = 11 * 4 * VOCAB
    most = rows if name in SEARCHED else BATCH * VOCAB * jnp.dtype(dtype).itemsize / 4
    assert compiled(name, dtype).memory_analysis().temp_size_in_bytes < most


def test_masked_logits_are_not_written():
    """Nor are they if a mask is the only rule, which two passes share."""
    keys, x = jax.random.split(jax.random.key(0), BATCH), jnp.zeros((BATCH, VOCAB))
    params = SamplingParams(bitmask=jnp.full((BATCH, VOCAB // 32), -2))
    memory = to_read(jax.jit(sample), (keys, x, params)).memory_analysis()
    assert memory.temp_size_in_bytes < x.nbytes / 4


@chex.assert_max_traces(n=1)
def everything(keys, x, params):
    tokens = sample(keys, x, params).tokens
    y = js.min_p_logits(js.top_p_logits(js.top_k_logits(x, params.top_k), 0.9), params.min_p)
    return tokens, js.categorical_sample(keys, js.scaled_logits(y, params.temperature))


def test_values_never_trace_again():
    jitted = jax.jit(everything)
    x = make("normal", 2, 300)
    for i in range(5):
        params = SamplingParams(
            temperature=np.array([0, i], np.float32),
            top_k=np.array([i, 0], np.int32),
            top_p=np.array([0.1 * i, 1], np.float32),
            min_p=np.array([0, 0.2 * i], np.float32),
        )
        jitted(jax.random.split(jax.random.key(i), 2), x, params)


def test_temperature_and_top_k_bring_no_other_search():
    """Greedy rows keep rank 0, which is a candidate; one loop searches both k and p."""
    keys, x, half = jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 5003)), jnp.full(2, 0.5)

    def loops(**params):
        program = jax.jit(sample).lower(keys, x, SamplingParams(**params))
        return program.as_text().count("stablehlo.while")

    assert 0 < loops(top_p=half) == loops(top_p=half, temperature=half)
    assert loops(top_p=half) == loops(top_p=half, top_k=jnp.full(2, 9), min_p=half)


def test_scalars_of_every_kind_share_one_program():
    x = jnp.zeros((2, 77))
    before = traces(js.top_p_logits)
    for p in (0.5, 1, np.float64(0.3), np.float32(0.2), jnp.float32(0.1), jnp.asarray(0.7)):
        js.top_p_logits(x, p)
    assert traces(js.top_p_logits) == before + 1


@pytest.mark.parametrize("name", NAMES)
def test_clean_under_every_checker(name):
    function, arguments = calls(jnp.asarray(make("masked", 3, 300)))[name]
    checked = jax.checking_leaks(), jax.debug_nans(True), jax.debug_key_reuse(True)
    # Transfers to the host are allowed, since a GPU's results are copied there to check for NaNs.
    guarded = jax.transfer_guard_host_to_device, jax.transfer_guard_device_to_device
    with contextlib.ExitStack() as stack:
        for checker in (*checked, *(guard("disallow") for guard in guarded)):
            stack.enter_context(checker)
        jax.block_until_ready(function(*arguments))


def test_one_key_used_twice_is_reported():
    key, x = jax.random.key(0), jnp.zeros((2, 30))
    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(lambda key: js.categorical_sample(key, x) + js.categorical_sample(key, x))(key)


def test_a_decoding_loop_compiles_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def loop(seeds, params):
        keys = jax.vmap(jax.random.key)(seeds)

        def step(carry):
            position, logits, total = carry
            now = jax.vmap(lambda key: jax.random.fold_in(key, position))(keys)
            out = sample(now, logits, params)
            return position + 1, jnp.roll(logits, 1, axis=-1), total + out.tokens

        start = (jnp.int32(0), jnp.asarray(make("normal", 4, 300)), jnp.zeros(4, jnp.int32))
        return jax.lax.while_loop(lambda carry: carry[0] < 5, step, start)[2]

    first = loop(jnp.arange(4), SamplingParams(temperature=jnp.ones(4)))
    second = loop(jnp.arange(4), SamplingParams(temperature=jnp.zeros(4)))
    assert (first != second).any()
