"""Acceptance rates of the draft methods by the distance between the two models.

    python -m bench.acceptance

Prints the table of docs/guides/speculation.md. Each rate is that of one draft after a text,
proposed by a draft model whose logits are those of the target plus noise. Keys are fixed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsample import (
    SamplingParams,
    categorical_sample,
    greedy_sample,
    nearest_draws,
    process_logits,
    rejection_sample,
)

VOCAB, DRAWS, BATCH = 32_000, 2_000, 250
PAIRS = {
    "peaked, top-p .95": (6.0, SamplingParams(top_p=0.95)),
    "mid, top-k 50": (3.0, SamplingParams(top_k=50)),
    "flat": (1.0, SamplingParams()),
}
"""The standard deviation of the target's logits and the rules of both models, by name."""
NOISE = (0.25, 0.5, 1.0)


@jax.jit
def acceptance(target: Array, draft: Array) -> dict[str, Array]:
    """Returns the share of accepted drafts of each method."""

    def one(seed: Array) -> dict[str, Array]:
        key, other = (jax.random.fold_in(jax.random.key(of), seed) for of in range(2))
        token, near = categorical_sample(key, target), nearest_draws(key, draft, num=4)
        own = categorical_sample(other, draft)
        rows = jnp.stack([target, target])
        out = rejection_sample(key, rows, own[None], draft[None], SamplingParams())
        return {
            "rejection": out.num_accepted > 0,
            "coupled": near[0] == token,
            "coupled, 2": jnp.any(near[:2] == token),
            "coupled, 4": jnp.any(near == token),
            "argmax": greedy_sample(draft) == token,
            "own keys": own == token,
        }

    hits = jax.lax.map(one, jnp.arange(DRAWS, dtype=jnp.int32), batch_size=BATCH)
    return jax.tree.map(jnp.mean, hits)


METHODS = ("rejection", "coupled", "coupled, 2", "coupled, 4", "argmax", "own keys")


def main() -> None:
    """Prints a row for each pair of models."""
    rng = np.random.default_rng(0)
    print("| " + " | ".join(["target", "noise", "1 - TV", *METHODS]) + " |")
    print("|" + "---|" * (3 + len(METHODS)))
    for name, (scale, params) in PAIRS.items():
        logits = rng.normal(size=VOCAB).astype(np.float32) * scale
        for noise in NOISE:
            other = logits + rng.normal(size=VOCAB).astype(np.float32) * noise
            target, draft = (process_logits(of, params) for of in (logits, other))
            p, q = jax.nn.softmax(target), jax.nn.softmax(draft)
            shares = acceptance(target, draft)
            cells = [jnp.sum(jnp.minimum(p, q)), *(shares[method] for method in METHODS)]
            print(f"| {name} | {noise} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
