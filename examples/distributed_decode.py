r"""Continues prompts on the devices of several processes, which all get the same tokens.

    python examples/distributed_decode.py --processes 4
    python examples/distributed_decode.py --coordinator host0:1234 --num-processes 2 --process-id 0
    srun python examples/distributed_decode.py

The first command starts all processes on this machine. The second starts one process of a cluster.
The third needs no flags, because JAX detects the cluster (Slurm, TPU pods, Open MPI).

The loop is that of `batching.py` and gives the tokens of `decode.py`. Every process runs it on the
same requests; only the weights are distributed over all devices. The embedding, which is also the
head, is sharded by vocabulary. The logits are therefore sharded too, and `sample` draws from them
without gathering. If a process dies or stops responding, all others end.
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
"""The number of tokens of a chunk of the draw; a device must hold whole chunks."""


def make_flags() -> Parser:
    """Returns the command line parser."""
    parser = make_parser(__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL, help="folder written by train.py")
    parser.add_argument("--processes", type=int, help="number of local processes to start")
    parser.add_argument("--coordinator", help="on a cluster: host:port of process 0")
    parser.add_argument("--num-processes", type=int, help="on a cluster: number of processes")
    parser.add_argument("--process-id", type=int, help="on a cluster: index of this process")
    parser.add_argument(
        "--patience",
        type=int,
        default=30,
        help="seconds after which a process that does not respond is abandoned (default: 30)",
    )
    return parser


def members(flags: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the cluster settings of JAX for each process to start here, by its name."""
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
    """Returns an unused address of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def prepare(flags: dict[str, Any]) -> tuple[list[Request], Config, Tokenizer, Weights, list[Job]]:
    """Returns the requests, the model and the jobs."""
    requests = make_requests(flags)
    config, tokenizer, weights = open_model(flags["model"])
    return requests, config, tokenizer, weights, make_jobs(tokenizer, requests, config.context)


def place(weights: Weights) -> Weights:
    """Shards the embedding by vocabulary over all devices, and replicates the layers."""
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
    """Returns a hash of the tokens of texts."""
    return hashlib.sha256(b"".join(text.tokens.tobytes() for text in texts)).hexdigest()[:16]


def join(cluster: dict[str, Any], patience: int) -> None:
    """Connects to the other processes."""
    try:
        jax.distributed.initialize(**cluster, heartbeat_timeout_seconds=patience)
    except ValueError as error:
        raise ValueError(
            f"{error} Give --processes, or --coordinator, --num-processes and --process-id"
        ) from None


def decode(cluster: dict[str, Any], flags: dict[str, Any]) -> None:
    """Decodes in one process, prints the digest of its tokens and measures the time."""
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
    """Decodes, and reports expected errors in one line."""
    try:
        decode(cluster, flags)
    except ValueError as error:
        raise Failed(str(error)) from None
    except jax.errors.JaxRuntimeError as error:
        first = str(error).partition("\n")[0]
        raise Failed(f"another process seems to be gone: {first}") from None


def main() -> None:
    """Checks the flags, then decodes in processes that all end if one fails."""
    parser = make_flags()
    flags = vars(parser.parse_args())
    if "processes" in flags:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # other devices belong to one process
    jax.config.update("jax_platforms", "cpu")  # only here; the started processes use the devices
    try:
        prepare(flags)
        run(decode_or_fail, {name: (cluster, flags) for name, cluster in members(flags).items()})
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except Failed as failure:
        parser.exit(1, f"{parser.prog}: error: {failure}\n")


if __name__ == "__main__":
    main()
