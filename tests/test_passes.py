"""Bounds of the passes over the logits and of the iterations of searches, never wall time."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import ON_GPU, make
from unoptimised import to_read

import jaxsample as js
from jaxsample import SamplingParams
from jaxsample._core import _bisection

pytestmark = pytest.mark.slow

BATCH, VOCAB = 8, 128256  # for 4 x 50,176 logits, XLA for GPUs materialises the weights
ELEMENTS = BATCH * VOCAB
NO_WORK = r" (parameter|bitcast|constant|broadcast|get-tuple-element|tuple|conditional)\("


def elements(shape):
    """Returns the size of the largest array named in a piece of HLO."""
    sizes = re.findall(r"\b[a-z]+\d*\[([\d,]*)\]", shape)
    return max((int(np.prod([int(n) for n in s.split(",") if n])) for s in sizes), default=0)


def passes(function, *arguments, least=0.9 * ELEMENTS):
    """Returns the number of operations, outside branches and loops, with work for each logit.

    An operation with a gather takes all logits as an operand, but computes only the gathered ones.
    """
    text = to_read(jax.jit(function), arguments).as_text()
    bodies = dict(re.findall(r"\n(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)\n\}", text, re.DOTALL))
    entry = bodies[re.search(r"\nENTRY %?([\w.\-]+)", text).group(1)]
    found = 0
    for line in entry.splitlines():
        called = re.search(r" fusion\(.*calls=%?([\w.\-]+)", line)
        steps = bodies[called.group(1)].splitlines() if called else [line]
        if any(re.search(r" (gather|dynamic-slice)\(", step) for step in steps):
            continue
        work = [step.split("=", 1)[1] for step in steps if not re.search(NO_WORK, step)]
        found += any(elements(step.split("(")[0]) >= least for step in work)
    return found


def works():
    x = jnp.asarray(make("peaked", BATCH, VOCAB))
    keys = jax.random.split(jax.random.key(0), BATCH)

    def each(value):
        return jnp.full(BATCH, value)

    state = js.init_state(jnp.zeros((BATCH, 1), jnp.int32), 1, VOCAB, 8)
    joint = {"temperature": each(0.8), "top_k": each(50), "top_p": each(0.9), "min_p": each(0.1)}
    masks = {"bitmask": jnp.full((BATCH, VOCAB // 32), -2), "suppressed_token_ids": jnp.arange(9)}
    penalties = {"repetition_penalty": each(1.2), "presence_penalty": each(0.1)}
    hot = {"temperature": each(0.7)}
    return {
        "greedy": (1, js.greedy_sample, x),
        "categorical": (2, js.categorical_sample, keys, x),
        "without replacement": (
            2,
            functools.partial(js.without_replacement_sample, num=8),
            keys,
            x,
        ),
        "temperature": (2 if ON_GPU else 3, js.sample, keys, x, SamplingParams(**hot)),
        "top-k": (1, js.sample, keys, x, SamplingParams(top_k=each(50))),
        "joint": (1, js.sample, keys, x, SamplingParams(**joint)),
        "joint, vmap": (1, jax.vmap(js.sample), keys, x, SamplingParams(**joint)),
        "masks": (1, js.sample, keys, x, SamplingParams(**joint, **masks)),
        "masks, temperature": (
            3,
            js.sample,
            keys,
            x,
            SamplingParams(**hot, **masks),
        ),
        "penalties": (2, js.sample, keys, x, SamplingParams(**joint, **penalties), state),
        "top_p_logits": (2, js.top_p_logits, x, each(0.9)),
        "min_p_logits": (2, js.min_p_logits, x, each(0.9)),
        "typical_p_logits": (4, js.typical_p_logits, x, each(0.9)),
        "token_logprobs": (2, js.token_logprobs, x, jnp.zeros(BATCH, jnp.int32)),
    }


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="older compilers do not fuse the passes")
@pytest.mark.parametrize("name", works())
def test_passes_over_the_logits(name):
    most, function, *arguments = works()[name]
    assert passes(function, *arguments) == most


def of_drafts():
    """Returns calls for two texts of three drafts, with `BATCH` rows of logits."""
    x = jnp.asarray(make("peaked", BATCH, VOCAB)).reshape(2, 4, VOCAB)
    keys, drafts = jax.random.split(jax.random.key(0), (2, 4)), jnp.zeros((2, 3), jnp.int32)
    hot, cut = ({name: jnp.full(2, 0.8)} for name in ("temperature", "top_p"))
    hot, cut = SamplingParams(**hot), SamplingParams(**hot, **cut)
    rejected = keys[:, 0], x, drafts, x[:, :-1]
    block = functools.partial(js.rejection_sample, method="block")
    scaled = 2 if ON_GPU else 3
    return {
        "equality": (1, js.speculative_sample, keys, x, drafts, cut),
        "chain": (1 + 2, js.rejection_sample, *rejected, cut),
        "block": (1 + 2, block, *rejected, cut),  # the excess mass is that of the candidates
        "block of whole rows": (scaled + 2 + 1, block, *rejected, hot),
    }


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="older compilers do not fuse the passes")
@pytest.mark.parametrize("name", of_drafts())
def test_passes_over_the_logits_of_drafts(name):
    """Counts the logits of the target and draft model, except those of the rejected row."""
    most, function, *arguments = of_drafts()[name]
    assert passes(function, *arguments, least=0.4 * ELEMENTS) == most


def turns(monkeypatch, function, *arguments):
    """Returns the number of iterations of each search."""
    found = []

    def counted(going, body, start, loop=jax.lax.while_loop):
        end = loop(going, body, start)
        jax.debug.callback(lambda turn: found.append(int(turn)), end[0])
        return end

    monkeypatch.setattr(_bisection.lax, "while_loop", counted)
    jax.block_until_ready(jax.jit(lambda *a: function(*a))(*arguments))
    jax.effects_barrier()
    return found


@pytest.mark.parametrize(
    ("most", "dtype", "shape"),
    [
        (17, "float32", lambda x: x),
        (17, "float32", lambda x: 1000 + x),
        (23, "float32", lambda x: 1e-3 * x),
        (18, "bfloat16", lambda x: x),  # with ties, among which ids are searched
        (18, "float32", lambda x: x.astype("bfloat16")),  # like the logits of most models
        (15, "float32", lambda x: 0 * x + 1.7),  # all equal
        (18, "float32", lambda x: np.minimum(x, 0)),  # the largest logit is in every block
        (19, "float32", lambda x: np.maximum(x, 0)),  # half of them equal, and 0
    ],
)
def test_iterations_of_a_search(monkeypatch, most, dtype, shape):
    jax.clear_caches()  # programs traced before were not counted
    x = jnp.asarray(shape(make("normal", 3, 50176)), dtype)
    (found,) = turns(monkeypatch, js.top_p_logits, x, 0.9)
    assert 0 < found <= most


def test_a_k_above_the_number_of_unmasked_tokens_needs_no_search(monkeypatch):
    jax.clear_caches()
    x = np.where(np.arange(5003) % 10 == 0, make("normal", 3, 5003), -np.inf).astype(np.float32)
    assert turns(monkeypatch, js.top_k_logits, x, 1000) == [0]  # after counting them
