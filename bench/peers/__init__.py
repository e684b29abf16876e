"""The samplers that a user may pick instead, each as its own code base calls it.

All apply the rules of llama.cpp's usual chain: top-k 40, top-p .95, min-p .05, temperature .8.
tunix, maxtext, tpu-inference and FlashInfer do without min-p. `pip install -e ".[peers]"` brings
those that come whole, and the others, of which a function is enough, come without the rest by

    pip install --no-deps --ignore-requires-python \
        google-tunix==0.1.7 maxtext==0.2.5 tpu-inference==0.32.0

and FlashInfer, which is for CUDA, by `pip install flashinfer-python`.

A peer that is not installed, or does not run here, is named in the report with the reason.
"""

import importlib
import importlib.metadata
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bench import logits, requests
from bench.baselines import sort_stack
from bench.timing import ready
from bench.works import Call, Work
from jaxsample import LLAMA_CPP_ORDER, SampleOutput, SamplingParams, sample

T, K, P, MIN_P = 0.8, 40, 0.95, 0.05

OURS = "jaxsample"
OURS_T_LAST = "jaxsample, temperature last"


class Peer(NamedTuple):
    """A sampler that a user may pick instead.

    Attributes:
      packages: whose versions it has.
      build: of `bench.peers`, module and function: from float32 logits `[batch, vocab]`, what is
        measured; it results in the tokens.
      ours: the name of ours that scales at the same place.
    """

    packages: tuple[str, ...]
    build: str
    ours: str = OURS

    def work(self, x: Array) -> Work | Call:
        """What is measured of it."""
        module, _, function = self.build.rpartition(".")
        return getattr(importlib.import_module(module), function)(x)


PEERS = {
    "sort stack": Peer(("jax",), "bench.peers.stack"),
    "Hugging Face": Peer(("transformers", "torch"), "bench.peers.hugging_face.sampler"),
    "llama.cpp": Peer(("llama-cpp-python",), "bench.peers.llama_cpp.chain", OURS_T_LAST),
    "llama.cpp and fill": Peer(
        ("llama-cpp-python",), "bench.peers.llama_cpp.fill_and_chain", OURS_T_LAST
    ),
    "tunix": Peer(("google-tunix",), "bench.peers.tunix.sampler"),
    "maxtext": Peer(("maxtext",), "bench.peers.maxtext.sampler", OURS_T_LAST),
    "tpu-inference": Peer(("tpu-inference",), "bench.peers.tpu_inference.sampler"),
    "FlashInfer": Peer(("flashinfer-python", "torch"), "bench.peers.flashinfer.sampler"),
}


def ours(x: Array) -> dict[str, Work]:
    """Ours with the temperature where Hugging Face has it, and where llama.cpp has it."""
    arguments = (requests.keys(len(x)), x, requests.joint(len(x), T, K, P, MIN_P))
    return {OURS: Work(sample, arguments), OURS_T_LAST: Work(_t_last, arguments)}


def stack(x: Array) -> Work:
    """The stack of sorts that code bases write in JAX."""
    values = (jnp.full(len(x), value) for value in (T, K, P, MIN_P))
    return Work(sort_stack, (jax.random.key(0), x, *values))


def present() -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that run here, and why the others do not.

    Each has to draw one of the 40 best tokens of two small rows.
    """
    x = logits.peaked(2, 256, "float32")
    best = np.asarray(lax.top_k(x, K)[1])
    found, absent = {}, {}
    for name, peer in PEERS.items():
        try:
            call = ready(peer.work(x))
            call.prepare()
            tokens = np.asarray(call.run())
            if not (best == tokens[:, None]).any(axis=1).all():
                raise ValueError(f"drew {tokens.tolist()}, which top-k drops")
            found[name] = peer
        except Exception as error:  # whatever stands in its way is the reason
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found, absent


def versions() -> dict[str, str]:
    """Of the packages of the peers, those that are installed."""
    packages = {package for peer in PEERS.values() for package in peer.packages}
    installed = {}
    for package in sorted(packages - {"jax"}):
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _t_last(keys: Array, x: Array, params: SamplingParams) -> SampleOutput:
    return sample(keys, x, params, order=LLAMA_CPP_ORDER)
