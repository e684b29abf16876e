"""Beam search by its definition, in NumPy float64: a single search, with texts as tuples."""

import dataclasses
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Search:
    """The beams of one group as `(score, text)`, and finished texts with penalized scores."""

    beams: tuple[tuple[float, tuple[int, ...]], ...] = ((0.0, ()),)
    finished: tuple[tuple[float, tuple[int, ...]], ...] = ()


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def is_bad(row):
    row = np.asarray(row, np.float64)
    return np.isnan(row).any() or (row == np.inf).any() or (row == -np.inf).all()


def step(
    groups,
    rows_of,
    *,
    num_beams,
    max_length,
    stops=(),
    length_penalty=1.0,
    diversity_penalty=0.0,
    early_stopping=False,
    normalize=True,
):
    """Advances the groups by one token; `rows_of(text)` returns the logits after a text."""
    size, chosen, after = num_beams // len(groups), [], []
    for search in groups:
        children = []
        for beam, (score, text) in enumerate(search.beams):
            row = np.asarray(rows_of(text), np.float64)
            if is_bad(row):
                continue
            logprobs = log_softmax(row) if normalize else row
            for rank, token in enumerate(np.argsort(-row, kind="stable")):
                total = score + logprobs[token] - diversity_penalty * chosen.count(token)
                if total > -np.inf:
                    children.append((-total, beam, rank, (*text, int(token))))
        children.sort()
        search = continued(
            search, children, size, max_length, stops, length_penalty, early_stopping
        )
        chosen += [text[-1] for _, text in search.beams]
        after.append(search)
    return after


def continued(search, children, size, max_length, stops, length_penalty, early_stopping):
    if not children:
        return dataclasses.replace(search, beams=())
    length = len(children[0][-1])

    def penalized(score, length):
        return score / float(length) ** length_penalty

    def ends(text):
        return text[-1] in stops or length == max_length

    new = [(penalized(-cost, length), text) for cost, *_, text in children[:size] if ends(text)]
    finished = sorted([*search.finished, *new], key=lambda found: -found[0])[:size]
    beams = [(-cost, text) for cost, *_, text in children if not ends(text)][:size]
    if len(finished) == size and beams:
        reached = max_length if early_stopping == "never" and length_penalty > 0 else length
        if early_stopping is True or penalized(beams[0][0], reached) <= finished[-1][0]:
            beams = []
    return Search(tuple(beams), tuple(finished))


def search(rows_of, *, num_beams, num_groups=1, **settings):
    """Returns the finished texts of a whole search in order of score, `(score, text)`."""
    groups = [Search()] * num_groups
    while any(group.beams for group in groups):
        groups = step(groups, rows_of, num_beams=num_beams, **settings)
    return sorted((f for group in groups for f in group.finished), key=lambda found: -found[0])


def every_text(rows_of, vocab, max_length, stops, length_penalty):
    """Returns all texts that end, by a stop token or at `max_length`, by penalized score."""
    found = []
    for text in itertools.chain.from_iterable(
        itertools.product(range(vocab), repeat=n) for n in range(1, max_length + 1)
    ):
        ends = text[-1] in stops or len(text) == max_length
        if ends and not any(token in stops for token in text[:-1]):
            total = sum(log_softmax(rows_of(text[:i]))[t] for i, t in enumerate(text))
            found.append((total / float(len(text)) ** length_penalty, text))
    return sorted(found, key=lambda pair: -pair[0])
