import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_penalties as reference
from rows import DTYPES, every_kind, make

from jaxsample._core import _history
from jaxsample.penalties import (
    dry_penalized_logits,
    frequency_penalized_logits,
    no_repeat_ngram_logits,
    presence_penalized_logits,
    repetition_penalized_logits,
)

VOCAB, ROOM, BATCH = 301, 40, 18


def histories(batch, seed=0):
    """Returns repetitive texts of every length over few ids, some outside the vocabulary."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 4, (batch, ROOM)) * 3
    tokens[::4] = np.arange(ROOM) % 5  # a loop
    tokens[1::7] = 6  # one token
    tokens[2::5, ::6] = VOCAB + 2
    tokens[3::5, ::6] = -1
    length = rng.integers(0, ROOM + 1, batch)
    length[:3] = [ROOM, 0, 1][:batch]
    return tokens.astype(np.int32), length.astype(np.int32)


def arguments():
    """Returns the arguments of each penalty: data, then neutral, usual and bad values."""
    counts = np.random.default_rng(0).poisson(0.5, (BATCH, VOCAB)).astype(np.int32) - 1
    history = histories(BATCH)

    def penalty(function):
        return lambda x, p, data: function(x, data, p)

    def dry(x, tokens, length, **changes):
        usual = {"multiplier": np.float32(0.8), "base": np.float32(1.2), "allowed_length": 2}
        rows = {name: jnp.broadcast_to(a, x.shape[:-1]) for name, a in (usual | changes).items()}
        return dry_penalized_logits(x, tokens, length, **rows, sequence_breakers=np.array([9, -1]))

    infinite = [np.nan, np.inf, -np.inf]
    return {
        "repetition": (
            penalty(repetition_penalized_logits),
            (counts > 0,),
            (1.0, [0.5, 1.3], [0.0, -1.0, *infinite]),
        ),
        "presence": (
            penalty(presence_penalized_logits),
            (counts,),
            (0.0, [-0.3, 0.7], infinite),
        ),
        "frequency": (
            penalty(frequency_penalized_logits),
            (counts,),
            (0.0, [-0.3, 0.7], infinite),
        ),
        "dry": (
            lambda x, m, *data: dry(x, *data, multiplier=m),
            history,
            (0.0, [0.5, 2.0], [-1.0, *infinite]),
        ),
        "dry base": (
            lambda x, b, *data: dry(x, *data, base=b),
            history,
            (None, [1.0, 1.5], [0.9, -2.0, *infinite]),
        ),
        "dry allowed": (
            lambda x, a, *data: dry(x, *data, allowed_length=a),
            history,
            (ROOM, [1, 3], [0, -1, -(2**31)]),
        ),
        "ngram": (
            lambda x, n, *data: no_repeat_ngram_logits(x, *data, n),
            history,
            (0, [1, 3], [-1, -(2**31)]),
        ),
    }


def column(*values):
    """Returns one value per row, float32 or int32."""
    array = np.resize(np.array(values), BATCH)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32)


NAMES = tuple(arguments())


def assert_close(got, want, x, rounding=0.0):
    """Asserts equality up to float32 rounding, and bit for bit for unpenalised logits."""
    got, x = np.asarray(got), x.astype(np.float32)
    tolerance = 1.5 * float(np.finfo(np.float32).eps) + rounding
    assert got.dtype == x.dtype
    same = want == x.astype(np.float64)
    assert_same_bits(got[same], x[same])
    scale = np.maximum(np.abs(want[~same]), np.abs(x[~same].astype(np.float64)))
    assert (np.abs(got[~same].astype(np.float64) - want[~same]) <= tolerance * scale).all()


def assert_same_bits(got, want):
    np.testing.assert_array_equal(np.asarray(got).view(np.uint8), np.asarray(want).view(np.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_repetition_presence_and_frequency_match_their_definitions(dtype):
    x = every_kind(2, VOCAB, dtype)
    rng = np.random.default_rng(1)
    counts = rng.poisson(0.5, x.shape).astype(np.int32)
    values = np.resize(np.float32([0.7, 1.25, 1.9]), len(x))
    for function, definition, data in (
        (repetition_penalized_logits, reference.repetition, counts > 0),
        (presence_penalized_logits, reference.presence, counts),
        (frequency_penalized_logits, reference.frequency, counts),
    ):
        want = np.stack([definition(*a) for a in zip(x, data, values, strict=True)])
        assert_close(function(x, data, values), want, x)


def test_matches_are_longest_common_suffixes():
    tokens, length = histories(24)
    for limit in (0, 1, 3, ROOM):
        got = np.asarray(_history.matches(tokens, length, jnp.full(24, limit)))
        for row, n, matches in zip(tokens.tolist(), length, got, strict=True):
            want = [min(reference.match(row[:n], i), limit) for i in range(n)]
            assert matches.tolist() == want + [0] * (ROOM - n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dry_matches_its_definition(dtype):
    x = every_kind(2, VOCAB, dtype)
    tokens, length = histories(len(x))
    rng = np.random.default_rng(2)
    multiplier = rng.choice(np.float32([0.8, 2.5]), len(x))
    base = rng.choice(np.float32([1.0, 1.1, 1.2, 1.05]), len(x))
    allowed = rng.choice(np.int32([1, 2, 4, 60]), len(x), p=[0.4, 0.3, 0.2, 0.1])
    breakers = rng.choice([-1, 0, 9, VOCAB - 1, -7], (len(x), 2), p=[0.5, 0.1, 0.1, 0.2, 0.1])
    got = dry_penalized_logits(x, tokens, length, multiplier, base, allowed, breakers)
    want = np.stack(
        [
            reference.dry(row, text[:n], m, b, a, tuple(i for i in end if i >= 0))
            for row, text, n, m, b, a, end in zip(
                x, tokens.tolist(), length, multiplier, base, allowed, breakers, strict=True
            )
        ]
    )
    assert (want != x).any(axis=-1).sum() > len(x) / 4
    assert_close(got, want, x, rounding=2e-6)  # the error of the squarings


def test_the_published_figures_of_dry():
    """The cases of llama.cpp's own tests: probabilities, history, multiplier, allowed, breakers."""
    flat = [0.2] * 5
    for p, text, multiplier, allowed, breaker, want in (
        ([0.25] * 4, [0, 1], 1, 2, -1, [0.25] * 4),
        ([0.25] * 4, [0, 1, 2, 0, 1], 1, 2, -1, [0.296923, 0.296923, 0.109232, 0.296923]),
        (flat, [0, 1, 3, 4, 0, 1], 1, 2, 3, flat),
        (flat, [0, 1, 2, 0, 1], 2, 2, -1, [0.241818, 0.241818, 0.032727, 0.241818, 0.241818]),
        (flat, [0, 1, 2, 3, 4, 0, 1], 1, 4, -1, flat),
    ):
        history, length = np.resize(np.int32(text), ROOM), len(text)
        x = np.log(np.float32(p))
        y = dry_penalized_logits(x, history, length, multiplier, 1.1, allowed, np.array([breaker]))
        np.testing.assert_allclose(jax.nn.softmax(y), want, atol=1e-6)


