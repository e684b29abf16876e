"""The performance bars of the library and the measured values."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bench import logits, requests
from bench.baselines import argmax, sort_stack, top_k_64
from bench.sizes import Sizes
from bench.timing import Timing, compile_seconds, measure
from bench.works import Work
from jaxsample import (
    SampleOutput,
    SamplerState,
    SamplingParams,
    TopLogprobs,
    WithoutReplacement,
    categorical_sample,
    greedy_sample,
    sample,
    top_logprobs,
    top_p_logits,
    without_replacement_sample,
)


class Line(NamedTuple):
    """A measured value, the bar that it must reach, and the stretch goal."""

    work: str
    value: float
    unit: str
    bar: float
    stretch: float

    @property
    def verdict(self) -> str:
        """Compares the value with both goals; larger is better if the stretch is above the bar."""
        sign = 1 if self.stretch > self.bar else -1
        if sign * self.value >= sign * self.stretch:
            return "stretch"
        return "bar" if sign * self.value >= sign * self.bar else "missed"


def bars(sizes: Sizes) -> tuple[list[Line], dict[str, Timing]]:
    """Returns the lines and the timings from which they are computed."""
    timings: dict[str, Timing] = {}
    for works in (_float32, _bfloat16, _vocabularies, _one_row):
        label = f"bars,{works.__name__.replace('_', ' ')}"
        timings |= measure(works(sizes), sizes.repeats, label)
    return lines(timings, _compile_seconds(sizes), sizes), timings


def lines(timings: Mapping[str, Timing], seconds: float, sizes: Sizes) -> list[Line]:
    """Returns the lines for measured times and for the compile time of `every_stage`."""

    def ratio(over: str, under: str) -> float:
        return timings[over].median / timings[under].median

    def part(work: str, bar: float, stretch: float, base: str = "jnp.argmax") -> Line:
        return Line(work, ratio(work, base), f"of {base}", bar, stretch)

    def faster(work: str, base: str, bar: float, stretch: float) -> Line:
        return Line(work, ratio(base, work), f"times as fast as {base}", bar, stretch)

    def per_token(vocab: int) -> Line:
        even = sizes.even_vocab
        value = ratio(_at(vocab), _at(even)) * even / vocab
        return Line(_at(vocab), value, f"of V = {even}, per token", 1.3, 1.1)

    return [
        part("greedy", 0.12, 0.08),
        faster("categorical", "random.categorical", 60, 100),
        part("without replacement, 8", 2, 1.5, "categorical"),
        *map(per_token, sizes.odd_vocabs),
        faster("sample, top-k 64, bfloat16", "lax.top_k, bfloat16", 60, 100),
        faster("top_logprobs, 64, bfloat16", "lax.top_k, bfloat16", 60, 100),
        faster("joint", "sort stack", 300, 450),
        part("top_p_logits, peaked rows", 0.8, 0.5),
        part("top_p_logits, flat rows", 4, 2.5, "jnp.argmax, flat rows"),
        part("sample, top-p, flat rows", 4, 2.5, "jnp.argmax, flat rows"),
        part("top_p_logits, half the rows flat", 3, 1.5, "jnp.argmax, half the rows flat"),
        part("sample, top-p, half the rows flat", 3, 1.5, "jnp.argmax, half the rows flat"),
        part("joint, one row", 0.4, 0.2, "jnp.argmax, one row"),
        part("joint, vmap over rows", 1.2, 1.05, "joint"),
        part("full call", 1.5, 0.8),
        Line("compiling every stage", seconds, "seconds", 5, 2),
    ]


def full_call(keys: Array, x: Array, params: SamplingParams, state: SamplerState) -> SampleOutput:
    """A bias, a mask, penalties, the joint rules, and the 20 largest log-probs."""
    return sample(keys, x, params, state, num_logprobs=20)


def every_stage(keys: Array, x: Array, params: SamplingParams, state: SamplerState) -> SampleOutput:
    """All fields of the params and all outputs of `sample`."""
    return sample(keys, x, params, state, num_logprobs=20, return_kept=True)


_over_rows = jax.vmap(sample)


def _likeliest_64(x: Array) -> TopLogprobs:
    return top_logprobs(x, num=64)


def _eight_tokens(keys: Array, x: Array) -> WithoutReplacement:
    return without_replacement_sample(keys, x, num=8)


def _float32(sizes: Sizes) -> dict[str, Work]:
    shape = (sizes.batch, sizes.vocab)
    peaked, flat, mixed = (
        kind(*shape, "float32") for kind in (logits.peaked, logits.flat, logits.mixed)
    )
    key, keys, joint = jax.random.key(0), requests.keys(sizes.batch), _joint(sizes.batch)
    p = jnp.full(sizes.batch, 0.95)
    top_p = SamplingParams(top_p=p)
    values = (jnp.full(sizes.batch, value) for value in requests.JOINT)
    return {
        "greedy": Work(greedy_sample, (peaked,)),
        "categorical": Work(categorical_sample, (keys, peaked)),
        "without replacement, 8": Work(_eight_tokens, (keys, peaked)),
        "joint": Work(sample, (keys, peaked, joint)),
        "joint, vmap over rows": Work(_over_rows, (keys, peaked, joint)),
        "top_p_logits, peaked rows": Work(top_p_logits, (peaked, p)),
        "top_p_logits, flat rows": Work(top_p_logits, (flat, p)),
        "top_p_logits, half the rows flat": Work(top_p_logits, (mixed, p)),
        "sample, top-p, flat rows": Work(sample, (keys, flat, top_p)),
        "sample, top-p, half the rows flat": Work(sample, (keys, mixed, top_p)),
        "full call": Work(full_call, (keys, peaked, requests.full(*shape), requests.state(*shape))),
        "jnp.argmax": Work(argmax, (peaked,)),
        "jnp.argmax, flat rows": Work(argmax, (flat,)),
        "jnp.argmax, half the rows flat": Work(argmax, (mixed,)),
        "random.categorical": Work(jax.random.categorical, (key, peaked)),
        "sort stack": Work(sort_stack, (key, peaked, *values)),
    }


def _bfloat16(sizes: Sizes) -> dict[str, Work]:
    x = logits.peaked(sizes.batch, sizes.vocab, "bfloat16")
    params = SamplingParams(top_k=jnp.full(sizes.batch, 64))
    return {
        "sample, top-k 64, bfloat16": Work(sample, (requests.keys(sizes.batch), x, params)),
        "top_logprobs, 64, bfloat16": Work(_likeliest_64, (x,)),
        "lax.top_k, bfloat16": Work(top_k_64, (x,)),
    }


def _vocabularies(sizes: Sizes) -> dict[str, Work]:
    params = SamplingParams(temperature=jnp.full(sizes.batch, 0.7))
    keys = requests.keys(sizes.batch)
    return {
        _at(vocab): Work(sample, (keys, logits.peaked(sizes.batch, vocab, "float32"), params))
        for vocab in (*sizes.odd_vocabs, sizes.even_vocab)
    }


def _one_row(sizes: Sizes) -> dict[str, Work]:
    x = logits.peaked(1, sizes.vocab, "float32")
    return {
        "joint, one row": Work(sample, (requests.keys(1), x, _joint(1))),
        "jnp.argmax, one row": Work(argmax, (x,)),
    }


def _compile_seconds(sizes: Sizes) -> float:
    shape = (sizes.batch, sizes.vocab)

    def arguments() -> Any:
        x = jnp.zeros(shape)
        return requests.keys(sizes.batch), x, requests.every_stage(*shape), requests.state(*shape)

    return compile_seconds(every_stage, jax.eval_shape(arguments), sizes.compilations)


def _joint(batch: int) -> SamplingParams:
    return requests.joint(batch, *requests.JOINT)


def _at(vocab: int) -> str:
    return f"categorical, T .7, V = {vocab}"
