r"""Continues prompts with continuous batching, each with its own sampling settings.

    python examples/decode.py
    python examples/decode.py --prompt $'import os\n\n\ndef ' --temperature 0.7 --seed 3
    python examples/decode.py --requests requests.json --order vllm

There may be more requests than slots; `batching.py` has the loop. Rules that no request uses are
not compiled. All other settings are traced, so the same programs serve all requests.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from batching import SLOTS, TRACES, Job, Text, serve
from jobs import make_jobs, padded
from model import Config, Weights, load
from request import Request, make_parser, make_requests
from tokenizers import Tokenizer

from jaxsample import ORDERS

MODEL = Path(__file__).parent / "weights"
REPEATS = 3


def open_model(folder: Path) -> tuple[Config, Tokenizer, Weights]:
    """Returns the model that train.py saved in a folder, with its tokenizer."""
    config, weights = open_weights(folder)
    return config, Tokenizer.from_buffer((folder / "tokenizer.json").read_bytes()), weights


def open_weights(folder: Path) -> tuple[Config, Weights]:
    """Returns the model in a folder without its tokenizer."""
    config = Config(**json.loads((folder / "config.json").read_bytes())["sizes"])
    return config, load(folder / "weights.npz", config)


def replaying(job: Job, text: Text) -> Job:
    """Returns a job that writes a text again without the sampler."""
    script = [*job.prompt[: job.length], *text.tokens]
    return job._replace(script=padded(script, len(job.prompt)))


def print_texts(tokenizer: Tokenizer, requests: list[Request], texts: list[Text]) -> None:
    """Prints each prompt and its continuation between two lines."""
    width = min(shutil.get_terminal_size().columns, 100)
    bold = "\033[1m{}\033[0m" if sys.stdout.isatty() else "{}"
    for request, text in zip(requests, texts, strict=True):
        count, total = len(text.tokens), text.logprobs.sum()
        print(f"── {request} ".ljust(width, "─"))
        written = tokenizer.decode(text.tokens[: count - (text.reason == "stop")].tolist())
        print(bold.format(request.prompt) + written.rstrip())
        footer = f"{text.reason}, {'1 token' if count == 1 else f'{count} tokens'}"
        if count:
            footer += f", log-prob {total:z.2f} ({total / count:z.2f} per token)"
        print(f" {footer}, slot {text.slot} ──".rjust(width, "─"), end="\n\n")


def print_speed(tokens: int, first: np.ndarray, again: np.ndarray, replay: np.ndarray) -> None:
    """Prints the rates from the seconds [2] of `serve`: first, compiled, and without sampler."""
    reading, writing = again
    compiling = (first - again).sum()
    print(f"{tokens} tokens in {writing:.2f} s: {tokens / writing:.0f} tokens/s", end=" ")
    print(f"(after {compiling:.1f} s to compile and {reading:.2f} s to read the prompts)")
    print(f"sampler: {1 - replay[1] / writing:.1%} of that time", end=" ")
    print(f"(the same loop takes {replay[1]:.2f} s to write recorded tokens without sampling)")


def main() -> None:
    """Decodes, prints the texts and measures the time."""
    parser = make_parser(__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="folder written by train.py")
    parser.add_argument("--order", choices=ORDERS, default="default", help="order of the rules")
    args = parser.parse_args()
    try:
        requests = make_requests(vars(args))
        config, tokenizer, weights = open_model(args.model)
        jobs = make_jobs(tokenizer, requests, config.context)
        texts, first = serve(weights, config, jobs, args.order)
    except (OSError, ValueError) as error:  # also if the order lacks a requested rule
        parser.error(str(error))

    print_texts(tokenizer, requests, texts)
    traces = ", ".join(f"{name} {n}" for name, n in TRACES.items())
    print(f"{len(requests)} requests through {SLOTS} slots; times traced: {traces}")

    def median(jobs: list[Job]) -> np.ndarray:
        runs = [serve(weights, config, jobs, args.order)[1] for _ in range(REPEATS)]
        return np.median(runs, axis=0)

    again = median(jobs)
    scripts = [replaying(job, text) for job, text in zip(jobs, texts, strict=True)]
    serve(weights, config, scripts, args.order)  # compiles
    tokens = sum(len(text.tokens) for text in texts)
    print_speed(tokens, first, again, median(scripts))


if __name__ == "__main__":
    main()
