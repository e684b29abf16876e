"""Times jaxsample and the peers over vocabulary sizes and batch sizes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench import logits, peers, requests
from bench.baselines import argmax
from bench.peers import Peer
from bench.sizes import Sizes
from bench.timing import Timing, measure
from bench.works import Call, Case, Work
from jaxsample import categorical_sample, greedy_sample

SLOWEST_MS = 2000
"""The maximum time of a call of a peer; peers that would exceed it are left out."""

LARGE = 10**6
"""The number of logits from which the cost of a logit should be constant."""

GREEDY, CATEGORICAL = "greedy", "categorical"
OURS = (GREEDY, CATEGORICAL, peers.OURS)


class Point(NamedTuple):
    """The timings at one size."""

    batch: int
    vocab: int
    timings: dict[str, Timing]

    def nanoseconds(self, name: str) -> float:
        """Returns the cost of a logit."""
        return self.timings[name].median * 1e6 / (self.batch * self.vocab)


def scaling(sizes: Sizes, present: Mapping[str, Peer]) -> dict[str, list[Point]]:
    """Returns the points of both sweeps, "vocab" and "batch", in increasing order of size."""
    by_vocab = [Case(sizes.vocabs_batch, vocab, "float32") for vocab in sizes.vocabs]
    by_batch = [Case(batch, sizes.batches_vocab, "float32") for batch in sizes.batches]
    return {
        "vocab": _sweep(by_vocab, present, sizes.repeats),
        "batch": _sweep(by_batch, present, sizes.repeats),
    }


def spreads(sweeps: Mapping[str, Sequence[Point]]) -> dict[str, float]:
    """Returns the ratio of the largest to the smallest cost of a logit at large sizes, by name."""
    large = [p for points in sweeps.values() for p in points if p.batch * p.vocab >= LARGE]
    costs = {name: [point.nanoseconds(name) for point in large] for name in OURS}
    return {name: max(some) / min(some) for name, some in costs.items() if some}


def _sweep(cases: Sequence[Case], present: Mapping[str, Peer], repeats: int) -> list[Point]:
    points: list[Point] = []
    left = dict(present)
    for case in cases:
        if points:
            left = {name: peer for name, peer in left.items() if _affordable(name, points, case)}
        timings = measure(_works(case, left), repeats, f"scaling, {case}")
        points.append(Point(case.batch, case.vocab, timings))
    return points


def _affordable(name: str, points: Sequence[Point], case: Case) -> bool:
    before = points[-1]
    growth = case.batch * case.vocab / (before.batch * before.vocab)
    return before.timings[name].median * growth < SLOWEST_MS


def _works(case: Case, present: Mapping[str, Peer]) -> dict[str, Work | Call]:
    x, keys = logits.peaked(*case), requests.keys(case.batch)
    ours: dict[str, Work | Call] = {
        GREEDY: Work(greedy_sample, (x,)),
        CATEGORICAL: Work(categorical_sample, (keys, x)),
        peers.OURS: peers.ours(x)[peers.OURS],
        "jnp.argmax": Work(argmax, (x,)),
    }
    return ours | {name: peer.work(x) for name, peer in present.items()}
