import numpy as np
import pytest
from rows import every_kind

from jaxsample import bitmask_logits

pytest.importorskip("llguidance", reason="llguidance is not installed: the extra `oracles`")

import llguidance_oracle as oracle

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("vocab", [31, 32, 33, 257, 32003])
def test_bitmask(vocab, record_property):
    rng = np.random.default_rng(vocab)
    x = every_kind(40 if vocab < 1000 else 4, vocab)
    words = rng.integers(-(2**31), 2**31, size=(len(x), -(-vocab // 32)), dtype=np.int64)
    words[::9] |= rng.integers(-(2**31), 2**31, size=words[::9].shape)  # allows three quarters
    words = words.astype(np.int32)
    np.testing.assert_array_equal(bitmask_logits(x, words), oracle.bitmask(x, words))
    record_property("compared", f"bitmask: {len(x)} rows of {vocab}")
