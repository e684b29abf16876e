"""Hugging Face transformers: `generate` with beams, on a small model with random weights."""

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

VOCAB, PAD, MAX_LENGTH = 40, 1, 10
PROMPTS = ([5, 9, 17], [23], [8, 8, 31, 2, 39], [12, 30])


def model() -> GPT2LMHeadModel:
    torch.set_num_threads(1)  # the model is too small for more
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    return GPT2LMHeadModel(config).eval()


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the prompts, padded on the left, and their attention mask."""
    width = max(map(len, PROMPTS))
    ids = [[PAD] * (width - len(p)) + p for p in PROMPTS]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS]
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def logits_behind(model: GPT2LMHeadModel, written: np.ndarray) -> np.ndarray:
    """Returns logits `[..., prompts, beams, vocab]` after the prompts and the text of each beam."""
    new = torch.tensor(written, dtype=torch.long).clamp(min=0)
    ids, mask = (x[:, None].expand(*new.shape[:-1], -1) for x in padded())
    ids = torch.cat([ids, new], dim=-1).flatten(0, -2)
    mask = torch.cat([mask, torch.ones_like(new)], dim=-1).flatten(0, -2)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
    return logits.reshape(*new.shape[:-1], -1).numpy()


def generated(model: GPT2LMHeadModel, **settings) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens `[prompts, num_return, <= MAX_LENGTH]` after the prompts, and scores."""
    ids, mask = padded()
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=MAX_LENGTH,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        num_return_sequences=settings["num_beams"],
        **settings,
    )
    tokens = out.sequences[:, ids.shape[1] :].reshape(len(ids), settings["num_beams"], -1)
    scores = getattr(out, "sequences_scores", None)
    return tokens.numpy(), None if scores is None else scores.reshape(tokens.shape[:2]).numpy()
