"""llama.cpp through llama-cpp-python: its samplers on NumPy rows, one row at a time."""

import ctypes
from collections.abc import Callable

import llama_cpp
import numpy as np

TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def apply(sampler, row: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns new logits of a row, -inf for dropped tokens, and the drawn token or -1.

    Masked tokens are not passed, since llama.cpp removes dropped tokens from its list.
    """
    ids = np.flatnonzero(row > -np.inf)
    tokens = np.zeros(ids.size, TOKEN)
    tokens["id"], tokens["logit"] = ids, row[ids]
    start = tokens.ctypes.data
    array = llama_cpp.llama_token_data_array(
        ctypes.cast(start, llama_cpp.llama_token_data_p), ids.size, -1, False
    )
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    first = (ctypes.addressof(array.data.contents) - start) // TOKEN.itemsize
    left = tokens[first : first + array.size]
    logits = np.full(row.shape, -np.inf, np.float32)
    logits[left["id"]] = left["logit"]
    return logits, int(left["id"][array.selected]) if array.selected >= 0 else -1


def process(make: Callable, logits: np.ndarray, history=None) -> np.ndarray:
    """Returns new logits `[rows, vocab]`; `make()` returns a sampler, which accepts `history`."""
    out = []
    for i, row in enumerate(logits):
        sampler = make()
        for token in () if history is None else history[i]:
            llama_cpp.llama_sampler_accept(sampler, int(token))
        out.append(apply(sampler, row)[0])
        llama_cpp.llama_sampler_free(sampler)
    return np.stack(out)


def kept(make: Callable, logits: np.ndarray) -> np.ndarray:
    return process(make, logits) > -np.inf


KEPT = {
    "top_k": lambda x, k: kept(lambda: llama_cpp.llama_sampler_init_top_k(k), x),
    "top_p": lambda x, p: kept(lambda: llama_cpp.llama_sampler_init_top_p(p, 1), x),
    "min_p": lambda x, p: kept(lambda: llama_cpp.llama_sampler_init_min_p(p, 1), x),
    "typical_p": lambda x, p: kept(lambda: llama_cpp.llama_sampler_init_typical(p, 1), x),
    "top_n_sigma": lambda x, n: kept(lambda: llama_cpp.llama_sampler_init_top_n_sigma(n), x),
    "xtc": lambda x, t: kept(lambda: llama_cpp.llama_sampler_init_xtc(1.0, t, 1, 0), x),
}


def temperature(logits: np.ndarray, t: float, delta: float, exponent: float) -> np.ndarray:
    return process(lambda: llama_cpp.llama_sampler_init_temp_ext(t, delta, exponent), logits)


def penalties(
    logits: np.ndarray, history, repeat: float, frequency: float, presence: float, last: int = 1024
):
    """Counts only the last tokens of a history."""
    vocab = logits.shape[-1]
    return process(
        lambda: llama_cpp.llama_sampler_init_penalties(vocab, last, repeat, frequency, presence),
        logits,
        history,
    )


def biased(logits: np.ndarray, token_ids: np.ndarray, bias: np.ndarray) -> np.ndarray:
    pairs = zip(token_ids.tolist(), bias.tolist(), strict=True)
    pairs = (llama_cpp.llama_logit_bias * len(token_ids))(*pairs)
    vocab = logits.shape[-1]
    return process(
        lambda: llama_cpp.llama_sampler_init_logit_bias(vocab, len(token_ids), pairs), logits
    )


class _Vector(ctypes.Structure):
    """A `std::vector` of the GNU C++ library."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("begin", "end", "capacity")]

    @classmethod
    def of(cls, array: ctypes.Array) -> "_Vector":
        start = ctypes.addressof(array)
        vector = cls(start, start + ctypes.sizeof(array), start + ctypes.sizeof(array))
        vector.array = array  # keeps the array alive
        return vector


def dry(multiplier: float, base: float, allowed_length: int, breakers: list[int]):
    """Returns a sampler with single-token breakers; the public function takes them from a model."""
    if not breakers:
        return llama_cpp.llama_sampler_init_dry(
            None, multiplier, base, allowed_length, 1024, None, 0
        )
    make = llama_cpp.llama_cpp._lib[
        "_Z30llama_sampler_init_dry_testingffiiRKSt6vectorIS_IiSaIiEESaIS1_EE"
    ]
    make.restype = llama_cpp.llama_sampler_p_ctypes
    make.argtypes = [ctypes.c_float] * 2 + [ctypes.c_int32] * 2 + [ctypes.POINTER(_Vector)]
    words = [_Vector.of((ctypes.c_int32 * 1)(token)) for token in breakers]
    sequences = _Vector.of((_Vector * len(words))(*words))
    return make(multiplier, base, allowed_length, 1024, ctypes.byref(sequences))


def mirostat_v1(vocab: int, tau: float, eta: float, seed: int):
    return llama_cpp.llama_sampler_init_mirostat(vocab, seed, tau, eta, 100)


def mirostat_v2(vocab: int, tau: float, eta: float, seed: int):
    return llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta)


def adaptive_p(target: float, decay: float, seed: int):
    return llama_cpp.llama_sampler_init_adaptive_p(target, decay, seed)


def accept(sampler, token: int) -> None:
    llama_cpp.llama_sampler_accept(sampler, token)


def pipeline(row: np.ndarray, values: dict, text: np.ndarray) -> np.ndarray:
    """Returns new logits of a row by the samplers of llama.cpp's default chain, in its order."""
    size, vocab = len(values["logit_bias"]), row.size
    pairs = zip(values["logit_bias_token_ids"].tolist(), values["logit_bias"].tolist(), strict=True)
    penalties = ("repetition_penalty", "frequency_penalty", "presence_penalty")
    t, delta = values["dynamic"]
    if not delta:
        t = values["temperature"]
    samplers = (
        llama_cpp.llama_sampler_init_logit_bias(
            vocab, size, (llama_cpp.llama_logit_bias * size)(*pairs)
        ),
        llama_cpp.llama_sampler_init_penalties(vocab, 1024, *(values[name] for name in penalties)),
        dry(values["dry_multiplier"], 1.75, 2, []),
        llama_cpp.llama_sampler_init_top_n_sigma(values["top_n_sigma"]),
        llama_cpp.llama_sampler_init_top_k(int(values["top_k"])),
        llama_cpp.llama_sampler_init_typical(values["typical_p"], 1),
        llama_cpp.llama_sampler_init_top_p(values["top_p"], 1),
        llama_cpp.llama_sampler_init_min_p(values["min_p"], 1),
        llama_cpp.llama_sampler_init_xtc(1.0, values["xtc_threshold"], 1, 0),
        llama_cpp.llama_sampler_init_temp_ext(t, delta, 1.0),
    )
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in samplers:
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    for token in text:
        accept(chain, int(token))
    logits = apply(chain, row)[0]
    llama_cpp.llama_sampler_free(chain)
    return logits
