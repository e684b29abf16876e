"""GRPO in Tunix on kept sets: trains the policy on the distribution that was sampled.

    python examples/integrations/tunix_grpo.py

trains a small Llama with random weights to write even numbers.

The rollout samples with top-k and top-p, and records the log-prob of each token after the cuts and
its kept set. Tunix's loss is then computed from logits masked by the kept sets, so that the ratio
of an unchanged policy is 1.
"""

import dataclasses
import itertools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate.sampler import CacheConfig
from tunix.rl import algo_core, function_registry, rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout, vanilla_rollout
from tunix_sampler import JaxSampler, Numbers, tiny_llama

from jaxsample import SamplingParams, bitmask_logits, sample


@flax.struct.dataclass
class Draws:
    """Log-probs and packed kept sets of tokens, which Tunix slices like log-probs."""

    logprobs: jax.Array
    kept_mask: jax.Array

    def __getitem__(self, index):
        return jax.tree.map(lambda x: x[index], self)

    def tolist(self):
        """Returns the draws unchanged, where Tunix converts log-probs to a list."""
        return self

    def padded(self, length):
        """Returns the draws, padded with log-probs 0 and full kept sets."""
        padding = [0, length - len(self.logprobs)]
        return Draws(
            np.pad(self.logprobs, padding),
            np.pad(self.kept_mask, [padding, [0, 0]], constant_values=-1),
        )


class ReplaySampler(JaxSampler):
    """Returns `Draws` in place of log-probs."""

    def init_sample_state(self, *arguments, **options):
        """Adds buffers for the kept sets."""
        state = super().init_sample_state(*arguments, **options)
        words = -(-self.transformer.config.vocab_size // 32)
        masks = jnp.zeros((*state.token_buffer.shape, words), jnp.int32)
        return dataclasses.replace(state, logprobs_buffer=Draws(state.logprobs_buffer, masks))

    def _draw(self, *arguments):
        output = sample(*arguments, return_kept=True)
        return output.tokens, Draws(output.logprobs, output.kept_mask)


class ReplayRollout(vanilla_rollout.VanillaRollout):
    """Draws each text with its own seed, and stores the `Draws` until they are taken."""

    def __init__(self, rollout_actor, tokenizer, mesh, rollout_config):
        config = rollout_actor.config
        cache = CacheConfig(
            rollout_config.kv_cache_size, config.num_layers, config.num_kv_heads, config.head_dim
        )
        self._sampler = ReplaySampler(rollout_actor, tokenizer, cache)
        self._seeds = itertools.count()
        self._draws = []

    def generate(self, prompts, rollout_config, **kwargs):
        """Returns texts drawn with the temperature, top-k and top-p of a rollout config."""
        params = SamplingParams(
            suppressed_token_ids=[self.pad_id()],  # Tunix finds the end of a text by it
            temperature=rollout_config.temperature,
            top_k=rollout_config.top_k or 0,
            top_p=1.0 if rollout_config.top_p is None else rollout_config.top_p,
        )
        output = self._sampler(
            prompts,
            rollout_config.max_tokens_to_generate,
            params,
            [next(self._seeds) for _ in prompts],
            max_prompt_length=rollout_config.max_prompt_length,
            eos_tokens=rollout_config.eos_tokens,
            return_logprobs=True,
        )
        length = rollout_config.max_tokens_to_generate
        self._draws += [draws.padded(length) for draws in output.logprobs]
        return base_rollout.RolloutOutput(
            text=output.text,
            logits=[],
            tokens=output.tokens,
            left_padded_prompt_tokens=output.padded_prompt_tokens,
            logprobs=[draws.logprobs for draws in output.logprobs],
        )

    def take_draws(self):
        """Returns the `Draws` of all texts since the last call, `[texts, length]`."""
        draws, self._draws = self._draws, []
        return jax.tree.map(lambda *x: jnp.stack(x), *draws)


@flax.struct.dataclass(frozen=True)
class ReplayExample(grpo_learner.TrainExample):
    """A batch with the log-probs of the draws and the kept sets."""

    kept_mask: jax.Array | None = None


class ReplayLearner(grpo_learner.GRPOLearner):
    """A learner for `ReplayRollout` and the loss "kept_grpo"."""

    def _generate_and_compute_advantage(self, training_input, mode=rl_cluster.Mode.TRAIN):
        example = super()._generate_and_compute_advantage(training_input, mode)
        draws = self.rl_cluster.rollout.take_draws()
        fields = vars(example) | {"old_per_token_logps": draws.logprobs}
        return ReplayExample(**fields, kept_mask=draws.kept_mask)


class Kept(nnx.Module):
    """A policy that masks the logits of completions by the kept sets."""

    def __init__(self, policy, kept_mask):
        self.policy = policy
        self.kept_mask = nnx.Variable(kept_mask)

    def __call__(self, tokens, positions, cache, attention_mask):
        logits, cache = self.policy(tokens, positions, cache, attention_mask)
        completion = slice(-self.kept_mask.shape[1] - 1, -1)  # the logits before its tokens
        kept = bitmask_logits(logits[:, completion], self.kept_mask[...])
        # Tunix computes the entropy, which would be NaN with -inf.
        return logits.at[:, completion].set(jnp.maximum(kept, -1e30)), cache


@function_registry.register_policy_loss_fn("kept_grpo")
def kept_grpo_loss(policy, train_example, **options):
    """Returns Tunix's GRPO loss on the kept sets of a `ReplayExample`."""
    return algo_core.grpo_loss_fn(Kept(policy, train_example.kept_mask), train_example, **options)


def learner_of(policy, reward, steps, **rollout):
    """Returns a learner whose rollout has a temperature, top-k and top-p.

    The log-probs of a reference policy would include the whole vocabulary, so `beta` is 0.
    """
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), (auto, auto), devices=jax.devices()[:1])
    roles = rl_cluster.Role
    config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys((roles.ACTOR, roles.REFERENCE, roles.ROLLOUT), mesh),
        rollout_engine=ReplayRollout,
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adam(0.01),
            rollout_micro_batch_size=1,  # prompts
            eval_every_n_steps=steps,
            max_steps=steps,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=8, max_prompt_length=4, kv_cache_size=16, **rollout
        ),
    )
    return ReplayLearner(
        rl_cluster.RLCluster(actor=policy, tokenizer=Numbers(), cluster_config=config),
        grpo_learner.GRPOConfig(policy_loss_fn="kept_grpo", num_generations=8, beta=0.0),
        reward,
    )


def share_of_even_numbers(prompts, completions, **_):
    """Returns the share of even numbers in each completion."""
    numbers = [[int(word) for word in text.split()] for text in completions]
    return [np.mean([number % 2 == 0 for number in x] or [0]) for x in numbers]


def main():
    rewards = []

    def reward(prompts, completions, **options):
        rewards.append(share_of_even_numbers(prompts, completions))
        return rewards[-1]

    learner = learner_of(tiny_llama(), reward, steps=20, temperature=0.9, top_k=20, top_p=0.9)
    learner.train([{"prompts": np.array(["5 6 7", "8 9"])}] * 20)
    for step, reward in enumerate(rewards):
        print(f"step {step}: {np.mean(reward):.2f} even")


if __name__ == "__main__":
    main()