@pytest.mark.slow
def test_dry_of_a_long_loop_ends_at_the_largest_float():
    loop = np.full(3000, 7, np.int32)
    y = dry_penalized_logits(jnp.zeros((3, 10)), loop, 3000, 0.5, np.float32([1, 1.001, 30]), 2)
    largest = np.finfo(np.float32).max
    np.testing.assert_allclose(y[:, 7], [-0.5, -0.5 * 1.001**2997, -0.5 * largest], rtol=1e-3)
    assert (np.delete(y, 7, axis=1) == 0).all()
    y = dry_penalized_logits(jnp.full(10, -60000, jnp.float16), loop[:24], 24, 0.5)
    np.testing.assert_allclose(y[7], -60000 - 0.5 * 1.75**21, rtol=1e-6)  # beyond float16
    y = dry_penalized_logits(jnp.full(10, -1e38), loop, 3000, 10)
    assert y[7] == -jnp.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_repeat_ngram_matches_its_definition(dtype):
    x = every_kind(2, VOCAB, dtype)
    tokens, length = histories(len(x))
    n = np.resize(np.int32([1, 2, 3, 0, 5, 30, 41, 2**31 - 1]), len(x))
    got = no_repeat_ngram_logits(x, tokens, length, n)
    kept = np.stack(
        [
            reference.no_repeat_ngram(row, text[:m], k)
            for row, text, m, k in zip(x, tokens.tolist(), length, n, strict=True)
        ]
    )
    assert (~kept).any(axis=-1).sum() > len(x) / 4
    assert_same_bits(got, np.where(kept, x, np.asarray(-np.inf, x.dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "dry base"])
def test_neutral_values_are_the_identity(name, dtype):
    x = every_kind(2, VOCAB, dtype)
    x[0, :3] = np.nan, np.inf, -0.0
    function, data, (neutral, *_) = arguments()[name]
    masks = name == "ngram"
    assert_same_bits(function(x, column(neutral), *data), x if masks else x.astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_bad_parameters_make_their_row_nan_and_touch_no_other(name):
    x = every_kind(2, VOCAB)
    function, data, (_, usual, bad) = arguments()[name]
    values = column(*usual)
    want = np.asarray(function(x, values, *data))
    for value in bad:
        values[3] = value
        got = np.asarray(function(x, values, *data))
        assert np.isnan(got[3]).all()
        assert_same_bits(np.delete(got, 3, 0), np.delete(want, 3, 0))


def test_bad_lengths_and_breakers():
    x, (tokens, length) = every_kind(2, VOCAB), histories(BATCH)
    good = length.copy()
    for value in (-1, ROOM + 1, -(2**31), 2**31 - 1):
        length[4] = value
        for function in (
            lambda x, n: dry_penalized_logits(x, tokens, n, column(0.8), sequence_breakers=[9, -1]),
            lambda x, n: no_repeat_ngram_logits(x, tokens, n, column(2)),
        ):
            got, want = np.asarray(function(x, length)), np.asarray(function(x, good))
            assert np.isnan(got[4]).all()
            assert_same_bits(np.delete(got, 4, 0), np.delete(want, 4, 0))
    breakers = np.resize(np.array([[-5], [3], [VOCAB]]), (BATCH, 1))
    y = dry_penalized_logits(x, tokens, good, 0.8, sequence_breakers=breakers)
    np.testing.assert_array_equal(np.isnan(y).all(axis=-1), breakers[:, 0] == VOCAB)


@pytest.mark.parametrize("name", NAMES)
def test_bad_and_masked_logits_do_not_change(name):
    function, data, (_, usual, _) = arguments()[name]
    values = np.float32([np.nan, np.inf, -np.inf])[:, None]
    x = np.resize(np.broadcast_to(values, (3, VOCAB)), (BATCH, VOCAB))
    y = np.asarray(function(x, column(*usual), *data))
    assert not (y[x[:, 0] != -np.inf] < np.inf).any()
    assert (y[x[:, 0] == -np.inf] == -np.inf).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repetition", "frequency", "dry", "ngram"])
def test_rows_are_independent(name):
    """For any rank, no rows, `vmap` and `scan`, each row equals the row alone bit for bit."""
    x = every_kind(2, VOCAB)
    function, data, (_, usual, _) = arguments()[name]
    inputs = (x, column(*usual), *data)
    want = np.asarray(function(*inputs))
    for i in (0, 5, 17):
        assert_same_bits(function(*(a[i] for a in inputs)), want[i])
    assert_same_bits(jax.vmap(function)(*inputs), want)
    blocks = [a.reshape(3, 6, *a.shape[1:]) for a in inputs]
    scanned = jax.lax.scan(lambda _, a: (None, function(*a)), None, tuple(blocks))[1]
    assert_same_bits(scanned, want.reshape(3, 6, VOCAB))
    assert_same_bits(function(*blocks), want.reshape(3, 6, VOCAB))
    assert function(*(a[:0] for a in inputs)).shape == (0, VOCAB)


def test_small_shapes():
    for vocab, room in ((1, 0), (1, 1), (3, 2)):
        x, tokens = jnp.zeros((2, vocab)), jnp.zeros((2, room), jnp.int32)
        assert_same_bits(dry_penalized_logits(x, tokens, room, 0.8), x)
        y = no_repeat_ngram_logits(x, tokens, room, 1)
        np.testing.assert_array_equal(y[:, 0], [-np.inf if room else 0] * 2)


def test_values_never_trace_again():
    x, (tokens, length) = make("normal", 3, VOCAB), histories(3)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def every(x, penalty, multiplier, base, allowed, breakers, n, length):
        x = repetition_penalized_logits(x, tokens[:, :1] == np.arange(VOCAB), penalty)
        x = dry_penalized_logits(x, tokens, length, multiplier, base, allowed, breakers)
        return no_repeat_ngram_logits(x, tokens, length, n)

    for i in range(3):
        row = np.arange(3, dtype=np.int32) + i
        every(
            x, np.float32(1 + i), row * np.float32(0.5), row + np.float32(1), row, row, row, length
        )


@pytest.mark.slow
def test_gradients_reach_logits_and_penalties():
    x = jnp.asarray(every_kind(2, VOCAB)).at[1, 5].set(jnp.nan)
    for name in ("repetition", "presence", "frequency", "dry base", "ngram"):
        function, data, (_, usual, bad) = arguments()[name]

        def loss(x, value, function=function, data=data):
            y = function(x, value, *data)
            return jnp.sum(jnp.where(jnp.isfinite(y), y, 0))

        value = column(usual[0], usual[0], bad[0])
        if value.dtype == np.float32:
            gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, value)
        else:
            gradients = (jax.jit(jax.grad(loss))(x, value),)
        assert all(jnp.isfinite(g).all() for g in gradients)
        assert (gradients[0][2::3] == 0).all()


@pytest.mark.slow
def test_the_gradient_of_each_penalty():
    x = jnp.array([2.0, -1.0, 3.0, -jnp.inf])
    history, weights = jnp.array([1, 2, 0, 1, 2]), jnp.array([1.0, 2.0, 3.0, 0.0])

    def total(y):
        return jnp.sum(jnp.where(y > -jnp.inf, y, 0) * weights)

    seen = jnp.array([True, True, False, True])
    by_x, by_r = jax.grad(
        lambda x, r: total(repetition_penalized_logits(x, seen, r)), argnums=(0, 1)
    )(x, 2.0)
    np.testing.assert_allclose(by_x, [0.5, 4, 3, 0])
    np.testing.assert_allclose(by_r, -2 / 4 - 2, rtol=1e-6)
    by_x, by_m = jax.grad(
        lambda x, m: total(dry_penalized_logits(x, history, 5, m, allowed_length=1)), argnums=(0, 1)
    )(x, 1.0)
    np.testing.assert_allclose(by_x, [1, 2, 3, 0])
    np.testing.assert_allclose(by_m, -1.75, rtol=1e-6)
    by_x = jax.grad(lambda x: total(no_repeat_ngram_logits(x, history, 5, 2)))(x)
    np.testing.assert_allclose(by_x, [0, 2, 3, 0])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x, h: repetition_penalized_logits(x, h, 1.2), TypeError, "seen must hold bool"),
        (lambda x, h: repetition_penalized_logits(x, h > 0, 1.2), ValueError, "seen must have sha"),
        (
            lambda x, h: repetition_penalized_logits(x, x > 0, "a"),
            TypeError,
            "penalty must be",
        ),
        (lambda x, h: presence_penalized_logits(x, x, 1.2), TypeError, "counts must hold integers"),
        (lambda x, h: frequency_penalized_logits(x, h, 1.2), ValueError, "counts must have shape"),
        (lambda x, h: dry_penalized_logits(x, x, 1, 0.8), TypeError, "tokens must hold integers"),
        (lambda x, h: dry_penalized_logits(x, h, 1.0, 0.8), TypeError, "length must be an integer"),
        (
            lambda x, h: dry_penalized_logits(x, h, 1, np.ones(3)),
            ValueError,
            "multiplier must",
        ),
        (
            lambda x, h: dry_penalized_logits(x, h, 1, 1, 2, 2.0),
            TypeError,
            "allowed_length",
        ),
        (
            lambda x, h: dry_penalized_logits(x, h, 1, 1, 2, 2, 1),
            ValueError,
            "sequence_breakers must",
        ),
        (lambda x, h: no_repeat_ngram_logits(x, h, 1, True), TypeError, "n must be an integer"),
        (
            lambda x, h: no_repeat_ngram_logits(x, h[:1, None], 1, 2),
            ValueError,
            "tokens must ",
        ),
    ],
)
def test_wrong_shapes_and_dtypes_name_the_argument(call, error, match):
    with pytest.raises(error, match=match):
        call(jnp.zeros((2, 10)), np.ones((2, 5), int))
