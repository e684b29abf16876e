"""The sizes that the performance report measures at."""

from typing import NamedTuple


class Sizes(NamedTuple):
    """The sizes that the report measures at; small ones try it out.

    Attributes:
      batch: rows of the bars and of the temporaries.
      vocab: tokens of the bars, of the temporaries and of the peers.
      odd_vocabs: vocabularies of real models, whose rows do not end with a chunk.
      even_vocab: what they are compared with.
      peer_batches: rows of the table of peers.
      vocabs: the vocabularies of the scaling, at `vocabs_batch` rows.
      batches: the rows of the scaling, at `batches_vocab` tokens.
      repeats: the most calls of a work.
      compilations: how often every stage is compiled.
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
