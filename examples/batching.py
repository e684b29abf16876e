"""Continuous batching: requests enter and leave fixed slots without recompilation.

When a row finishes, its slot is assigned to the next request while the other rows continue. The
text of a request does not depend on its slot, its neighbours or the order of arrival: the key of
each draw is derived from the request's seed and the position in its text, and `sample` computes
each row independently. The model must do so too, bit for bit. Since a matrix product may round
differently for a different number of rows, the batch always has `SLOTS` rows, and prompts are read
one at a time.
"""

import collections
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from model import END, Cache, Config, Weights, decode_step, prefill

from jaxsample import (
    DEFAULT_ORDER,
    Order,
    SamplerState,
    SamplingParams,
    StopReason,
    init_state,
    request_keys,
    reset_rows,
    sample,
    stop_reason,
    update_state,
)

SLOTS = 4

REASONS = {
    StopReason.STOP_TOKEN: "stop",
    StopReason.LENGTH: "length",
    StopReason.BAD_ROW: "error: the logits are not finite",
}

TRACES: collections.Counter[str] = collections.Counter()
"""How often each compiled function was traced: its Python code runs only then."""


class Job(NamedTuple):
    """A request as arrays for a slot. All jobs of a run have the same shapes.

    Attributes:
      prompt: int32 [context], padded.
      length: int32 [], the number of tokens in the prompt.
      max_tokens: int32 [].
      seed: uint32 [2], the words of `seed_words`.
      params: traced; only the set of fields that are None is static.
      script: int32 [context], optional: a text to write again without the sampler.
    """

    prompt: ArrayLike
    length: ArrayLike
    max_tokens: ArrayLike
    seed: ArrayLike
    params: SamplingParams
    script: ArrayLike | None = None


class Slots(NamedTuple):
    """All device arrays except the weights, each with a leading axis of SLOTS.

    Attributes:
      jobs: the request of each slot; an empty slot keeps its last one.
      state: the texts.
      logprobs: float32 [SLOTS, context], of the token at each position.
      newest: int32 [SLOTS], the last drawn token.
      reason: int32 [SLOTS], why the text ended, a `StopReason`.
      active: bool [SLOTS], rows that are still writing.
      logits: float32 [SLOTS, vocab], of the next token.
      cache: keys and values of the texts.
    """

    jobs: Job
    state: SamplerState
    logprobs: Array
    newest: Array
    reason: Array
    active: Array
    logits: Array
    cache: Cache


