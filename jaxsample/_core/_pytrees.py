"""Types whose values may be arguments and results of programs that `jax.export` serializes."""

import json
from typing import Any, TypeVar

import jax
from jax import export

T = TypeVar("T", bound=type[Any])


def pytree(cls: T) -> T:
    """Registers a frozen dataclass as a pytree, or a NamedTuple, which is one, for `jax.export`."""
    name = f"jaxsample.{cls.__name__}"
    if issubclass(cls, tuple):
        export.register_namedtuple_serialization(cls, serialized_name=name)
    else:
        jax.tree_util.register_dataclass(cls)
        export.register_pytree_node_serialization(
            cls,
            serialized_name=name,
            serialize_auxdata=lambda static_fields: json.dumps(static_fields).encode(),
            deserialize_auxdata=lambda words: tuple(json.loads(words)),
        )
    return cls
