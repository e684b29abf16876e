"""The performance report in Markdown."""

from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate

from bench import memory, peers, report, scaling
from bench.bars import Line
from bench.memory import Temporaries
from bench.peers import PEERS
from bench.report import digits
from bench.scaling import Point
from bench.sizes import Sizes
from bench.timing import Timing


def head(command: str) -> str:
    """Returns the heading: the device, the versions and the command."""
    stamp = report.provenance()
    return f"""# Performance

{report.device_name()}, {stamp["device"]["cores"]} cores, {stamp["date"][:10]}. {versions()}.

    pip install -e ".[peers]" && {command}

measures all of this in one process ([`bench/peers`](../peers/__init__.py) tells how to install the
peers that are borrowed). Times are medians of calls that take turns, and each ratio is of one run.
Rows are float32 and sure of their tokens, 12 hold .95 of the mass, unless a line says otherwise; of
flat rows it takes .74 of the vocabulary."""


def versions() -> str:
    """Returns the versions of Python, JAX, jaxsample and the peers."""
    return ", ".join(f"{name} {v}" for name, v in (report.versions() | peers.versions()).items())


def bars(lines: Sequence[Line], sizes: Sizes) -> str:
    """Returns the bars and the measured values."""
    rows = (
        (one.work, one.unit, *map(digits, (one.value, one.bar, one.stretch)), one.verdict)
        for one in lines
    )
    return f"""## Bars

{sizes.batch} x {sizes.vocab} unless a line says otherwise; the joint rules are temperature .8,
k = 50, p = .95 and min-p = .02.

{table(["work", "", "measured", "bar", "stretch", "reached"], rows, words=2)}"""


def beside(
    measured: Mapping[int, Mapping[str, Timing]], absent: Mapping[str, str], sizes: Sizes
) -> str:
    """Returns the table of peers, the speedup of jaxsample over each, and the missing peers."""
    batches = [f"B = {batch}" for batch in measured]
    cases = measured.items()
    names = list(dict.fromkeys(name for timings in measured.values() for name in timings))
    milliseconds = (
        (name, *(f"{digits(t[name].median)} ({digits(t[name].median / b)})" for b, t in cases))
        for name in names
    )
    ratios = (
        (
            f"{ours} beside {name}",
            *(f"{digits(t[name].median / t[ours].median)}x" for _, t in cases),
        )
        for name, ours in ((name, PEERS[name].ours) for name in names if name in PEERS)
    )
    missing = "\n".join(f"- Not measured: {name} ({why})." for name, why in absent.items())
    return f"""## Peers

The rules of llama.cpp's usual chain, top-k 40, top-p .95, min-p .05, temperature .8, over
{sizes.vocab} tokens. Milliseconds a batch of B rows, in brackets a row:

{table(["", *batches], milliseconds)}

How many times as fast ours is that has the temperature at the same place:

{table(["", *batches], ratios)}

- jaxsample has a value and a key a row, all traced, and returns log-probs and counts as well.
- Hugging Face runs on all cores.
- llama.cpp runs a row at a time on one thread; the fill hands it a row's logits as its array.
- tunix, maxtext, tpu-inference and FlashInfer do without min-p; the first two have their values
  compiled in.
{missing}""".rstrip()


def temporaries(found: Sequence[Temporaries], sizes: Sizes) -> str:
    """Returns the memory that programs need in addition to their arguments and results."""
    rows = (
        (
            one.work,
            one.dtype,
            f"{one.bytes / 2**20:.1f}",
            digits(one.of_logits),
            "yes" if one.of_logits < memory.LIMIT else "no",
        )
        for one in found
    )
    headers = ["`sample` with", "logits", "MiB", "of the logits", f"under {memory.LIMIT}"]
    return f"""## Memory

Peak temporaries at {sizes.batch} x {sizes.vocab}, by the compiler's account.

{table(headers, rows)}"""


def sweeps(found: Mapping[str, Sequence[Point]], plot: str) -> str:
    """Returns the plot and the tables of both sweeps."""
    by_vocab, by_batch = found["vocab"], found["batch"]
    vocabs = [f"V = {point.vocab}" for point in by_vocab]
    batches = [f"B = {point.batch}" for point in by_batch]
    spreads = ", ".join(f"{name} {digits(s)}" for name, s in scaling.spreads(found).items())
    return f"""## Scaling

![Time in calls of jnp.argmax, against vocabulary and rows]({plot})

The rules are those of the peers. A peer leaves before a call takes {scaling.SLOWEST_MS / 1000:g} s.

Milliseconds, B = {by_vocab[0].batch}:

{_milliseconds(vocabs, by_vocab)}

Milliseconds, V = {by_batch[0].vocab}:

{_milliseconds(batches, by_batch)}

Nanoseconds a logit, B = {by_vocab[0].batch}:

{_nanoseconds(vocabs, by_vocab)}

Nanoseconds a logit, V = {by_batch[0].vocab}:

{_nanoseconds(batches, by_batch)}

The dearest logit over the cheapest, among calls of {scaling.LARGE:,} logits or more:
{spreads or "no such call was measured"}."""


def _milliseconds(headers: Sequence[str], points: Sequence[Point]) -> str:
    rows = (
        [name, *(digits(p.timings[name].median) if name in p.timings else "" for p in points)]
        for name in points[0].timings
    )
    return table(["", *headers], rows)


def _nanoseconds(headers: Sequence[str], points: Sequence[Point]) -> str:
    rows = ([name, *(digits(p.nanoseconds(name)) for p in points)] for name in scaling.OURS)
    return table(["", *headers], rows)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Returns a table of columns of words, then right-aligned columns of numbers."""
    return tabulate(
        list(rows),
        headers,
        tablefmt="github",
        colalign=["left"] * words + ["right"] * (len(headers) - words),
        disable_numparse=True,
    )
