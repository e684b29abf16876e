r"""Continues prompts on the devices of several processes, which all hold the same tokens.

    python examples/distributed_decode.py --processes 4
    python examples/distributed_decode.py --coordinator host0:1234 --num-processes 2 --process-id 0
    srun python examples/distributed_decode.py

The first line starts all processes on this machine, the second is one process of a cluster, and
where JAX can ask the cluster (Slurm, TPU pods, Open MPI) nothing needs to be told, as in the third.

The loop is that of `batching.py` and its tokens are those of `decode.py`. Every process runs it on
the same requests; only the weights are placed on the devices of all. The embedding, which is the
head too, is split by vocabulary, hence so are the logits, and `sample` draws from them as they lie.
A process that dies or falls silent ends all the others.
"""

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import jax
import numpy as np
from batching import Job, Text, serve
from decode import MODEL, open_model, print_texts
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jobs import make_jobs
from model import Config, Weights
from processes import Failed, run, tell
from request import Parser, Request, make_parser, make_requests
from tokenizers import Tokenizer

CHUNK = 256
"""Tokens that a draw looks at together; a device must hold whole chunks."""


def make_flags() -> Parser:
    """The command line."""
    parser = make_parser(__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="a folder made by train.py")
    parser.add_argument("--processes", type=int, help="how many to start on this machine")
    parser.add_argument("--coordinator", help="of a cluster: host:port of process 0")
    parser.add_argument("--num-processes", type=int, help="of a cluster: how many there are")
    parser.add_argument("--process-id", type=int, help="of a cluster: which one this is, from 0")
    parser.add_argument(
        "--patience",
        type=int,
        default=30,
        help="seconds without a sign of life after which a process is given up (default: 30)",
    )
    return parser


def members(flags: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By name, for each process to start here, what JAX is told."""
    told = {
        "coordinator_address": flags.get("coordinator"),
        "num_processes": flags.get("num_processes"),
        "process_id": flags.get("process_id"),
    }
    if flags["patience"] < 1:
        raise ValueError(f"--patience must be at least 1, got {flags['patience']}")
    count = flags.get("processes")
    if count is None:
        id = told["process_id"]
        return {"this process" if id is None else f"process {id}": told}
    if count < 1 or any(value is not None for value in told.values()):
        raise ValueError(f"--processes must be at least 1, and alone, got {count}")
    address = loopback()
    told = {"coordinator_address": address, "coordinator_bind_address": address}
    return {f"process {i}": told | {"num_processes": count, "process_id": i} for i in range(count)}


def loopback() -> str:
    """An address of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def prepare(flags: dict[str, Any]) -> tuple[list[Request], Config, Tokenizer, Weights, list[Job]]:
    """All that decoding needs."""
    requests = make_requests(flags)
    config, tokenizer, weights = open_model(flags["model"])
    return requests, config, tokenizer, weights, make_jobs(tokenizer, requests, config.context)


def place(weights: Weights) -> Weights:
    """Splits the embedding by vocabulary over the devices of all processes; each has the layers."""
    vocab, devices = len(weights["embedding"]), jax.device_count()
    if vocab % (CHUNK * devices):
        raise ValueError(
            f"{vocab} tokens must split into whole chunks of {CHUNK} over the devices, "
            f"got {devices} of them"
        )
    mesh = jax.make_mesh((devices,), ("vocab",), (AxisType.Auto,))

    def put(x: jax.Array, *axes: str) -> jax.Array:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__)

    return {
        "embedding": put(weights["embedding"], "vocab"),
        "layers": jax.tree.map(put, weights["layers"]),
    }


def digest(texts: list[Text]) -> str:
    """Tells apart texts that differ in a token."""
    return hashlib.sha256(b"".join(text.tokens.tobytes() for text in texts)).hexdigest()[:16]


def join(cluster: dict[str, Any], patience: int) -> None:
    """Meets the other processes."""
    try:
        jax.distributed.initialize(**cluster, heartbeat_timeout_seconds=patience)
    except ValueError as error:
        raise ValueError(
            f"{error} Give --processes, or --coordinator, --num-processes and --process-id"
        ) from None


def decode(cluster: dict[str, Any], flags: dict[str, Any]) -> None:
    """Runs a process: decodes, prints the digest of its tokens, measures."""
    join(cluster, flags["patience"])
    name = f"process {jax.process_index()} of {jax.process_count()}"
    devices = f"{jax.local_device_count()} of {jax.device_count()} devices"
    tell(f"{name}: pid {os.getpid()}, {devices}, {jax.default_backend()}")

    requests, config, tokenizer, weights, jobs = prepare(flags)
    weights = place(weights)
    texts, _ = serve(weights, config, jobs)
    tokens = sum(len(text.tokens) for text in texts)
    tell(f"{name}: {tokens} tokens, sha256 {digest(texts)}")
    _, (_, seconds) = serve(weights, config, jobs)
    if jax.process_index() == 0:
        print_texts(tokenizer, requests, texts)
        tell(f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s")
    jax.distributed.shutdown()


def decode_or_fail(cluster: dict[str, Any], flags: dict[str, Any]) -> None:
    """Decodes; what may go wrong is told in one line."""
    try:
        decode(cluster, flags)
    except ValueError as error:
        raise Failed(str(error)) from None
    except jax.errors.JaxRuntimeError as error:
        first = str(error).partition("\n")[0]
        raise Failed(f"another process seems to be gone: {first}") from None


def main() -> None:
    """Checks the flags, then decodes in processes of which none outlives another's failure."""
    parser = make_flags()
    flags = vars(parser.parse_args())
    if "processes" in flags:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # other devices are one process's alone
    jax.config.update("jax_platforms", "cpu")  # here; the devices belong to the processes started
    try:
        prepare(flags)
        run(decode_or_fail, {name: (cluster, flags) for name, cluster in members(flags).items()})
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except Failed as failure:
        parser.exit(1, f"{parser.prog}: error: {failure}\n")


if __name__ == "__main__":
    main()
