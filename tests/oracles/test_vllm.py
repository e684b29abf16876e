import numpy as np
import pipelines
import pytest
import vllm_oracle as oracle

from jaxsample import VLLM_ORDER

pytestmark = pytest.mark.oracle

FIELDS = (
    "allowed", "bad_word_lengths", "min_tokens", "logit_bias", "repetition_penalty",
    "frequency_penalty", "presence_penalty", "temperature", "min_p", "top_k", "top_p",
)  # fmt: skip


def test_pipeline(record_property):
    batch = pipelines.batch(FIELDS, 1200, prompts=True)
    rows = zip(batch.logits, batch.values, batch.texts, batch.prompts, strict=True)
    theirs = np.stack([oracle.process(*row) for row in rows])
    record_property("compared", "pipeline: " + pipelines.check(batch, VLLM_ORDER, theirs))
