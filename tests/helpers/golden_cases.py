"""The golden results: the outputs of every public function for fixed inputs, bit for bit.

`python tests/helpers/golden_cases.py` writes the files in tests/golden that test_golden compares
with, or only those of the given groups. They are rewritten only if a major version changes a
result, which the changelog lists.

The inputs are computed from the raw bits of a generator, a stream that NumPy guarantees, by sums
and products alone, so they are equal on every machine.
"""

import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsample as js
from jaxsample import SamplingParams

FOLDER = Path(__file__).parent.parent / "golden"
ROWS = 12
LENGTH = 16
DTYPES = ("float32", "bfloat16", "float16")


class Stream:
    """Numbers whose sequence depends only on the seed."""

    def __init__(self, *seed: int):
        self._bits = np.random.PCG64(seed)

    def uniform(self, *shape: int) -> np.ndarray:
        raw = self._bits.random_raw(int(np.prod(shape, dtype=int)))
        return (raw >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        return (low + np.floor(self.uniform(*shape) * (high - low))).astype(np.int32)

    def flags(self, share: float, *shape: int) -> np.ndarray:
        return self.uniform(*shape) < share

    def real(self, *values: float, rows: int = ROWS) -> np.ndarray:
        return np.array(values, np.float32)[self.integers(0, len(values), rows)]

    def whole(self, *values: int, rows: int = ROWS) -> np.ndarray:
        return np.array(values, np.int32)[self.integers(0, len(values), rows)]


def logits(vocab: int, dtype: str) -> np.ndarray:
    """Returns a row of each kind: text-like, flat, peaked, ties, equal, masked, one token, large
    offset, both zeros, NaN, +inf, only -inf.
    """
    stream = Stream(vocab, DTYPES.index(dtype))
    x = 8 * (stream.uniform(4, ROWS, vocab).sum(axis=0) - 2)
    x[1] *= 0.001
    x[2, vocab // 3] += 30
    x[3] = np.round(x[3])
    x[4] = x[4, 0]
    x[5, 1:][stream.flags(0.7, vocab - 1)] = -np.inf
    x[6, np.arange(vocab) != vocab // 2] = -np.inf
    x[7] -= 1000
    x[8] = np.array([0.0, -0.0, -1.0])[stream.integers(0, 3, vocab)]
    x[9, vocab // 4], x[10, vocab // 5], x[11] = np.nan, np.inf, -np.inf
    return x.astype(jnp.dtype(dtype))


def keys() -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.arange(ROWS, dtype=jnp.int32))


def state(vocab: int) -> js.SamplerState:
    stream = Stream(1)
    state = js.init_state(
        stream.integers(0, 5, ROWS, 6), stream.integers(0, 7, ROWS), vocab, LENGTH
    )
    for _ in range(4):
        state = js.update_state(state, stream.integers(0, 5, ROWS))
    return state


def every_param(vocab: int) -> SamplingParams:
    """Returns params with different rules in each row; about half of the values are neutral."""
    s = Stream(2)
    return SamplingParams(
        unconditional_logits=(8 * s.uniform(ROWS, vocab)).astype(np.float32),
        guidance_scale=s.real(1, 1, 1.5),
        allowed=s.flags(0.9, ROWS, vocab),
        bitmask=(s.integers(0, 2**16, ROWS, -(-vocab // 32)) << 15) | 0x5555,
        suppressed_token_ids=s.integers(-1, vocab, ROWS, 3),
        bad_words=s.integers(0, 5, ROWS, 3, 2),
        bad_word_lengths=s.integers(0, 3, ROWS, 3),
        stop_token_ids=s.integers(-1, vocab, ROWS, 2),
        min_tokens=s.whole(0, 0, 9),
        no_repeat_ngram_size=s.whole(0, 0, 1, 2),
        repetition_penalty=s.real(1, 1, 1.3, 0.8),
        presence_penalty=s.real(0, 0, 0.7),
        frequency_penalty=s.real(0, 0, 0.4, -0.3),
        dry_multiplier=s.real(0, 0, 0.8),
        dry_base=s.real(1.75, 1.2),
        dry_allowed_length=s.whole(1, 2),
        dry_sequence_breakers=s.integers(-1, 5, ROWS, 1),
        logit_bias_token_ids=s.integers(-1, vocab, ROWS, 4),
        logit_bias=s.uniform(ROWS, 4).astype(np.float32) - np.float32(0.5),
        temperature=s.real(0, 0.7, 1, 1.4),
        dynatemp_low=s.real(1, 0.5),
        dynatemp_high=s.real(1, 1.5),
        dynatemp_exponent=s.real(1, 2),
        smoothing_factor=s.real(0, 0, 0.2),
        smoothing_curve=s.real(1, 1.5),
        top_k=s.whole(0, -1, 5, 100),
        top_p=s.real(1, 1, 0.9, 0.5),
        min_p=s.real(0, 0, 0.02),
        typical_p=s.real(1, 1, 0.8),
        epsilon_cutoff=s.real(0, 0, 1e-3),
        eta_cutoff=s.real(0, 0, 1e-2),
        top_a=s.real(0, 0, 0.2),
        top_n_sigma=s.real(0, 0, 2),
        tail_free=s.real(1, 1, 0.95),
        top_h=s.real(1, 1, 0.6),
        p_less=s.flags(0.3, ROWS),
        xtc_probability=s.real(0, 0, 0.7),
        xtc_threshold=s.real(0.05, 0.1),
    )


def joint() -> SamplingParams:
    """Returns params whose cuts are among the candidates and far beyond them."""
    s = Stream(3)
    return SamplingParams(
        temperature=s.real(0, 0.6, 1, 1.5, 1e-38),
        top_k=s.whole(0, -1, 40, 64, 65, 1000),
        top_p=s.real(0.1, 0.9, 0.95, 0.999, 1),
        min_p=s.real(0, 0, 1e-4, 0.1),
    )


MASKS = ("bitmask", "suppressed_token_ids")


def only(params: SamplingParams, *names: str) -> SamplingParams:
    return SamplingParams(**{name: getattr(params, name) for name in names})


ORDERS = {
    "default": (js.DEFAULT_ORDER, 300, "float32"),
    "vllm": (js.VLLM_ORDER, 300, "bfloat16"),
    "hf": (js.HF_ORDER, 300, "float16"),
    "llama.cpp": (js.LLAMA_CPP_ORDER, 300, "bfloat16"),
}
RULES = ("temperature", "top_k", "top_p", "min_p")
JOINT = {
    "in order": (RULES, 5003, "float32"),
    "in order, bfloat16": (RULES, 5003, "bfloat16"),
    "jointly": (("temperature", ("min_p", "top_p", "top_k")), 8192, "float16"),
    "temperature last": (("top_k", "top_p", "min_p", "temperature"), 5003, "bfloat16"),
}
"""Cases of temperature, top-k, top-p and min-p: the order, the vocabulary and the dtype."""


def _fields(order: js.Order) -> list[str]:
    from jaxsample import stages

    names = itertools.chain(*((e,) if isinstance(e, str) else e for e in order))
    every = [stages.STAGES[name] for name in names]
    return [*itertools.chain(*((*stage.fields, *stage.optional) for stage in every))]


def _sample(params: SamplingParams, vocab: int, dtype: str, **options: Any) -> Any:
    options = {"num_logprobs": 8, "return_kept": True} | options
    return js.sample(keys(), logits(vocab, dtype), params, **options)


def samples() -> dict[str, Callable[[], Any]]:
    """Returns calls of `sample` by name."""
    cases = {}
    for name, (order, vocab, dtype) in ORDERS.items():
        params = only(every_param(vocab), *_fields(order))
        cases[f"sample, {name}"] = functools.partial(
            _sample, params, vocab, dtype, state=state(vocab), order=order
        )
    for name, (order, vocab, dtype) in JOINT.items():
        cases[f"sample, {name}"] = functools.partial(_sample, joint(), vocab, dtype, order=order)
    for dtype in DTYPES:
        masked = only(every_param(301), "temperature", *MASKS)
        cases[f"sample, masks, {dtype}"] = functools.partial(_sample, masked, 301, dtype)
    raw = only(joint(), "top_p")
    cases["sample, raw"] = functools.partial(
        _sample, raw, 1000, "bfloat16", logprobs_mode="raw_logprobs"
    )
    outputs = {
        "num_logprobs": 0,
        "logprobs_mode": ("processed_logprobs", "raw_logprobs", "scaled_logprobs"),
        "logprob_token_ids": (0, 7, -1, 299, 300),
        "num_kept_ids": 5,
        "return_kept_mass": True,
        "return_entropy": True,
        "return_logits": True,
    }
    order = ("typical_p", "temperature", "xtc", "top_k")
    cut = only(every_param(300), *_fields(order))
    cases["sample, outputs"] = functools.partial(_sample, joint(), 300, "bfloat16", **outputs)
    cases["sample, outputs, cuts first"] = functools.partial(
        _sample, cut, 300, "float32", order=order, **outputs
    )
    return cases


def functions(dtype: str, vocab: int = 300) -> dict[str, Callable[[], Any]]:
    """Returns a call of every public function of logits by name."""
    x, p, q, s, here = logits(vocab, dtype), every_param(vocab), joint(), state(vocab), keys()
    stream = Stream(4)
    token, context = stream.integers(0, vocab, ROWS), stream.integers(-1, 9, ROWS, 3)
    seen, written = s.counts > 0, s.lengths - s.prompt_lengths
    mirostat = js.MirostatParams(tau=stream.real(0, 2, 5), eta=stream.real(0, 0.1, 1))
    surprises = js.MirostatState(stream.real(-1, 0.5, 2, 6, 60))
    adaptive_p = js.AdaptivePParams(target=stream.real(-1, 0, 0.3, 1))
    memory = js.AdaptivePState(stream.real(0, 0.2, 0.9), stream.real(0, 1, 2))
    words = js.packed_bitmask(p.allowed)
    calls = {
        "scaled_logits": (x, q.temperature),
        "entropy_scaled_logits": (x, p.dynatemp_low, p.dynatemp_high, p.dynatemp_exponent),
        "smoothed_logits": (x, p.smoothing_factor, p.smoothing_curve),
        "top_k_logits": (x, q.top_k),
        "top_p_logits": (x, q.top_p),
        "min_p_logits": (x, q.min_p),
        "typical_p_logits": (x, p.typical_p),
        "epsilon_logits": (x, p.epsilon_cutoff),
        "eta_logits": (x, p.eta_cutoff),
        "top_a_logits": (x, p.top_a),
        "top_n_sigma_logits": (x, p.top_n_sigma),
        "tail_free_logits": (x, p.tail_free),
        "top_h_logits": (x, p.top_h),
        "p_less_logits": (x,),
        "xtc_logits": (here, x, p.xtc_probability, p.xtc_threshold),
        "repetition_penalized_logits": (x, seen, p.repetition_penalty),
        "presence_penalized_logits": (x, s.counts, p.presence_penalty),
        "frequency_penalized_logits": (x, s.counts, p.frequency_penalty),
        "dry_penalized_logits": (
            *(x, s.tokens, s.lengths, p.dry_multiplier, p.dry_base),
            *(p.dry_allowed_length, p.dry_sequence_breakers),
        ),
        "no_repeat_ngram_logits": (x, s.tokens, s.lengths, p.no_repeat_ngram_size),
        "biased_logits": (x, p.logit_bias_token_ids, p.logit_bias),
        "allowed_logits": (x, p.allowed),
        "bitmask_logits": (x, p.bitmask),
        "suppressed_logits": (x, p.suppressed_token_ids),
        "bad_words_logits": (x, s.tokens, s.lengths, p.bad_words, p.bad_word_lengths),
        "min_tokens_logits": (x, p.stop_token_ids, written, p.min_tokens),
        "guided_logits": (x, p.unconditional_logits, p.guidance_scale),
        "green_list_logits": (here, x, context),
        "synthid_logits": (here, x, context),
        "greedy_sample": (x,),
        "categorical_sample": (here, x),
        "gumbel_watermark_sample": (here, x, context),
        "mirostat_v1_sample": (here, x, mirostat, surprises),
        "mirostat_v2_sample": (here, x, mirostat, surprises),
        "adaptive_p_sample": (here, x, adaptive_p, memory),
        "token_logprobs": (x, token),
        "token_ranks": (x, token),
        "replay_logprobs": (x, token, words),
    }
    cases = {name: functools.partial(getattr(js, name), *args) for name, args in calls.items()}
    cases["top_logprobs"] = functools.partial(js.top_logprobs, x, num=70)
    return cases


def look_back(vocab: int = 300) -> SamplingParams:
    """Returns params with windows, exempt tokens, biases on sequences and forced tokens."""
    s = Stream(7)
    return SamplingParams(
        penalty_window=s.whole(0, 1, 3, 7),
        exempt_token_ids=s.integers(-1, 5, ROWS, 2),
        sequence_bias_tokens=s.integers(0, 5, ROWS, 4, 3),
        sequence_bias_lengths=s.integers(0, 4, ROWS, 4),
        sequence_bias=2 * s.uniform(ROWS, 4).astype(np.float32) - 1,
        forced_token_id=s.whole(-1, -1, 4, vocab - 1),
    )


def rules() -> dict[str, Callable[[], Any]]:
    """Returns calls with biases on sequences, forced and exempt tokens, and windowed penalties."""
    vocab = 300
    x, p, q, s, here = (
        logits(vocab, "bfloat16"),
        every_param(vocab),
        look_back(),
        state(vocab),
        keys(),
    )
    sequences = (q.sequence_bias_tokens, q.sequence_bias_lengths, q.sequence_bias)
    wanted = ("repetition_penalty", "presence_penalty", "frequency_penalty", "dry_multiplier")
    wanted += ("temperature", "xtc_probability", "xtc_threshold")
    both = {name: getattr(p, name) for name in wanted} | {
        name: value for name, value in vars(q).items() if value is not None
    }
    return {
        "sequence_biased_logits": lambda: js.sequence_biased_logits(
            x, s.tokens, s.lengths, *sequences
        ),
        "forced_logits": lambda: js.forced_logits(x, q.forced_token_id),
        "dry_penalized_logits, exempt": lambda: js.dry_penalized_logits(
            *(x, s.tokens, s.lengths, p.dry_multiplier),
            allowed_length=1,
            exempt_token_ids=q.exempt_token_ids,
        ),
        "process_logits, a window": lambda: js.process_logits(
            x, SamplingParams(**both), s, key=here
        ),
    }


def texts() -> dict[str, Callable[[], Any]]:
    """Returns a call of every public function without logits, and a long draw."""
    stream = Stream(5)
    tokens, length = stream.integers(0, 6, ROWS, 40), stream.integers(0, 41, ROWS)
    seeds = [0, 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    detected = {"width": 3}
    many = jax.random.split(jax.random.key(6), 500)
    text = logits(50_257, "bfloat16")[0]
    return {
        "packed_bitmask": lambda: js.packed_bitmask(every_param(300).allowed),
        "init_state": lambda: state(300),
        "update_state": lambda: js.update_state(state(300), tokens[:, 0], length % 2 == 0),
        "reset_rows": lambda: js.reset_rows(
            state(300), np.array([3, -1]), tokens[:2, :9], length[:2]
        ),
        "init_mirostat": lambda: js.init_mirostat(js.MirostatParams(tau=3.3), (2,)),
        "init_adaptive_p": lambda: js.init_adaptive_p(js.AdaptivePParams(target=0.3), (2,)),
        "last_tokens": lambda: js.last_tokens(tokens, length, **detected),
        "context_repeated": lambda: js.context_repeated(tokens, length, **detected),
        "detect_green_list": lambda: js.detect_green_list(keys()[0], tokens, length, **detected),
        "detect_synthid": lambda: js.detect_synthid(keys()[0], tokens, length, **detected),
        "detect_gumbel": lambda: js.detect_gumbel(keys()[0], tokens, length, **detected),
        "request_keys": lambda: jax.random.key_data(js.request_keys(seeds, np.arange(6))),
        "seed_words": lambda: js.seed_words(seeds),
        "categorical_sample, 500 keys": lambda: js.categorical_sample(
            many, jnp.broadcast_to(text, (500, text.size))
        ),
    }


def speculation() -> dict[str, Callable[[], Any]]:
    """Returns calls of the functions for drafts, on four rows with two drafts each."""
    batch, positions, vocab = 4, 3, 300
    x = logits(vocab, "float32").reshape(positions, batch, vocab).swapaxes(0, 1)
    here = keys().reshape(batch, positions)
    wanted = ("temperature", "top_p", "frequency_penalty", "repetition_penalty", "dry_multiplier")
    params, start = jax.tree.map(lambda a: a[:batch], (every_param(vocab), state(vocab)))
    params = only(params, *wanted)
    drawn = js.categorical_sample(here, x)
    given = (x, drawn[:, :-1])
    rejected = (here[:, 0], *given, x[:, :-1], params, start)
    return {
        "process_logits": lambda: js.process_logits(x[:, 0], params, start),
        "nearest_draws": lambda: js.nearest_draws(keys(), logits(vocab, "bfloat16"), num=40),
        "accept_drafts": lambda: js.accept_drafts(drawn, drawn[:, :-1].at[0, 1].add(1)),
        "speculative_sample": lambda: js.speculative_sample(here, *given, params, start),
        "speculative_sample, a tree": lambda: js.speculative_sample(
            here[:, :2], *given, params, start, parents=np.array([-1, -1])
        ),
        "rejection_sample": lambda: js.rejection_sample(*rejected),
        "rejection_sample, block": lambda: js.rejection_sample(*rejected, method="block"),
    }


def beams() -> dict[str, Callable[[], Any]]:
    """Returns steps of three searches with four beams each, in two groups or stochastic."""
    parents = Stream(6).integers(0, 4, 3, 4)
    x = logits(300, "float32").reshape(3, 4, 300)
    settings = {
        "stop_token_ids": np.array([150, -1]),
        "length_penalty": np.array([-1, 0, 0.7], np.float32),
        "diversity_penalty": np.array([0, 0.5, 2], np.float32),
    }
    start = js.init_beams(4, 4, (3,), num_groups=2)

    @functools.cache
    def searched() -> tuple[Any, ...]:
        state, found = start, []
        for shift in range(3):
            step = js.beam_step(state, np.roll(x, 50 * shift, axis=-1), **settings)
            state = step[0]
            found.append(step)
        return tuple(found)

    def drawn() -> list[Any]:
        state, found = js.init_stochastic_beams(4, 4, (3,)), []
        for position in range(3):
            shifted = np.roll(x, 50 * position, axis=-1)
            key = jax.random.key(position)
            step = js.stochastic_beam_step(key, state, shifted, stop_token_ids=[150])
            state = step[0]
            found.append(step)
        return found

    return {
        "init_beams": lambda: start,
        "beam_step": searched,
        "finalize_beams": lambda: js.finalize_beams(searched()[-1][0], num_return=4),
        "take_beams": lambda: js.take_beams(x, parents),
        "init_stochastic_beams": lambda: js.init_stochastic_beams(4, 4, (3,)),
        "stochastic_beam_step": drawn,
    }


def several() -> dict[str, Callable[[], Any]]:
    """Returns calls of the functions for several tokens or texts per row."""
    stream = Stream(6)
    x = np.concatenate([logits(300, dtype).astype(np.float32) for dtype in DTYPES])
    logprobs = -10 * stream.uniform(ROWS, 5, LENGTH).astype(np.float32)
    lengths = stream.integers(0, LENGTH + 1, ROWS, 5)
    return {
        "without_replacement_sample": lambda: js.without_replacement_sample(
            jax.random.key(7), x, num=40
        ),
        "best_of": lambda: js.best_of(logprobs, lengths, num=4),
    }


GROUPS = {
    "beams": beams,
    "samples": samples,
    "speculation": speculation,
    "several": several,
    **{f"functions-{dtype}": functools.partial(functions, dtype) for dtype in DTYPES[:2]},
    "rules": rules,
    "texts": texts,
}
"""The functions that make the cases of each group, by the name of its file."""


def results(result: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of a result by their path; masks of the logits as bits."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(result):
        array = np.asarray(leaf)
        if array.dtype not in (np.float32, np.float64) and array.dtype.kind not in "iub":
            array = array.view(np.int16)  # NumPy files have no bfloat16
        arrays[jax.tree_util.keystr(path)] = array
    return arrays


def main(groups: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for group in groups or GROUPS:
        arrays = {
            f"{name}/{place}": array
            for name, case in GROUPS[group]().items()
            for place, array in results(case()).items()
        }
        np.savez_compressed(FOLDER / f"{group}.npz", **arrays)
        print(f"{group}: {len(arrays)} arrays")


if __name__ == "__main__":
    main(sys.argv[1:])
