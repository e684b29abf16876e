import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_feedback
from rows import every_kind, make, slow, traces

from jaxsample import (
    AdaptivePParams,
    AdaptivePState,
    MirostatParams,
    MirostatState,
    adaptive_p_sample,
    categorical_sample,
    init_adaptive_p,
    init_mirostat,
    mirostat_v1_sample,
    mirostat_v2_sample,
)

MIROSTAT = {
    mirostat_v1_sample: reference_feedback.mirostat_v1,
    mirostat_v2_sample: reference_feedback.mirostat_v2,
}
SAMPLERS = (*MIROSTAT, adaptive_p_sample)
SIZES = (slow(1, "float16"), (257, "float32"), slow(5003, "bfloat16"))


def keys_of(batch, seed=0):
    return jax.random.split(jax.random.key(seed), batch)


def random_arguments(sampler, batch, seed=0):
    """Returns random params and states, different in each row."""
    rng = np.random.default_rng(seed)

    def choice(*values):
        return rng.choice(np.array(values, np.float32), batch)

    if sampler is adaptive_p_sample:
        params = AdaptivePParams(target=choice(-1, 0, 0.3, 0.6, 1), decay=choice(0, 0.5, 0.99))
        weight = choice(0, 1, 10)
        return params, AdaptivePState(choice(0, 0.2, 0.9) * weight, weight)
    params = MirostatParams(tau=choice(0, 2, 5), eta=choice(0, 0.1, 1))
    return params, MirostatState(choice(-1, 0.5, 2, 3.3, 6, 10, 60))


def take(arguments, rows):
    return jax.tree.map(lambda a: a[rows], arguments)


def everywhere(batch, *arguments):
    """Broadcasts scalar params and states to all rows, so that tests share shapes and programs."""
    return jax.tree.map(lambda a: np.full(batch, a, np.float32), arguments)


def assert_equal(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sampler", [slow(mirostat_v1_sample), mirostat_v2_sample])
@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
def test_mirostat_draws_from_the_kept_set_of_the_definition(sampler, vocab, dtype):
    x = every_kind(6, vocab, dtype)
    keys, (params, state) = keys_of(len(x)), random_arguments(sampler, len(x))
    tokens, following = jax.device_get(sampler(keys, x, params, state))
    kept, certain = np.zeros(x.shape, bool), np.zeros(len(x), bool)
    for i, row in enumerate(x):
        mu, rate = float(state.mu[i]), (float(params.tau[i]), float(params.eta[i]))
        low, kept[i], high = (
            MIROSTAT[sampler](row.astype(np.float64), mu, slack) for slack in (-1e-4, 0, 1e-4)
        )
        certain[i] = (low == high).all()
        wants = [
            reference_feedback.next_mu(row, k, tokens[i], *rate, mu) for k in (low, kept[i], high)
        ]
        want = min(wants, key=lambda want: abs(want - following.mu[i]))
        np.testing.assert_allclose(following.mu[i], want, rtol=1e-6, atol=2e-5)
    assert certain.mean() > 0.8
    want = np.asarray(categorical_sample(keys, np.where(kept, x, np.array(-np.inf, x.dtype))))
    np.testing.assert_array_equal(tokens[certain], want[certain])


@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
def test_adaptive_p_draws_from_the_definition(vocab, dtype):
    x = every_kind(6, vocab, dtype)
    keys, (params, state) = keys_of(len(x)), random_arguments(adaptive_p_sample, len(x))
    tokens, following = adaptive_p_sample(keys, x, params, state)
    adapted = np.empty(x.shape, np.float32)
    for i, row in enumerate(x):
        adapted[i] = reference_feedback.adaptive_p(row, params.target[i], *take(state, i))
        want = take(state, i)
        if params.target[i] >= 0:
            want = reference_feedback.next_memory(row, tokens[i], params.decay[i], *want)
        np.testing.assert_allclose(take(following, i), want, rtol=1e-5)
    # Rounding may change one token in a thousand.
    assert np.sum(tokens != categorical_sample(keys, adapted)) <= 1


@pytest.mark.slow
def test_a_zipf_law_is_recognised():
    """On p ~ 1 / rank^s, mirostat's k is that of the formula in the paper."""
    number = 1000
    for s, mu in ((0.5, 9.0), (1.0, 6.0), (1.5, 6.0), (3.0, 6.0)):
        row = -s * np.log(np.arange(1, number + 1))
        e = s - 1
        share = 1 / np.log(number) if e == 0 else e / (1 - number**-e)
        k = (share * 2**mu) ** (1 / s)
        np.testing.assert_allclose(reference_feedback.zipf_k(row, mu), k, rtol=1e-9)
        x = jnp.tile(jnp.asarray(row, jnp.float32), (3000, 1))
        tokens, _ = mirostat_v1_sample(keys_of(3000), x, MirostatParams(), MirostatState(mu))
        assert tokens.max() == int(k) - 1


def drawn(sampler, x, params, state, steps):
    """Returns tokens and states `[steps, ...]` of many draws, which use the rows `x` in turn."""
    shape = jax.tree.leaves(state)[0].shape

    def step(carry, key):
        state, x = carry
        tokens, state = sampler(key, jnp.broadcast_to(x[0], (*shape, x.shape[-1])), params, state)
        return (state, jnp.roll(x, 1, axis=0)), (tokens, state)

    keys = keys_of(steps, seed=1)
    return jax.jit(lambda x, state: jax.lax.scan(step, (state, x), keys)[1])(x, state)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [mirostat_v2_sample, slow(mirostat_v1_sample)])
