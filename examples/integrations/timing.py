"""Times a code base's own sampler and its adapter, per token, in the loop of the code base.

    python examples/integrations/timing.py tunix top_p

The loops write four texts with a tiny model with 128,256 tokens, whose logits are divided by a
temperature that gives them a standard deviation of about 3. The two loops alternate, and medians
are printed.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("DECOUPLE_GCLOUD", "TRUE")  # of MaxText
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import numpy as np

from jaxsample import SamplingParams

VOCAB, ROWS, STEPS, REPEATS = 128_256, 4, 16, 7
SEEDS = [1, 2, 3, 4]
RULES = {"top_p": 0.9, "top_k": 50}


def params_of(temperature, rule):
    """Returns the params of all rows."""
    request = {"temperature": temperature, rule: RULES[rule]}
    return SamplingParams.from_requests([request] * ROWS, rules=("temperature", rule))


def keras_hub(rule):
    """Returns the loop of KerasHub with its own sampler, and with the adapter."""
    import keras_hub
    from keras_hub_sampler import JaxSampler, tiny_llama

    temperature = 0.4
    ids = np.pad([[5, 6, 7]] * ROWS, [(0, 0), (0, STEPS)])
    inputs = {"token_ids": ids, "padding_mask": ids > 0}

    def loop(sampler):
        model = tiny_llama(VOCAB)
        model.compile(sampler=sampler)
        return lambda: model.generate(inputs, stop_token_ids=None)

    if rule == "top_p":
        own = keras_hub.samplers.TopPSampler(p=RULES[rule], temperature=temperature)
    else:
        own = keras_hub.samplers.TopKSampler(k=RULES[rule], temperature=temperature)
    return loop(own), loop(JaxSampler(params_of(temperature, rule), SEEDS, bad_token=1))


def tunix(rule):
    """Returns the loop of Tunix with its own sampler, and with the adapter."""
    from tunix.generate.sampler import Sampler
    from tunix_sampler import CACHE, JaxSampler, Numbers, tiny_llama

    temperature = 0.013
    model, prompts, params = tiny_llama(VOCAB), ["5 6 7"] * ROWS, params_of(temperature, rule)
    own, adapter = (x(model, Numbers(), CACHE) for x in (Sampler, JaxSampler))
    options = {"temperature": temperature, "seed": 0, "top_p": 1.0, rule: RULES[rule]}
    return (
        lambda: own(prompts, STEPS, **options),
        lambda: adapter(prompts, STEPS, params, SEEDS),
    )


def gemma(rule):
    """Returns the loop of Gemma with its own sampler, and with the adapter."""
    from gemma import gm
    from gemma_sampler import SIZES, JaxSampler, Numbers, tiny_gemma

    temperature = 0.013
    model, weights = tiny_gemma(VOCAB)
    settings = {"model": model, "params": weights, "tokenizer": Numbers(), **SIZES}
    if rule == "top_p":
        method = gm.text.TopPSampling(p=RULES[rule], temperature=temperature)
    else:
        method = gm.text.TopkSampling(k=RULES[rule], temperature=temperature)
    own, adapter = gm.text.Sampler(sampling=method, **settings), JaxSampler(**settings)
    prompts, params = ["5 6 7"] * ROWS, params_of(temperature, rule)
    return (
        lambda: own.sample(prompts, max_new_tokens=STEPS, rng=0),
        lambda: adapter.sample(prompts, params, SEEDS, max_new_tokens=STEPS),
    )


def levanter(rule):
    """Returns the loop of Levanter with its own sampler, and with the adapter."""
    import dataclasses

    from levanter.inference.engine import InferenceEngine
    from levanter_sampler import SIZES, JaxEngine, request, tiny_llama

    if rule != "top_p":
        raise SystemExit("Levanter has top_p alone")
    temperature = 0.33
    model = tiny_llama(VOCAB)
    engines = (InferenceEngine, JaxEngine)
    own, adapter = (x.from_model_with_config(model, None, SIZES) for x in engines)
    asked = [request(place, [5, 6, 7], STEPS, stop_token=1) for place in range(ROWS)]
    own_params = {"temperature": np.float32(temperature), "top_p": np.float32(RULES[rule])}
    with_rule = [
        dataclasses.replace(x, decode_params=dataclasses.replace(x.decode_params, **own_params))
        for x in asked
    ]
    params = params_of(temperature, rule)
    return (
        lambda: own.generate(with_rule),
        lambda: adapter.generate(asked, params, SEEDS, bad_token=1),
    )


def maxtext(rule):
    """Returns the loop of MaxText with its own sampler, and with the adapter."""
    from maxtext.inference.maxengine.maxengine import MaxEngine
    from maxtext_sampler import JaxEngine, decoded, tiny_config

    temperature = 0.33
    config = tiny_config(
        vocab_size=VOCAB,
        decode_sampling_strategy={"top_p": "nucleus", "top_k": "topk"}[rule],
        decode_sampling_nucleus_p=RULES["top_p"],
        decode_sampling_top_k=RULES["top_k"],
        decode_sampling_temperature=temperature,
    )
    own, adapter = MaxEngine(config), JaxEngine(config, ("temperature", rule), bad_token=1)
    own.load_params(jax.random.key(0))
    weights = adapter.load_params(jax.random.key(0))
    params = jax.tree.map(lambda x: x[:1], params_of(temperature, rule))
    rows = [{"sampling_params": params, "seed": seed} for seed in SEEDS]
    prompts = [[5, 6, 7]] * ROWS
    return (
        lambda: decoded(own, weights, prompts, STEPS),
        lambda: decoded(adapter, weights, prompts, STEPS, rows),
    )


CLIENTS = {f.__name__: f for f in (keras_hub, tunix, gemma, levanter, maxtext)}


def seconds(loop):
    """Returns the seconds that a loop takes."""
    start = time.perf_counter()
    jax.block_until_ready(loop())
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("rule", choices=RULES)
    options = parser.parse_args()
    loops = CLIENTS[options.client](options.rule)
    first = []
    for loop in loops:
        jax.clear_caches()
        first.append(seconds(loop))
    for loop in loops:
        loop()  # recompiles the programs that clear_caches removed
    times = np.array([[seconds(loop) for loop in loops] for _ in range(REPEATS)])
    own, adapter = (1000 * statistics.median(x) / STEPS for x in times.T)
    ratio = statistics.median(times[:, 0] / times[:, 1])
    print(f"per token: own {own:.1f} ms, adapter {adapter:.1f} ms, ratio {ratio:.1f}")
    print("first call: own {:.1f} s, adapter {:.1f} s".format(*first))


if __name__ == "__main__":
    main()