class Text(NamedTuple):
    """The text that was written for a job.

    Attributes:
      tokens: int32 [n], including an end-of-text.
      logprobs: float32 [n], of each token under the sampled distribution.
      reason: why the text ended: "stop", "length" or an error.
      slot: the slot that wrote it.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    reason: str
    slot: int


def empty(weights: Weights, config: Config, job: Job) -> Slots:
    """Returns inactive slots for jobs with the shapes of `job`."""

    def blank(x: Any) -> Array:
        return jnp.zeros((SLOTS, *x.shape), x.dtype)

    like = jax.eval_shape(lambda: (job, *prefill(weights, jnp.asarray(job.prompt), job.length)))
    jobs, logits, cache = jax.tree.map(blank, like)
    return Slots(
        jobs=jobs,
        state=init_state(jobs.prompt, 0, config.vocab, config.context),
        logprobs=jnp.zeros((SLOTS, config.context)),
        newest=jnp.zeros(SLOTS, jnp.int32),
        reason=jnp.zeros(SLOTS, jnp.int32),
        active=jnp.zeros(SLOTS, bool),
        logits=logits,
        cache=cache,
    )


@functools.partial(jax.jit, donate_argnames="slots")
def admit(weights: Weights, slots: Slots, slot: ArrayLike, job: Job) -> Slots:
    """Reads a job's prompt and assigns it to a slot; other slots do not change.

    Each prompt is padded to the whole context, so all prompts share one compilation.
    """
    TRACES["admit"] += 1

    def put(old: Any, new: Any) -> Any:
        return jax.tree.map(lambda x, row: x.at[slot].set(row), old, new)

    rows = jnp.asarray(slot)[None]
    logits, cache = prefill(weights, job.prompt, job.length)
    return slots._replace(
        jobs=put(slots.jobs, job),
        state=reset_rows(slots.state, rows, job.prompt[None], job.length[None]),
        active=put(slots.active, True),
        logits=put(slots.logits, logits),
        cache=put(slots.cache, cache),
    )


def step(weights: Weights, slots: Slots, order: Order = DEFAULT_ORDER) -> Slots:
    """Writes a token in each active row."""
    jobs, state = slots.jobs, slots.state
    if jobs.script is None:
        keys = request_keys(jobs.seed, state.lengths)
        drawn = sample(keys, slots.logits, jobs.params, state, order=order)
        tokens, logprobs = drawn.tokens, drawn.logprobs
    else:
        tokens = jnp.take_along_axis(jobs.script, state.lengths[:, None], axis=1)[:, 0]
        logprobs = jnp.take_along_axis(slots.logits, tokens[:, None], axis=1)[:, 0]
    # A stopped row may be at the end of the context, where writes are dropped.
    logits, cache = decode_step(weights, slots.cache, tokens, state.lengths)
    after = update_state(state, tokens, slots.active)
    reason = stop_reason(after, tokens, stop_token_ids=[END], max_tokens=jobs.max_tokens)
    return Slots(
        jobs=jobs,
        state=after,
        logprobs=slots.logprobs.at[jnp.arange(SLOTS), state.lengths].set(logprobs),
        newest=jnp.where(slots.active, tokens, slots.newest),
        reason=jnp.where(slots.active, reason, slots.reason),
        active=slots.active & (reason == StopReason.NONE),
        logits=logits,
        cache=cache,
    )


@functools.partial(jax.jit, donate_argnames="slots", static_argnames="order")
def write(weights: Weights, slots: Slots, *, order: Order = DEFAULT_ORDER) -> Slots:
    """Writes tokens until a row stops. At least one row must be active."""
    TRACES["write"] += 1

    def none_stopped(now: Slots) -> Array:
        return jnp.all(now.active == slots.active)

    return lax.while_loop(none_stopped, lambda now: step(weights, now, order), slots)


def text_in(slots: Slots, slot: int) -> Text:
    """Returns the text in a slot."""
    begin, end = int(slots.state.prompt_lengths[slot]), int(slots.state.lengths[slot])
    return Text(
        tokens=np.asarray(slots.state.tokens[slot])[begin:end],
        logprobs=np.asarray(slots.logprobs[slot])[begin:end],
        reason=REASONS[StopReason(int(slots.reason[slot]))],
        slot=slot,
    )


def serve(
    weights: Weights, config: Config, jobs: Sequence[Job], order: Order = DEFAULT_ORDER
) -> tuple[list[Text], np.ndarray]:
    """Returns the texts of any number of jobs, and the seconds [2] of reading and writing."""
    slots, seconds = empty(weights, config, jobs[0]), np.zeros(2)
    waiting, serving, texts = collections.deque(range(len(jobs))), {}, {}
    while waiting or serving:
        for slot in range(SLOTS):
            if waiting and slot not in serving:
                serving[slot] = waiting.popleft()
                slots, spent = timed(admit, weights, slots, slot, jobs[serving[slot]])
                seconds[0] += spent
        slots, spent = timed(write, weights, slots, order=order)
        seconds[1] += spent
        active = np.array(slots.active)
        for slot in [slot for slot in serving if not active[slot]]:
            texts[serving.pop(slot)] = text_in(slots, slot)
    return [texts[i] for i in range(len(jobs))], seconds


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """Returns the result of a call, when it is ready, and the seconds it took."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*args, **kwargs))
    return result, time.perf_counter() - began