def test_mirostat_steers_the_mean_surprise_to_tau(sampler):
    """Within 0.05 bits over 2,000 tokens of Zipf laws, and less likely tokens for a higher tau."""
    exponents = np.array([1.0, 1.5, 1.2])[:, None]
    x = jnp.asarray(-exponents * np.log(np.arange(1, 1001)), jnp.float32)
    params = MirostatParams(tau=np.array([1.0, 2, 3, 4], np.float32), eta=0.1)
    start = init_mirostat(params, (4,))
    tokens, states = drawn(sampler, x, params, start, 2000)
    mu = np.concatenate([start.mu[None], states.mu]).astype(np.float64)
    surprise = params.tau - np.diff(mu, axis=0) / 0.1
    assert (surprise > -1e-3).all()
    np.testing.assert_allclose(surprise.mean(axis=0), params.tau, atol=0.05)
    assert (np.diff(np.asarray(tokens).mean(axis=0)) > 0).all()


@pytest.mark.slow
def test_adaptive_p_steers_the_mean_probability_to_the_target():
    """Within 0.03 over 2,000 tokens, and closer than without a memory."""
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=50)
    x = jnp.log(jnp.asarray(p, jnp.float32))
    params = AdaptivePParams(target=np.array([0.2, 0.3, 0.4, 0.5], np.float32))
    start = init_adaptive_p(params, (4,))

    def off_target(sampler):
        tokens, states = drawn(sampler, x, params, start, 2000)
        np.testing.assert_allclose(states.total_weight, 10, rtol=1e-5)
        rows = -np.arange(2000)[:, None] % 50
        return abs(p[rows, np.asarray(tokens)].mean(axis=0) - params.target)

    def without_memory(key, x, params, state):
        return adaptive_p_sample(key, x, params, state)[0], state

    assert (off_target(adaptive_p_sample) < 0.03).all()
    assert (off_target(adaptive_p_sample) < off_target(without_memory)).all()


@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
def test_neutral_rows_are_the_plain_draw(vocab, dtype):
    x = every_kind(6, vocab, dtype)
    keys, batch = keys_of(len(x)), len(x)
    want = np.asarray(categorical_sample(keys, x))
    params, state = everywhere(batch, AdaptivePParams(target=-0.5), AdaptivePState(2.0, 3.0))
    assert_equal(adaptive_p_sample(keys, x, params, state), (want, state))
    params, state = everywhere(batch, MirostatParams(eta=0.0), MirostatState(1e4))
    assert_equal(mirostat_v2_sample(keys, x, params, state), (want, state))
    tokens, following = mirostat_v1_sample(keys, x, params, state)
    # A very steep Zipf law has few ranks for any surprise.
    everything = np.array([reference_feedback.zipf_k(row, 1e3) > vocab for row in x])
    np.testing.assert_array_equal(np.asarray(tokens)[everything], want[everything])
    assert_equal(following, state)


