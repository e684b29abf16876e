"""The sizes of the measurements of the performance report."""

from typing import NamedTuple


class Sizes(NamedTuple):
    """The sizes of the measurements of the report; small ones are for trying it out.

    Attributes:
      batch: the number of rows for the bars and the temporaries.
      vocab: the number of tokens for the bars, the temporaries and the peers.
      odd_vocabs: vocabulary sizes of real models that are not multiples of the chunk size.
      even_vocab: the vocabulary size that they are compared with.
      peer_batches: the numbers of rows for the table of peers.
      vocabs: the vocabulary sizes of the scaling, at `vocabs_batch` rows.
      batches: the numbers of rows of the scaling, at `batches_vocab` tokens.
      repeats: the maximum number of calls of a function.
      compilations: the number of compilations of every stage.
    """

    batch: int = 128
    vocab: int = 128_256
    odd_vocabs: tuple[int, ...] = (50_257, 151_936, 201_088)
    even_vocab: int = 131_072
    peer_batches: tuple[int, ...] = (1, 8, 32, 128)
    vocabs: tuple[int, ...] = (1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
    vocabs_batch: int = 8
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    batches_vocab: int = 32_000
    repeats: int = 100
    compilations: int = 3


FULL = Sizes()

QUICK = Sizes(
    batch=8,
    vocab=4096,
    odd_vocabs=(3001,),
    even_vocab=4096,
    peer_batches=(8,),
    vocabs=(1024, 4096),
    vocabs_batch=8,
    batches=(1, 8),
    batches_vocab=4096,
    repeats=3,
    compilations=1,
)
