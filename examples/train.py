r"""Trains the example model: a tokenizer and a small transformer on Python's own standard library.

The text is the source of the running interpreter's standard library, so nothing is downloaded.
The default run takes about a quarter of an hour on two CPU cores:

    python examples/train.py --out examples/weights

Train a draft model for `speculative.py`, with the same tokenizer and fewer weights, by

    python examples/train.py --out examples/weights/draft --width 96 --layers 2 --hidden 256 \
        --tokenizer examples/weights/tokenizer.json --steps 3000 --minutes 14
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import platform
import re
import sysconfig
import time
from pathlib import Path

import jax
import numpy as np
import optax
import optax.contrib
from model import END, HEAD_DIM, Config, Weights, forward, init, load, save
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

SEED = 0
VOCAB = 4096
BATCH = 8
# Tests and tables are a large part of the library, but not typical code.
LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}

# In the same time Muon trains the matrices further than Adam, which trains the embedding.
OPTIMIZER = optax.contrib.muon(
    learning_rate=0.02,
    adam_learning_rate=0.015,
    adam_b2=0.98,
    muon_weight_dimension_numbers={
        "embedding": None,
        "layers": optax.contrib.MuonDimensionNumbers(),
    },
)


def source_files() -> list[Path]:
    """Returns the standard library's modules in a shuffled but fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.rglob("*.py") if LEFT_OUT.isdisjoint(p.parts))
    np.random.default_rng(SEED).shuffle(files)
    return files


def read_documents(files: list[Path]) -> list[str]:
    """Splits the files into documents that begin and end at the top level of a file.

    A whole file rarely fits the model's context. Splitting it before about half of its top-level
    definitions gives documents of one or more definitions that do fit, so that the model learns how
    a text starts and ends.
    """
    rng = np.random.default_rng(SEED)
    documents = []
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        start = 0
        for boundary in re.finditer(r"\n\n(?=@|class |def |async def )", text):
            if rng.random() < 0.5:
                documents.append(text[start : boundary.start()])
                start = boundary.end()
        documents.append(text[start:])
    return [document.strip() + "\n" for document in documents if document.strip()]


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """Trains a byte-level BPE tokenizer in which a space belongs to the word before it.

    Code prompts often end after a space ("def ", "return ") and seldom before one. With this rule,
    such a prompt is split into the same tokens as the training text.
    """
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r"\w+ ?|[^\w\s]+ ?|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],  # Special tokens come first, so this one is END.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """Returns all tokens, int32 [length], with an end-of-text before and after each document."""
    stream = [END]
    for encoding in tokenizer.encode_batch(documents):
        stream += encoding.ids
        stream.append(END)
    return np.array(stream, np.int32)


def draw_batch(rng: np.random.Generator, stream: np.ndarray, length: int) -> np.ndarray:
    """Returns windows [BATCH, length + 1]; half start with a document, half anywhere."""
    last = len(stream) - length - 1
    starts = rng.integers(last, size=BATCH)
    heads = np.flatnonzero(stream[:last] == END)
    starts[::2] = rng.choice(heads, BATCH // 2)
    return stream[starts[:, None] + np.arange(length + 1)]


@jax.jit
def mean_loss(weights: Weights, windows: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of windows [rows, length + 1], in nats per token."""
    logits = forward(weights, windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


@functools.partial(jax.jit, donate_argnums=(0, 1))
def train_step(
    weights: Weights, state: optax.OptState, windows: jax.Array, pace: jax.Array
) -> tuple[Weights, optax.OptState, jax.Array]:
    """Takes an optimizer step, with learning rates scaled by `pace`; returns the loss before it."""
    loss, gradients = jax.value_and_grad(mean_loss)(weights, windows)
    updates, state = OPTIMIZER.update(gradients, state, weights)
    updates = jax.tree.map(lambda update: pace * update, updates)
    return optax.apply_updates(weights, updates), state, loss


def train(config: Config, stream: np.ndarray, steps: int, minutes: float) -> Weights:
    """Trains from scratch for `steps` steps, or until `minutes` have passed."""
    rng = np.random.default_rng(SEED)
    weights = init(jax.random.key(SEED), config)
    state = OPTIMIZER.init(weights)
    began = time.monotonic()
    with tqdm(range(steps), "training", unit="step") as bar:
        for step in bar:
            progress = max(step / steps, (time.monotonic() - began) / (60 * minutes))
            if progress >= 1:
                break
            # A short linear warm-up, then a linear decay to zero.
            pace = min(progress / 0.05, (1 - progress) / 0.95)
            windows = draw_batch(rng, stream, config.context)
            weights, state, loss = train_step(weights, state, windows, pace)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    return weights


def held_out_loss(weights: Weights, stream: np.ndarray, length: int) -> float:
    """Returns the mean loss, in nats per token, over adjacent windows of the stream."""
    batches = (len(stream) - 1) // (length * BATCH)
    windows = np.arange(batches * BATCH)[:, None] * length + np.arange(length + 1)
    return float(np.mean([mean_loss(weights, w) for w in np.split(stream[windows], batches)]))


def parse_arguments() -> argparse.Namespace:
    """Returns the flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--tokenizer", type=Path, help="a file to use instead of training")
    for field in ("width", "layers", "hidden"):
        size = getattr(Config, field)
        parser.add_argument(f"--{field}", type=int, default=size, help="model size (%(default)s)")
    parser.add_argument("--steps", type=int, default=1700, help="optimizer steps (%(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="limit of training time")
    parser.add_argument("--smoke", action="store_true", help="run only a few steps, as a test")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"argument --steps: must be at least 1, not {args.steps}")
    if args.width < 1 or args.width % HEAD_DIM:
        parser.error(f"argument --width: must be a multiple of {HEAD_DIM}, not {args.width}")
    if not args.minutes > 0:
        parser.error(f"argument --minutes: must be above 0, not {args.minutes}")
    return args


def main() -> None:
    """Trains, evaluates and saves the model."""
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    files, steps = source_files(), args.steps
    if args.smoke:
        files, steps = files[::5], 5

    held_out = len(files) // 20
    test_documents, documents = read_documents(files[:held_out]), read_documents(files[held_out:])
    if args.tokenizer:
        tokenizer = Tokenizer.from_file(str(args.tokenizer))
    else:
        tokenizer = train_tokenizer(documents)
        tokenizer.save(str(args.out / "tokenizer.json"), pretty=False)
    stream, test_stream = encode(tokenizer, documents), encode(tokenizer, test_documents)
    print(f"{len(stream):,} tokens from {len(files) - held_out} files; {held_out} files held out")

    config = Config(
        vocab=tokenizer.get_vocab_size(), width=args.width, layers=args.layers, hidden=args.hidden
    )
    bits = len(test_stream) / sum(len(d.encode()) for d in test_documents) / math.log(2)
    before = held_out_loss(init(jax.random.key(SEED), config), test_stream, config.context)
    print(f"held-out loss before: {before:.3f} nats per token, {before * bits:.3f} bits per byte")
    save(args.out / "weights.npz", train(config, stream, steps, args.minutes))
    # The loss is measured with the saved weights, which are rounded.
    after = held_out_loss(load(args.out / "weights.npz", config), test_stream, config.context)
    print(f"held-out loss after:  {after:.3f} nats per token, {after * bits:.3f} bits per byte")

    card = {
        "sizes": dataclasses.asdict(config),
        "held_out_nats_per_token": round(after, 4),
        "held_out_bits_per_byte": round(after * bits, 4),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    (args.out / "config.json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
