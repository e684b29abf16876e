"""Benchmarks on logits of a real model: `python -m bench.model`.

The model of the examples reads the source files of jaxsample, which are not part of its training
data. The tables contain the number of tokens in a nucleus, and the time of top-p on these rows, on
peaked rows and on flat rows.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tokenizers import Tokenizer

import jaxsample
from bench import logits, markdown, report, requests
from bench.baselines import argmax
from bench.report import digits
from bench.timing import measure
from bench.works import Work
from examples.model import Config, forward, load
from jaxsample import SamplingParams, sample

MODEL = Path(__file__).parents[1] / "examples" / "weights"
BATCHES = (8, 32, 128)
SETTINGS = ((1.0, 0.95), (0.8, 0.95), (0.6, 0.9))
"""Temperatures and values of top-p."""

ROWS = 2048


def main() -> None:
    """Prints the sizes of the nuclei, then the times."""
    parser = argparse.ArgumentParser("python -m bench.model", description=__doc__)
    parser.add_argument("--repeats", type=int, default=100, help="maximum calls of each function")
    repeats = parser.parse_args().repeats
    rows = model_logits(ROWS)
    print(report.headline(rules=True).splitlines()[0])
    print(f"\n{sizes(rows)}\n\n{times(rows, repeats)}")


def model_logits(number: int) -> Array:
    """Returns logits `[number, 4096]` at random positions of the text, float32."""
    config = Config(**json.loads((MODEL / "config.json").read_text())["sizes"])
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    weights = load(MODEL / "weights.npz", config)
    files = sorted(Path(jaxsample.__file__).parent.rglob("*.py"))
    texts = [tokenizer.encode(file.read_text()).ids[: config.context] for file in files]
    full = jnp.array([ids for ids in texts if len(ids) == config.context])
    rows = np.concatenate([jax.jit(forward)(weights, ids[None])[0] for ids in full])
    return jnp.asarray(np.random.default_rng(logits.SEED).permutation(rows)[:number])


def sizes(rows: Array) -> str:
    """Returns a table of the number of tokens in the nuclei."""
    keys, lines = requests.keys(len(rows)), []
    for temperature, p in SETTINGS:
        params = SamplingParams(temperature=temperature, top_p=p)
        kept = np.asarray(sample(keys, rows, params).num_kept)
        beyond = f"{100 * np.mean(kept > 64):.0f}%"
        lines.append((f"T {temperature}, top-p {p}", digits(float(np.median(kept))), beyond))
    return markdown.table(["", "median tokens", "rows beyond 64"], lines)


def times(rows: Array, repeats: int) -> str:
    """Returns a table of the milliseconds of top-p at temperature 1."""
    lines = []
    for batch in BATCHES:
        case = batch, rows.shape[1], "float32"
        kinds = {
            "model": rows[:batch],
            "peaked": logits.peaked(*case),
            "flat": logits.flat(*case),
        }
        keys, params = requests.keys(batch), SamplingParams(top_p=jnp.full(batch, 0.95))
        works = {name: Work(sample, (keys, x, params)) for name, x in kinds.items()}
        works["jnp.argmax"] = Work(argmax, (rows[:batch],))
        timings = measure(works, repeats, f"{batch} rows")
        lines.append((str(batch), *(digits(timings[name].median) for name in works)))
    return markdown.table(["rows", "the model's", "all peaked", "all flat", "jnp.argmax"], lines)


if __name__ == "__main__":
    main()