@pytest.mark.parametrize("sampler", MIROSTAT)
def test_a_mu_below_every_surprise_keeps_rank_0(sampler):
    x = every_kind(6, 257)
    x[1] = 0  # equal logits: the surprise is at least 8 bits
    arguments = everywhere(len(x), MirostatParams(), MirostatState(-3.0))
    tokens, state = sampler(keys_of(len(x)), x, *arguments)
    np.testing.assert_array_equal(tokens, x.argmax(-1))
    np.testing.assert_allclose(state.mu, -2.5)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_position_of_a_row_does_not_matter(sampler):
    x = every_kind(1, 257)
    keys, arguments = keys_of(len(x)), random_arguments(sampler, len(x), seed=2)
    want = sampler(keys, x, *arguments)
    alone = jax.jit(lambda key, row, arguments: sampler(key, row, *arguments))
    for i in range(len(x)):
        assert_equal(alone(keys[i], x[i], take(arguments, i)), take(want, i))
    some = slice(2, 5)
    assert_equal(sampler(keys[some], x[some], *take(arguments, some)), take(want, some))
    square = jax.tree.map(lambda a: a.reshape(3, 3, *a.shape[1:]), (keys, x, *arguments))
    got = jax.tree.map(lambda a: a.reshape(9), jax.vmap(sampler)(*square))
    assert_equal(got, want)
    padded = np.concatenate([x, np.full((len(x), 300), -np.inf, np.float32)], axis=-1)
    assert_equal(sampler(keys, padded, *arguments), want)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_key_is_split_over_the_rows(sampler):
    x = make("normal", 3, 257)
    arguments = random_arguments(sampler, 3)
    assert_equal(sampler(jax.random.key(7), x, *arguments), sampler(keys_of(3, 7), x, *arguments))


BAD = {
    mirostat_v1_sample: {"tau": [-1, np.nan, np.inf], "eta": [-1, np.nan, np.inf]},
    mirostat_v2_sample: {"tau": [-1, np.nan, np.inf], "eta": [-1, np.nan, np.inf]},
    adaptive_p_sample: {"target": [1.1, np.nan, np.inf], "decay": [-0.1, 0.995, np.nan]},
}
BAD_STATES = {"mu": [np.nan, np.inf, -np.inf], "weighted_sum": [np.nan, np.inf, -np.inf]}
BAD_STATES["total_weight"] = [np.nan, np.inf, -1.0]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_bad_rows_keep_their_state_and_touch_no_other(sampler):
    x, keys = make("normal", 3, 257), keys_of(3)
    x[1, 5] = -np.inf
    for target in (0.5, -1.0):
        if sampler is adaptive_p_sample:
            params = AdaptivePParams(target=np.full(3, target, np.float32), decay=np.full(3, 0.5))
            state = AdaptivePState(np.full(3, 2, np.float32), np.full(3, 5, np.float32))
        else:
            params = MirostatParams(tau=np.full(3, 3, np.float32), eta=np.full(3, 0.5))
            state = MirostatState(np.full(3, 6, np.float32))
        want = sampler(keys, x, params, state)

        def check(x, params, state, want=want):
            tokens, following = sampler(keys, x, params, state)
            assert tokens[1] == -1
            assert_equal(take(following, 1), take(state, 1))
            assert_equal(
                take((tokens, following), slice(None, None, 2)), take(want, slice(None, None, 2))
            )

        for value in (np.nan, np.inf, "masked"):
            bad = x.copy()
            bad[1] = -np.inf if value == "masked" else np.where(np.arange(257) == 7, value, x[1])
            check(bad, params, state)
        for name, values in BAD[sampler].items():
            for value in values:
                column = np.array(getattr(params, name), np.float32)
                column[1] = value
                check(x, type(params)(**{**vars(params), name: column}), state)
        for name in state._fields:
            for value in BAD_STATES[name]:
                column = getattr(state, name).copy()
                column[1] = value
                check(x, params, state._replace(**{name: column}))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_empty_batches_and_scalar_states(sampler):
    params, state = random_arguments(sampler, 1)
    tokens, following = sampler(jax.random.key(0), jnp.zeros((2, 0, 30)), *take((params, state), 0))
    assert {a.shape for a in (tokens, *following)} == {(2, 0)}
    assert tokens.dtype == jnp.int32
    assert {a.dtype for a in following} == {jnp.dtype("float32")}


