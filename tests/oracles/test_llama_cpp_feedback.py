import jax
import numpy as np
import pytest
import reference_feedback as reference
from reference import logprobs
from rows import make

import jaxsample
from jaxsample import categorical_sample

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: the extra `oracles`")

import llama_cpp_oracle as oracle

pytestmark = pytest.mark.oracle

VOCAB, STEPS = 257, 25
KINDS = ("normal", "peaked", "offset", "flat", "ties", "zeros")


def logits_of_step(step: int, kinds) -> np.ndarray:
    return np.concatenate([make(kind, 12, VOCAB, seed=step) for kind in kinds])


def bits(row: np.ndarray) -> np.ndarray:
    return -logprobs(row) / np.log(2)


def decides_v1(row: np.ndarray, mu: float) -> bool:
    """Returns whether k is not near an integer, nor beyond the integers of llama.cpp."""
    k = reference.zipf_k(row, mu)
    bounded = k < 0.99 or 1.01 * VOCAB < k < 2**31
    return bounded or abs(k - round(k)) > 1e-3 * k


def decides_v2(row: np.ndarray, mu: float) -> bool:
    ranked = np.sort(row)[::-1]
    return bool((abs(bits(ranked) - mu) > 1e-4).all())


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat(version, record_property):
    init, step_of, decides, kinds = (
        (oracle.mirostat_v1, jaxsample.mirostat_v1_sample, decides_v1, KINDS[:3]),
        (oracle.mirostat_v2, jaxsample.mirostat_v2_sample, decides_v2, KINDS[:4]),
    )[version - 1]
    x, rng = logits_of_step(0, kinds), np.random.default_rng(version)
    tau = rng.uniform(1, 7, len(x)).astype(np.float32)
    eta = rng.uniform(0.05, 0.5, len(x)).astype(np.float32)
    samplers = [init(VOCAB, *pair, seed) for seed, pair in enumerate(zip(tau, eta, strict=True))]
    params, mu, compared = jaxsample.MirostatParams(tau=tau, eta=eta), 2 * tau, 0
    for step in range(STEPS):
        x = logits_of_step(step, kinds)
        keys = jax.random.split(jax.random.key(step), len(x))
        ours, state = step_of(keys, x, params, jaxsample.MirostatState(mu))
        theirs = [oracle.apply(sampler, row) for sampler, row in zip(samplers, x, strict=True)]
        kept = np.stack([logits for logits, _ in theirs]) > -np.inf
        decided = np.array([decides(row, m) for row, m in zip(x, mu, strict=True)])
        drawn = np.asarray(categorical_sample(keys, np.where(kept, x, -np.inf)))
        np.testing.assert_array_equal(ours[decided], drawn[decided])
        for i in np.flatnonzero(decided):
            want = reference.next_mu(x[i], kept[i], int(ours[i]), tau[i], eta[i], mu[i])
            np.testing.assert_allclose(state.mu[i], want, rtol=1e-5, atol=2e-5)
        # The state is updated by llama.cpp's own token, so it is compared through the next kept
        # set.
        mu = np.array(
            [
                reference.next_mu(row, keep, token, *values)
                for row, keep, (_, token), *values in zip(
                    x, kept, theirs, tau, eta, mu, strict=True
                )
            ],
            np.float32,
        )
        compared += int(decided.sum())
    assert compared > 0.9 * STEPS * len(x)
    record_property("compared", f"mirostat v{version}: {compared} of {STEPS * len(x)} steps")


def test_adaptive_p(record_property):
    x, rng = logits_of_step(0, KINDS), np.random.default_rng(3)
    target = rng.uniform(-0.1, 1, len(x)).astype(np.float32)
    decay = rng.uniform(0, 0.99, len(x)).astype(np.float32)
    samplers = [
        oracle.adaptive_p(*pair, seed) for seed, pair in enumerate(zip(target, decay, strict=True))
    ]
    params = jaxsample.AdaptivePParams(target=target, decay=decay)
    memory = np.stack(jaxsample.init_adaptive_p(params, target.shape), axis=-1)
    unlike = 0
    for step in range(STEPS):
        x = logits_of_step(step, KINDS)
        keys = jax.random.split(jax.random.key(step), len(x))
        state = jaxsample.AdaptivePState(*memory.T)
        ours, following = jaxsample.adaptive_p_sample(keys, x, params, state)
        theirs = [oracle.apply(sampler, row) for sampler, row in zip(samplers, x, strict=True)]
        logits = np.stack([new for new, _ in theirs])
        want = [reference.adaptive_p(*row) for row in zip(x, target, *memory.T, strict=True)]
        np.testing.assert_allclose(logits, np.stack(want), rtol=1e-4, atol=1e-4)
        unlike += int((np.asarray(ours) != categorical_sample(keys, logits)).sum())
        for i, (sampler, (_, token)) in enumerate(zip(samplers, theirs, strict=True)):
            oracle.accept(sampler, token)
            if target[i] >= 0:
                want = reference.next_memory(x[i], int(ours[i]), decay[i], *memory[i])
                got = [field[i] for field in following]
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
                memory[i] = reference.next_memory(x[i], token, decay[i], *memory[i])
    assert unlike <= 0.002 * STEPS * len(x)  # the last bits of a logit may decide a draw
    record_property("compared", f"adaptive_p: {STEPS * len(x)} steps, {unlike} unlike by rounding")
