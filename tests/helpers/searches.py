"""Parameters of top-k, top-p and min-p for rows that are searched."""

import jax.numpy as jnp
import numpy as np


def varied(x):
    """Returns parameters of top-k, top-p and min-p for each row; some are neutral."""

    def repeated(*values, dtype="float32"):
        return jnp.asarray(np.resize(values, len(x)), dtype)

    return {
        "top_k": repeated(70, 1000, x.shape[1], 4000, 300, dtype="int32"),
        "top_p": repeated(0.95, 0.5, 0.999, 1, 0.9, 0.7, 1e-9),
        "min_p": repeated(0, 0.01, 0.001, 1e-5),
    }
