"""A rollout by the adapter of Tunix in Tunix's own learner, with kept sets."""

import numpy as np
import pytest

pytest.importorskip("tunix", reason="tunix is not installed: docs/guides/integrations.md")

from tunix.rl.algo_core import grpo_loss_fn
from tunix_grpo import kept_grpo_loss, learner_of, share_of_even_numbers
from tunix_sampler import tiny_llama

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PROMPTS = np.array(["5 6 7", "8 9"])


@pytest.fixture(scope="module")
def learner():
    return learner_of(
        tiny_llama(), share_of_even_numbers, steps=1, temperature=0.7, top_k=20, top_p=0.8
    )


@pytest.fixture(scope="module")
def example(learner):
    return learner._generate_and_compute_advantage({"prompts": PROMPTS.repeat(8)})


def ratios(loss, learner, example):
    """Returns the minimum, mean and maximum of pi / pi_old over all tokens, as in the loss."""
    policy = learner.rl_cluster.actor_trainer.model
    found = loss(policy, example, algo_config=learner.algo_config, pad_id=0, eos_id=1)[1]
    assert all(np.isfinite(value) for value in found.values())
    return [float(found[f"is_ratio/{name}"]) for name in ("min", "mean", "max")]


def test_the_kept_set_has_few_tokens_and_the_one_that_was_drawn(example):
    bits = np.unpackbits(np.asarray(example.kept_mask).view(np.uint8), axis=-1, bitorder="little")
    text = np.asarray(example.completion_mask)
    assert text.sum() > 50
    assert np.all(bits[text].sum(-1) <= 20)
    drawn = np.take_along_axis(bits, np.asarray(example.completion_ids)[..., None], axis=-1)
    assert np.all(drawn)


def test_the_ratio_is_one_on_kept_sets_alone(learner, example):
    np.testing.assert_allclose(ratios(kept_grpo_loss, learner, example), 1, atol=1e-5)
    least, mean, largest = ratios(grpo_loss_fn, learner, example)
    assert least < mean < largest < 0.9


def test_a_step_of_the_learner_changes_the_weights(learner):
    policy = learner.rl_cluster.actor_trainer.model
    before = np.array(policy.lm_head.w[...])
    learner.train([{"prompts": PROMPTS}])
    change = np.abs(policy.lm_head.w[...] - before).max()
    assert 0 < change < 0.1
