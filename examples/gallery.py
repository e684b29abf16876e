"""Draws the pictures of the documentation: the effect of each rule on a model's distribution.

    pip install -e ".[bench,examples]"
    python examples/gallery.py

The distribution is that of the example model for the token after `TEXT`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from decode import MODEL, open_model
from jax import Array
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from model import END, forward

import jaxsample as js

IMAGES = Path(__file__).parents[1] / "docs/images"
TEXT = """\
class Queue:
    def __init__(self, maxsize):
        self.size = 0
        self.queue = []
        assert self.size == 0
        self."""
SHOWN = 16
BEFORE, AFTER, INK = "#d4dbe6", "#2f5fb3", "#333a45"
STYLE = {
    "axes.edgecolor": "#9aa3b2",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxsample",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

Rules = Mapping[str, Callable[[Array], Array]]
"""Functions of the logits, by the title of their panel."""


def scenery() -> tuple[Array, np.ndarray, list[str]]:
    """Returns the logits, the tokens of the text, and the texts of all tokens."""
    config, tokenizer, weights = open_model(MODEL)
    tokens = np.array([END, *tokenizer.encode(TEXT).ids])
    logits = forward(weights, jnp.asarray(tokens)[None])[0, -1]
    return logits, tokens, [tokenizer.decode([i]) for i in range(config.vocab)]


def rules_of(tokens: np.ndarray, vocab: int) -> dict[str, Rules]:
    """Returns the rules of each picture, by the name of the picture."""
    counts = jnp.zeros(vocab, jnp.int32).at[tokens].add(1)
    length = len(tokens)
    temperature: Rules = {
        "scaled_logits, T = 0.5": lambda x: js.scaled_logits(x, 0.5),
        "scaled_logits, T = 1.5": lambda x: js.scaled_logits(x, 1.5),
        "entropy_scaled_logits, 0.2 to 1.5": lambda x: js.entropy_scaled_logits(x, 0.2, 1.5),
        "smoothed_logits, 0.3": lambda x: js.smoothed_logits(x, 0.3),
    }
    truncation: Rules = {
        "top_k_logits, k = 8": lambda x: js.top_k_logits(x, 8),
        "top_p_logits, p = 0.6": lambda x: js.top_p_logits(x, 0.6),
        "min_p_logits, p = 0.1": lambda x: js.min_p_logits(x, 0.1),
        "top_a_logits, a = 0.2": lambda x: js.top_a_logits(x, 0.2),
        "epsilon_logits, 0.015": lambda x: js.epsilon_logits(x, 0.015),
        "eta_logits, 0.2": lambda x: js.eta_logits(x, 0.2),
    }
    more: Rules = {
        "typical_p_logits, p = 0.3": lambda x: js.typical_p_logits(x, 0.3),
        "top_n_sigma_logits, n = 2": lambda x: js.top_n_sigma_logits(x, 2.0),
        "tail_free_logits, z = 0.95": lambda x: js.tail_free_logits(x, 0.95),
        "top_h_logits, h = 0.4": lambda x: js.top_h_logits(x, 0.4),
        "p_less_logits": js.p_less_logits,
        "xtc_logits, threshold 0.05": lambda x: js.xtc_logits(jax.random.key(0), x, 1.0, 0.05),
    }
    penalties: Rules = {
        "repetition_penalized_logits, 1.3": lambda x: js.repetition_penalized_logits(
            x, counts > 0, 1.3
        ),
        "presence_penalized_logits, 1": lambda x: js.presence_penalized_logits(x, counts, 1.0),
        "frequency_penalized_logits, 1": lambda x: js.frequency_penalized_logits(x, counts, 1.0),
        "dry_penalized_logits, 0.8": lambda x: js.dry_penalized_logits(x, tokens, length, 0.8),
        "no_repeat_ngram_logits, n = 3": lambda x: js.no_repeat_ngram_logits(x, tokens, length, 3),
    }
    of_all = {**temperature, **truncation, **penalties}
    chosen = ("scaled_logits, T = 0.5", "scaled_logits, T = 1.5", "dry_penalized_logits, 0.8")
    cuts = ("top_k_logits, k = 8", "top_p_logits, p = 0.6", "min_p_logits, p = 0.1")
    return {
        "temperature": temperature,
        "truncation": truncation,
        "more_truncation": more,
        "penalties": penalties,
        "rules": {name: of_all[name] for name in (*chosen, *cuts)},
    }


def draw_rules(name: str, rules: Rules, logits: Array, texts: list[str], columns: int) -> None:
    """Draws a panel for each rule, with the probabilities before and after it."""
    before = np.asarray(jax.nn.softmax(logits))
    order = np.argsort(-before, kind="stable")[:SHOWN]
    labels = [shown(texts[i]) for i in order]
    lines = -(-len(rules) // columns)
    figure = Figure(figsize=(3.1 * columns, 1.65 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
    for panel, (title, rule) in zip(panels, rules.items(), strict=False):
        changed = rule(logits)
        after = np.asarray(jax.nn.softmax(changed))
        places = np.arange(SHOWN)
        bars(panel, places, before[order], 0.9, BEFORE)
        bars(panel, places, after[order], 0.5, AFTER)
        panel.set_title(title, loc="left", fontsize=9, fontweight="bold")
        if kept := dropped_from(changed):
            panel.text(0.98, 0.92, kept, ha="right", va="top", transform=panel.transAxes)
        panel.tick_params(length=0)
    axes = figure.axes
    axes[0].set_ylim(bottom=0)
    for panel in axes[len(rules) :]:
        panel.set_axis_off()
    for panel in axes[max(len(rules) - columns, 0) : len(rules)]:
        label_tokens(panel, labels)
    figure.supylabel("probability before (grey) and after (blue)", fontsize=9)
    save(figure, name)


def dropped_from(logits: Array) -> str:
    """Returns a label with the number of kept tokens, empty if none is dropped."""
    kept = int(jnp.isfinite(logits).sum())
    return "" if kept == len(logits) else f"{kept:,} tokens kept"


def bars(panel: Axes, places: ArrayLike, heights: np.ndarray, width: float, color: str) -> None:
    """Draws bars as one shape, which keeps the file small."""
    x = np.asarray(places)[:, None] + np.array([-1, -1, 1, 1]) * width / 2
    y = heights[:, None] * np.array([0, 1, 1, 0])
    panel.fill(x.ravel(), y.ravel(), color=color, linewidth=0)


def label_tokens(panel: Axes, labels: list[str]) -> None:
    """Writes the tokens below a panel."""
    panel.set_xticks(range(len(labels)), labels, rotation=90, family="monospace", fontsize=8)
    panel.tick_params(labelbottom=True)


def shown(text: str) -> str:
    """Returns the text of a token with visible spaces."""
    return text.replace("\n", "↵").replace(" ", "␣")


def draw_two_stages(logits: Array, texts: list[str]) -> None:
    """Draws the two stages of a draw: a chunk of 256 tokens, then a token of the chunk."""
    chunks = np.asarray(jax.nn.softmax(logits)).reshape(-1, 256)
    token = int(js.categorical_sample(jax.random.key(19), logits))
    chunk, place = divmod(token, 256)
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    for panel, heights, winner in ((top, chunks.sum(1), chunk), (bottom, chunks[chunk], place)):
        bars(panel, np.arange(len(heights)), heights, 0.8, BEFORE)
        bars(panel, [winner], heights[[winner]], 0.8, AFTER)
        panel.set_ylabel("probability")
        panel.set_ylim(bottom=0)
        panel.margins(x=0.01)
    top.set_title(f"1. One of {len(chunks)} chunks of 256 tokens", loc="center", fontweight="bold")
    top.set_xticks(range(len(chunks)))
    bottom.set_title(f"2. One of the 256 tokens of chunk {chunk}", loc="center", fontweight="bold")
    ticks = range(0, 257, 32)
    bottom.set_xticks(ticks, [str(256 * chunk + tick) for tick in ticks])
    bottom.set_xlabel("token id")
    bottom.annotate(
        f"{shown(texts[token])}  (token {token})",
        (place, chunks[chunk, place]),
        (8, -4),
        textcoords="offset points",
        color=AFTER,
    )
    for side, edge in ((chunk - 0.4, 0), (chunk + 0.4, 1)):
        line = ConnectionPatch(
            (side, 0), (edge, 1), top.transData, bottom.transAxes, color=AFTER, alpha=0.4
        )
        figure.add_artist(line)
    save(figure, "draw")


def save(figure: Figure, name: str) -> None:
    """Writes a picture, reproducibly to the byte."""
    figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})


def main() -> None:
    """Draws all pictures."""
    logits, tokens, texts = scenery()
    with mpl.rc_context(STYLE):
        for name, rules in rules_of(tokens, len(texts)).items():
            draw_rules(name, rules, logits, texts, columns=2 if name == "temperature" else 3)
        draw_two_stages(logits, texts)


if __name__ == "__main__":
    main()
