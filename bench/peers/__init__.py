"""Alternative samplers that a user may choose, each called as in its own code base.

All apply the rules of llama.cpp's default chain: top-k 40, top-p .95, min-p .05, temperature .8.
tunix, maxtext, tpu-inference and FlashInfer have no min-p. `pip install -e ".[peers]"` installs the
peers that are complete packages. Of the others a single function is needed, so they are installed
without their dependencies by

    pip install --no-deps --ignore-requires-python \
        google-tunix==0.1.7 maxtext==0.2.5 tpu-inference==0.32.0

and FlashInfer, which needs CUDA, by `pip install flashinfer-python`.

The report names each peer that is not installed or does not run, with the reason.
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
    """An alternative sampler.

    Attributes:
      packages: the packages whose versions are reported.
      build: the module of `bench.peers` and its function, which returns the function to measure
        from float32 logits `[batch, vocab]`; that one returns the tokens.
      ours: the name of the jaxsample function that applies the temperature at the same place.
    """

    packages: tuple[str, ...]
    build: str
    ours: str = OURS

    def work(self, x: Array) -> Work | Call:
        """Returns the function to measure."""
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
    """Returns `sample` with the temperature at the place of Hugging Face, and of llama.cpp."""
    arguments = (requests.keys(len(x)), x, requests.joint(len(x), T, K, P, MIN_P))
    return {OURS: Work(sample, arguments), OURS_T_LAST: Work(_t_last, arguments)}


def stack(x: Array) -> Work:
    """Returns the sort-based stack that code bases write in JAX."""
    values = (jnp.full(len(x), value) for value in (T, K, P, MIN_P))
    return Work(sort_stack, (jax.random.key(0), x, *values))


def present() -> tuple[dict[str, Peer], dict[str, str]]:
    """Returns the peers that run here, and the reasons why the others do not.

    Each must draw one of the 40 most likely tokens of two small rows.
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
        except Exception as error:  # any failure is reported as the reason
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found, absent


def versions() -> dict[str, str]:
    """Returns the versions of the installed packages of the peers."""
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