def test_the_first_state():
    assert_equal(init_mirostat(MirostatParams()), (np.float32(10),))
    params = MirostatParams(tau=np.array([[1.0], [2.0]]))
    assert_equal(init_mirostat(params, (2, 3)), (np.float32([[2, 2, 2], [4, 4, 4]]),))
    state = init_adaptive_p(AdaptivePParams(target=np.array([0.5, -1]), decay=0.5), (2,))
    assert_equal(state, (np.float32([1, 0]), np.float32([2, 2])))
    with pytest.raises(ValueError, match="tau must be a scalar or broadcast"):
        init_mirostat(params, (3,))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_values_never_trace_again(sampler):
    x, before = make("normal", 3, 257), None
    for seed in range(4):
        params, state = random_arguments(sampler, 3, seed)
        for _ in range(2):
            _, state = sampler(keys_of(3, seed), x, params, state)
            before = before or traces(sampler)
    assert traces(sampler) == before


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clean_under_every_checker(sampler):
    x = jnp.asarray(make("masked", 3, 257))
    arguments = jax.tree.map(jnp.asarray, random_arguments(sampler, 3))
    with jax.checking_leaks(), jax.debug_nans(True), jax.debug_key_reuse(True):
        jax.block_until_ready(jax.jit(sampler)(keys_of(3), x, *arguments))
    keys = keys_of(3)
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(sampler(keys, x, *arguments))


@pytest.mark.slow
def test_mirostat_writes_no_copy_of_the_logits():
    if jax.__version_info__ < (0, 10):
        pytest.skip("the CPU compiler before 0.10 does not fuse the passes")
    x, state = jnp.zeros((16, 32768)), init_mirostat(MirostatParams(), (16,))
    for sampler in MIROSTAT:
        compiled = jax.jit(sampler).lower(keys_of(16), x, MirostatParams(), state).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < x.nbytes / 2, sampler


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (MirostatParams(tau=[1, -2]), r"tau\[1\] must be finite and at least 0, got -2"),
        (MirostatParams(eta=np.inf), "eta must be finite and at least 0, got inf"),
        (AdaptivePParams(target=[[0.1], [1.5]]), r"target\[1, 0\] must be at most 1, got 1.5"),
        (AdaptivePParams(target=0.5, decay=1.0), r"decay must be in \[0, 0.99\], got 1.0"),
        (AdaptivePParams(target=np.nan), "target must be at most 1, got nan"),
    ],
)
def test_validate_names_the_field_the_row_and_the_range(params, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        params.validate()


def test_validate_accepts_values_in_range_and_rejects_non_numbers():
    MirostatParams(tau=jnp.array([0.0, 9.0], jnp.bfloat16), eta=1).validate()
    AdaptivePParams(target=[-1, 0, 1], decay=0.99).validate()
    with pytest.raises(TypeError, match="tau must hold real numbers, got <U1"):
        MirostatParams(tau="x").validate()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x, p, s: mirostat_v2_sample(0, x, p, s), TypeError, "key must be a jax.random.key"),
        (lambda x, p, s: mirostat_v1_sample(keys_of(2), x[0, 0], p, s), ValueError, "logits must"),
        (
            lambda x, p, s: mirostat_v1_sample(keys_of(2), x, {"tau": 1}, s),
            TypeError,
            "params must be of type MirostatParams, got dict",
        ),
        (
            lambda x, p, s: mirostat_v2_sample(keys_of(2), x, p, 3.0),
            TypeError,
            "state must be of type MirostatState, got float",
        ),
        (
            lambda x, p, s: mirostat_v2_sample(keys_of(2), x, p, MirostatState(np.ones(3))),
            ValueError,
            "mu must be a scalar or broadcast",
        ),
        (
            lambda x, p, s: adaptive_p_sample(keys_of(2), x, p, s),
            TypeError,
            "params must be of type AdaptivePParams, got MirostatParams",
        ),
        (
            lambda x, p, s: adaptive_p_sample(
                keys_of(2), x, AdaptivePParams(target=1j), AdaptivePState(0.0, 0.0)
            ),
            TypeError,
            "target must be a real number",
        ),
    ],
)
def test_errors_name_wrong_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call(jnp.zeros((2, 10)), MirostatParams(), MirostatState(3.0))


def test_params_are_pytrees():
    assert len(jax.tree.leaves(MirostatParams(tau=jnp.ones(2)))) == 2
    halved = jax.tree.map(lambda a: a / 2, AdaptivePParams(target=0.5, decay=0.8))
    assert halved == AdaptivePParams(target=0.25, decay=0.4)


@pytest.mark.slow
def test_equal_logits_are_ranked_by_id():
    x = np.zeros(1000, np.float32)
    x[10] = 2
    k = int(reference_feedback.zipf_k(x, 8.0))
    assert 4 < k < 60
    tokens, _ = mirostat_v1_sample(
        keys_of(3000), np.tile(x, (3000, 1)), MirostatParams(), MirostatState(8.0)
    )
    assert set(np.unique(tokens)) == set(reference.ranking(x)[:k])
