"""The example: its model, its decoding loop and its command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
WEIGHTS = EXAMPLES / "weights"
sys.path.append(str(EXAMPLES))

pytest.importorskip("tokenizers")
import decode  # noqa: E402
import model  # noqa: E402
from request import DEMO, Request  # noqa: E402

CONFIG = model.Config(**json.loads((WEIGHTS / "config.json").read_text())["sizes"])
MATES = [
    Request(prompt=f"import {name}\n\n\n", temperature=1.5, top_k=k, seed=k, max_tokens=30 + k)
    for k, name in enumerate(["abc", "ast", "os", "re", "sys", "json", "email"])
]


@pytest.fixture(scope="module")
def weights():
    return model.load(WEIGHTS / "weights.npz", CONFIG)


@pytest.fixture(scope="module")
def write(weights):
    """Decodes requests: per request its tokens and their log-probabilities."""
    tokenizer = decode.Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))

    def write(requests):
        prompts = [decode.tokenize(tokenizer, r, CONFIG.context) for r in requests]
        batch = decode.make_batch(requests, prompts, CONFIG)
        texts = decode.write(weights, batch, *decode.read(weights, batch))
        tokens, logprobs, counts = map(np.asarray, texts)
        rows = range(len(requests))
        return [(tokens[row, : counts[row]], logprobs[row, : counts[row]]) for row in rows]

    return write


def run(script, *args):
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, args)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )


def fail(monkeypatch, capsys, *args):
    """The one line that the decoder ends with."""
    monkeypatch.setattr(sys, "argv", ["decode.py", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        decode.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    return err


def test_decoding_a_token_at_a_time_gives_the_logits_of_the_whole_text(weights):
    lengths = jnp.array([3, 11, 1])
    tokens = jax.random.randint(jax.random.key(0), (3, CONFIG.context), 1, CONFIG.vocab)
    expected = jax.jit(model.forward)(weights, tokens[:, :32])
    rows = jnp.arange(3)

    logits, cache = jax.vmap(model.prefill, (None, 0, 0))(weights, tokens, lengths)
    chex.assert_trees_all_close(logits, expected[rows, lengths - 1], atol=1e-4)
    decode_step = jax.jit(model.decode_step)
    for step in range(8):
        positions = lengths + step
        logits, cache = decode_step(weights, cache, tokens[rows, positions], positions)
        chex.assert_trees_all_close(logits, expected[rows, positions], atol=1e-4)


@pytest.mark.parametrize("request_", DEMO, ids=str)
def test_a_text_is_the_same_alone_and_in_any_slot_of_any_batch(write, request_):
    alone = write([request_])[0]
    assert len(alone[0]) > 1
    for slot in (1, 3, 7):
        together = write([*MATES[:slot], request_, *MATES[slot:]])[slot]
        chex.assert_trees_all_equal(together, alone)


def test_a_text_ends_with_the_end_of_text_or_after_max_tokens(write):
    requests = [Request(prompt="import os\n\n\ndef ", seed=s, max_tokens=100) for s in range(8)]
    lengths = []
    for tokens, logprobs in write(requests):
        assert np.all(logprobs <= 0)
        assert model.END not in tokens[:-1]
        assert tokens[-1] == model.END or len(tokens) == 100
        lengths.append(len(tokens))
    assert min(lengths) < max(lengths) == 100


def test_bad_logits_end_a_text(weights, capsys):
    request = Request(prompt="import os")
    batch = decode.make_batch([request], [[model.END]], CONFIG)
    broken = weights | {"embedding": weights["embedding"] * jnp.nan}
    tokenizer = decode.Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    texts = decode.write(broken, batch, *decode.read(broken, batch))
    decode.print_texts(tokenizer, [request], texts)
    assert "import os\n" in (out := capsys.readouterr().out)
    assert "error: the logits are not finite, 1 token," in out


def test_settings_never_compile_anew(write, monkeypatch):
    write([Request(prompt="a")])
    # Whatever traces the loop again calls this instead, and fails.
    monkeypatch.setattr(decode, "sample", None)
    write([Request(prompt="b c", temperature=0.1, top_k=3, top_p=0.5, min_p=0.2, seed=9)])


def test_replaying_writes_the_same_texts(weights):
    batch = decode.make_batch([Request(prompt="")] * 2, [[model.END]] * 2, CONFIG)
    texts, seconds = decode.run(weights, batch)
    again = decode.write(weights, batch, *decode.read(weights, batch), texts)
    chex.assert_trees_all_equal((again.tokens, again.counts), (texts.tokens, texts.counts))
    assert np.all(seconds > 0)


def test_the_command_line(tmp_path):
    requests = [
        {"prompt": "import os\n\n\ndef ", "temperature": 0, "max_tokens": 4},
        {"prompt": "class Queue:\n    ", "top_k": 5, "min_p": 0.1, "seed": 2, "max_tokens": 3},
    ]
    file = tmp_path / "requests.json"
    file.write_text(json.dumps(requests))
    done = run("decode.py", "--requests", file, "--top-p", "0.9")
    assert (done.returncode, done.stderr) == (0, "")
    assert "── greedy ──" in done.stdout
    assert "── seed 2, temperature 0.8, top_k 5, top_p 0.9, min_p 0.1 ──" in done.stdout
    for expected in ("class Queue:\n    ", "length, 4 tokens", "length, 3 tokens", "7 tokens in"):
        assert expected in done.stdout


def test_a_bad_flag_ends_a_process_in_one_line_too():
    done = run("decode.py", "--top-p", "1.5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("decode.py: error: argument --top-p: top_p must be in [0, 1], got 1.5\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--temperature", "-1"], "--temperature: temperature must be finite and at least 0"),
        (["--temperature", "nan"], "--temperature: temperature must be finite and at least 0"),
        (["--temperature", "1e99"], "--temperature: temperature must be below 2**31"),
        (["--top-k", "-1"], "--top-k: top_k must be at least 0, got -1"),
        (["--top-k", "x"], '--top-k: top_k must be an integer, got "x"'),
        (["--min-p", "2"], "--min-p: min_p must be in [0, 1], got 2"),
        (["--max-tokens", "0"], "--max-tokens: max_tokens must be at least 1, got 0"),
        (["--max-tokens", "300"], "max_tokens 300 and the 5 tokens of prompt"),
        (["--seed", "-1"], "--seed: seed must be at least 0, got -1"),
        (["--prompt", "x " * 300], "max_tokens 120 and the 301 tokens of prompt 'x x"),
        (["--prompt", "\udc80"], "prompt must be valid Unicode"),
        (["--prompt", "x", "--requests", "y"], "not allowed with argument --prompt"),
        (["--requests", "nope.json"], "No such file or directory: 'nope.json'"),
        (["--model", "nope"], "No such file or directory: 'nope/config.json'"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_a_bad_flag_is_named(monkeypatch, capsys, args, said):
    assert said in fail(monkeypatch, capsys, *args)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{]", "must be JSON: Expecting property name"),
        ("[" * 10**5, "must be JSON"),
        ("[]", "must hold a JSON list of one request or more"),
        ('{"prompt": "x"}', "must hold a JSON list of one request or more"),
        ('[{"prompt": "x"}, 3]', "request 2: must be an object with a prompt, got 3"),
        ('[{"top_k": 3}]', "request 1: must be an object with a prompt"),
        ('[{"prompt": "x", "top": 3}]', "request 1: unknown field 'top'; the fields are prompt"),
        ('[{"prompt": 3}]', "request 1: prompt must be a string, got 3"),
        ('[{"prompt": "x", "top_k": 3.5}]', "request 1: top_k must be an integer, got 3.5"),
        ('[{"prompt": "x", "seed": true}]', "request 1: seed must be an integer, got true"),
        ('[{"prompt": "x", "top_p": "1"}]', 'request 1: top_p must be a number, got "1"'),
        ('[{"prompt": "x", "top_p": 1.5}]', "request 1: top_p must be in [0, 1], got 1.5"),
        ('[{"prompt": "x", "top_k": 4294967296}]', "request 1: top_k must be below 2**31"),
        ('[{"prompt": "\\ud800"}]', "request 1: prompt must be valid Unicode"),
    ],
)
def test_a_bad_file_is_named(tmp_path, monkeypatch, capsys, text, said):
    file = tmp_path / "requests.json"
    file.write_text(text)
    message = fail(monkeypatch, capsys, "--requests", file)
    assert str(file) in message
    assert said in message


def test_the_weights_are_small():
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 6_000_000


def test_weights_survive_a_file(tmp_path, weights):
    model.save(tmp_path / "weights.npz", weights)
    chex.assert_trees_all_equal(model.load(tmp_path / "weights.npz", CONFIG), weights)


@pytest.mark.slow
def test_training_writes_a_model_that_decodes(tmp_path):
    done = run("train.py", "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (
        float(line.split()[3]) for line in done.stdout.splitlines() if line.startswith("held-out")
    )
    assert after < before
    done = run("decode.py", "--model", tmp_path, "--prompt", "def ", "--max-tokens", 3)
    assert (done.returncode, done.stderr) == (0, "")
