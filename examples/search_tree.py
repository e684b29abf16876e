"""Draws the picture of a beam search in the documentation, with kept and dropped continuations.

    pip install -e ".[bench,examples]"
    python examples/search_tree.py

The example model continues `TEXT`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from decode import MODEL, open_model
from gallery import AFTER, BEFORE, INK, STYLE, save, shown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from model import END, forward

from jaxsample import beam_step, init_beams, top_logprobs

TEXT = "def test_open(self):\n    self."
BEAMS, STEPS = 3, 4
LABEL = 0.62
"""The width of a label, in units of a step."""


class Child(NamedTuple):
    """A continuation of a beam.

    Attributes:
      parent: the index of the beam that it continues, in order of score.
      token: the token that it appends.
      score: the sum of its log-probs.
      beam: its index among the next beams, or -1.
    """

    parent: int
    token: int
    score: float
    beam: int


def searched() -> tuple[list[list[Child]], list[str]]:
    """Returns the likeliest continuations of each step, and the texts of all tokens."""
    config, tokenizer, weights = open_model(MODEL)
    prompt = [END, *tokenizer.encode(TEXT).ids]
    state, steps = init_beams(BEAMS, STEPS + 1), []
    for step in range(STEPS):
        texts = [[*prompt, *tokens[:step].tolist()] for tokens in np.maximum(state.tokens, 0)]
        logits = forward(weights, jnp.asarray(texts, jnp.int32))[:, -1]
        top, before = top_logprobs(logits, num=BEAMS), state.scores
        state, tokens, parents = beam_step(state, logits)
        kept = [*zip(parents.tolist(), tokens.tolist(), strict=True)]
        steps.append(
            [
                Child(parent, token, float(before[parent] + logprob), place)
                for parent in range(BEAMS)
                if before[parent] > -jnp.inf
                for token, logprob in zip(
                    top.tokens[parent].tolist(), top.logprobs[parent], strict=True
                )
                for place in [kept.index((parent, token)) if (parent, token) in kept else -1]
            ]
        )
    return steps, [tokenizer.decode([i]) for i in range(config.vocab)]


def draw(steps: list[list[Child]], texts: list[str]) -> None:
    """Draws the tree, with a column for each step and beams in blue."""
    figure = Figure(figsize=(7.4, 3.9), layout="constrained")
    panel = figure.subplots()
    heights = {0: 0.0}
    for step, children in enumerate(steps):
        children.sort(key=lambda child: (-heights[child.parent], -child.score))
        places = np.linspace(1, -1, len(children)) * (0.5 if not step else 1)
        for child, y in zip(children, places, strict=True):
            start = step + (LABEL if step else 0), heights[child.parent]
            draw_child(panel, child, start, (step + 1, y), texts)
        heights = {c.beam: y for c, y in zip(children, places, strict=True) if c.beam >= 0}
    panel.plot(0, 0, "o", color=AFTER, markersize=5)
    panel.text(
        -0.06, 0, shown(TEXT.splitlines()[-1].strip()), ha="right", va="center", family="monospace"
    )
    panel.set_xlim(-0.55, STEPS + 0.75)
    panel.set_axis_off()
    save(figure, "search")


def draw_child(
    panel: Axes,
    child: Child,
    start: tuple[float, float],
    end: tuple[float, float],
    texts: list[str],
) -> None:
    """Draws a continuation and the line from the label of its beam."""
    kept = child.beam >= 0
    color, order = (AFTER, 2) if kept else (BEFORE, 1)
    panel.plot(
        *zip(start, end, strict=True), color=color, linewidth=1.5 if kept else 1, zorder=order
    )
    panel.plot(*end, "o", color=color, markersize=5, zorder=order)
    panel.text(
        end[0] + 0.06,
        end[1],
        f"{shown(texts[child.token])}  {child.score:.1f}",
        va="center",
        fontsize=8,
        family="monospace",
        color=INK if kept else "#8a93a3",
        zorder=3,
    )


def main() -> None:
    """Runs the search and draws its tree."""
    with mpl.rc_context(STYLE):
        draw(*searched())


if __name__ == "__main__":
    main()
