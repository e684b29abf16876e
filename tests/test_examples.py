"""The examples: the model, the decoding loop and the command line."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import exhaustive

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.append(str(EXAMPLES))

pytest.importorskip("tokenizers")
import batching  # noqa: E402
import beam  # noqa: E402
import decode  # noqa: E402
import gallery  # noqa: E402
import jobs  # noqa: E402
import model  # noqa: E402
import speculative  # noqa: E402
from request import DEMO, KINDS, NEUTRAL, Request  # noqa: E402

from jaxsample import SamplingParams, init_stochastic_beams, stochastic_beam_step  # noqa: E402
from jaxsample.params import FIELDS  # noqa: E402

CONFIG, TOKENIZER, WEIGHTS = decode.open_model(decode.MODEL)
PLAIN = [
    Request(prompt=f"import {name}\n\n\n", top_k=k, min_p=0.01 * k, seed=k, max_tokens=20 + 3 * k)
    for k, name in enumerate(["abc", "ast", "os", "re", "sys", "json", "email"])
]
VARIED = [
    *(dataclasses.replace(request, max_tokens=30) for request in DEMO),
    Request(prompt="x = ", min_tokens=5, logit_bias={"<|endoftext|>": 100}, max_tokens=30),
]
NOTHING = Request(prompt="", temperature=1.0, top_p=1.0)
ASKED = {
    name: dataclasses.replace(NOTHING, **{name: value})
    for name, value in {
        **{name: {int: 3, float: 0.5, bool: True}.get(KINDS[name]) for name in NEUTRAL},
        "smoothing_curve": 2.5,
        "dry_base": 2.5,
        "logit_bias": {"self": -math.inf, "7": 2},
        "bad_words": ["import os"],
    }.items()
}
"""For each setting a request that sets only that."""


def serve(requests, among=VARIED):
    """Decodes requests with a program for the rules of these and of `among`."""
    work = jobs.make_jobs(TOKENIZER, [*requests, *among], CONFIG.context)[: len(requests)]
    return batching.serve(WEIGHTS, CONFIG, work)[0]


def text_of(text):
    return text._replace(slot=None)


def run(script, *args):
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, args)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )


def fail(monkeypatch, capsys, *args):
    """Returns the single line with which the decoder fails."""
    monkeypatch.setattr(sys, "argv", ["decode.py", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        decode.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.mark.slow
def test_decoding_a_token_at_a_time_gives_the_logits_of_the_whole_text():
    lengths = jnp.array([3, 11, 1])
    tokens = jax.random.randint(jax.random.key(0), (3, CONFIG.context), 1, CONFIG.vocab)
    expected = jax.jit(model.forward)(WEIGHTS, tokens[:, :32])
    rows = jnp.arange(3)

    logits, cache = jax.vmap(model.prefill, (None, 0, 0))(WEIGHTS, tokens, lengths)
    chex.assert_trees_all_close(logits, expected[rows, lengths - 1], atol=1e-4)
    decode_step = jax.jit(model.decode_step)
    for step in range(8):
        positions = lengths + step
        logits, cache = decode_step(WEIGHTS, cache, tokens[rows, positions], positions)
        chex.assert_trees_all_close(logits, expected[rows, positions], atol=1e-4)


@pytest.mark.slow
def test_the_cache_follows_the_beams():
    """The log-probs of a search are those of the model when it reads the texts again."""
    prompts, lengths = (x[:2] for x in beam.encoded(TOKENIZER, CONFIG))

    def step(state, logits, position):
        key = jax.random.key(position)
        return stochastic_beam_step(key, state, logits, stop_token_ids=[model.END])

    start = init_stochastic_beams(4, 8, (2,))
    found = jax.jit(lambda *args: beam.loop(*args, start, step))(WEIGHTS, prompts, lengths)
    texts = beam.Texts(found.tokens, found.lengths)
    anew = beam.logprobs_of(WEIGHTS, prompts, lengths, texts)
    chex.assert_trees_all_close(found.logprobs, anew, atol=1e-3)
    assert beam.distinct(texts, 8) == 1


@pytest.mark.slow
def test_a_text_is_the_same_whatever_the_schedule():
    """For any slot, any neighbours and any order of arrival."""
    alone = [text_of(serve([r])[0]) for r in VARIED]
    assert len({text.tokens.tobytes() for text in alone}) == len(VARIED)
    slots = [set() for _ in VARIED]
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(VARIED) + len(PLAIN)).tolist()
        texts = serve([[*VARIED, *PLAIN][i] for i in order])
        for i, text in zip(order, texts, strict=True):
            if i < len(VARIED):
                chex.assert_trees_all_equal(text_of(text), alone[i])
                slots[i].add(text.slot)
    assert max(map(len, slots)) > 1


@pytest.mark.slow
def test_nothing_is_traced_for_another_request_or_setting():
    serve(VARIED)
    before = dict(batching.TRACES)
    other = Request(
        prompt="class A:", dry_multiplier=2.0, xtc_probability=0.1, min_p=0.3, top_k=9, seed=7
    )
    assert len(serve([other] * 6 + PLAIN)) == 6 + len(PLAIN)
    assert before == batching.TRACES


@pytest.mark.slow
def test_a_text_ends_with_the_end_of_text_or_after_max_tokens():
    requests = [Request(prompt="import os\n\n\ndef ", seed=s, max_tokens=100) for s in range(8)]
    texts = serve(requests)
    for tokens, logprobs, reason, _ in texts:
        assert np.all(logprobs <= 0)
        assert len(logprobs) == len(tokens) <= 100
        assert model.END not in tokens[:-1]
        assert reason == ("stop" if tokens[-1] == model.END else "length")
        assert reason == "stop" or len(tokens) == 100
    assert {text.reason for text in texts} == {"stop", "length"}


@pytest.mark.slow
def test_bad_logits_end_a_text(capsys):
    broken = WEIGHTS | {"embedding": WEIGHTS["embedding"] * jnp.nan}
    work = jobs.make_jobs(TOKENIZER, VARIED, CONFIG.context)[:1]
    decode.print_texts(TOKENIZER, VARIED[:1], batching.serve(broken, CONFIG, work)[0])
    assert "import os\n" in (out := capsys.readouterr().out)
    assert "error: the logits are not finite, 0 tokens," in out


@pytest.mark.slow
def test_replaying_writes_the_same_texts():
    work = jobs.make_jobs(TOKENIZER, VARIED, CONFIG.context)
    texts, seconds = batching.serve(WEIGHTS, CONFIG, work)
    scripts = [decode.replaying(job, text) for job, text in zip(work, texts, strict=True)]
    again, _ = batching.serve(WEIGHTS, CONFIG, scripts)
    for text, other in zip(texts, again, strict=True):
        chex.assert_trees_all_equal(other._replace(logprobs=None), text._replace(logprobs=None))
    assert np.all(seconds > 0)


def test_every_rule_is_a_setting():
    scalars = [name for name, field in FIELDS.items() if not field.parameter.axes]
    of_loops = {"guidance_scale", "forced_token_id"}
    assert {*scalars, "logit_bias", "bad_words"} == {*NEUTRAL, *of_loops}


@pytest.mark.parametrize("name", [name for name in ASKED if KINDS[name] not in (dict, list)])
def test_a_setting_becomes_params_of_its_own_rule(name):
    params = jobs.make_params([NOTHING, ASKED[name]], TOKENIZER)
    plain, asked = ({n: x for n, x in vars(p).items() if x is not None} for p in params)
    rule = [field for field in FIELDS if FIELDS[field].rule == FIELDS[name].rule]
    assert [*plain] == [*asked] == rule
    for field in {*rule} & {*NEUTRAL}:
        assert plain[field] == np.float32(NEUTRAL[field])
        assert asked[field] == np.float32(getattr(ASKED[name], field))


def test_words_and_biases_become_params():
    _, bias = jobs.make_params([NOTHING, ASKED["logit_bias"]], TOKENIZER)
    assert bias.logit_bias_token_ids.tolist() == [*TOKENIZER.encode("self").ids, 7]
    assert bias.logit_bias.tolist() == [-math.inf, 2]
    none, words = jobs.make_params([NOTHING, ASKED["bad_words"]], TOKENIZER)
    for row, text in enumerate(("import os", "import os ")):
        ids = TOKENIZER.encode(text).ids
        assert words.bad_word_lengths[row] == len(ids)
        assert words.bad_words[row, : len(ids)].tolist() == ids
    assert none.bad_word_lengths.tolist() == [0, 0]


def test_no_unused_rule_is_compiled():
    assert vars(jobs.make_params([NOTHING], TOKENIZER)[0]) == vars(SamplingParams())


@pytest.mark.slow
def test_words_biases_and_lengths_change_a_text():
    lines, ended = VARIED[-2:]
    banned = {id for text in ("self", "self ") for id in TOKENIZER.encode(text).ids}
    free = dataclasses.replace(lines, bad_words=[])
    texts = serve([lines, free, ended])
    assert banned.isdisjoint(texts[0].tokens.tolist())
    assert not banned.isdisjoint(texts[1].tokens.tolist())
    assert (texts[2].reason, len(texts[2].tokens)) == ("stop", 6)


@pytest.mark.exhaustive
def test_one_program_serves_rows_of_all_rules_like_separate_ones():
    requests = [
        dataclasses.replace(request, prompt="class A:\n", seed=seed, max_tokens=20)
        for seed, request in enumerate(ASKED.values())
    ]
    together = [text_of(text) for text in serve(requests, [])]
    for start in range(0, len(requests), 4):
        few = slice(start, start + 4)
        texts = [text_of(text) for text in serve(requests[few], [])]
        chex.assert_trees_all_equal(texts, together[few])


@pytest.mark.slow
def test_the_command_line(tmp_path, monkeypatch, capsys):
    file = tmp_path / "requests.json"
    file.write_text(json.dumps([vars(request) for request in VARIED]))
    monkeypatch.setattr(decode, "REPEATS", 1)
    monkeypatch.setattr(sys, "argv", ["decode.py", "--requests", str(file), "--max-tokens", "7"])
    decode.main()
    out = capsys.readouterr().out
    for expected in (
        "── greedy ──",
        "── seed 5, temperature 1, min_p 0.1 ──",
        '── seed 0, temperature 0.8, top_p 0.95, logit_bias {"def ": 2}, bad_words ["self"]',
        'class Queue:\n    """',
        "length, 7 tokens, log-prob",
        "10 requests through 4 slots; times traced:",
        "69 tokens in",
    ):
        assert expected in out


@pytest.mark.slow
def test_the_demonstration_compiles_once_and_keeps_to_an_order():
    done = run("decode.py", "--max-tokens", 5)
    assert (done.returncode, done.stderr) == (0, "")
    assert "9 requests through 4 slots; times traced: admit 1, write 1\n" in done.stdout
    done = run("decode.py", "--prompt", "x", "--order", "llama_cpp", "--max-tokens", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert "length, 1 token," in done.stdout


def test_a_bad_flag_ends_a_process_with_one_line():
    done = run("decode.py", "--top-p", "1.5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("decode.py: error: argument --top-p: top_p must be in [0, 1], got 1.5\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--temperature", "-1"], "--temperature: temperature must be finite and at least 0"),
        (["--temperature", "nan"], "--temperature: temperature must be finite and at least 0"),
        (["--temperature", "1e99"], "--temperature: temperature must be below 2**31"),
        (["--top-k", "-2"], "--top-k: top_k must be at least -1, got -2"),
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
        (["--order", "mine"], "--order: invalid choice: 'mine'"),
        (
            ["--order", "vllm", "--prompt", "x", "--eta-cutoff", "0.1"],
            "order must contain every stage of the params, but lacks 'eta_cutoff'",
        ),
        (["--typical-p", "2"], "--typical-p: typical_p must be in [0, 1], got 2"),
        (["--repetition-penalty", "0"], "repetition_penalty must be finite and above 0, got 0"),
        (["--dry-allowed-length", "0"], "dry_allowed_length must be at least 1, got 0"),
        (["--p-less", "1"], "--p-less: p_less must be true or false, got 1"),
        (["--logit-bias", "3"], "--logit-bias: logit_bias must be an object of numbers, got 3"),
        (["--logit-bias", '{"a": "b"}'], 'logit_bias["a"] must be a number, got "b"'),
        (["--logit-bias", '{"a": NaN}'], "logit_bias[0] must be finite or -inf, got nan"),
        (["--logit-bias", '{"x y": 1}'], 'by id or text; "x y" is not one token'),
        (["--logit-bias", '{"4096": 1}'], 'by id or text; "4096" is not one token'),
        (["--bad-words", "a"], '--bad-words: bad_words must be a list of strings, got "a"'),
        (["--bad-words", '["a", 3]'], "each of bad_words must be a string, got 3"),
        (["--bad-words", '[""]'], "each of bad_words must be a text"),
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
        ('[{"prompt": "x", "p_less": 1}]', "request 1: p_less must be true or false, got 1"),
        (
            '[{"prompt": "x", "eta_cutoff": true}]',
            "request 1: eta_cutoff must be a number, got true",
        ),
        ('[{"prompt": "x", "bad_words": ["\\ud800"]}]', "each of bad_words must be valid Unicode"),
        ('[{"prompt": "x", "logit_bias": {"a": Infinity}}]', 'logit_bias["a"] must be below 2**31'),
    ],
)
def test_a_bad_file_is_named(tmp_path, monkeypatch, capsys, text, said):
    file = tmp_path / "requests.json"
    file.write_text(text)
    message = fail(monkeypatch, capsys, "--requests", file)
    assert str(file) in message
    assert said in message


def test_the_weights_are_small():
    assert sum(file.stat().st_size for file in decode.MODEL.iterdir()) < 6_000_000


def test_weights_survive_a_file(tmp_path):
    model.save(tmp_path / "weights.npz", WEIGHTS)
    chex.assert_trees_all_equal(model.load(tmp_path / "weights.npz", CONFIG), WEIGHTS)


@pytest.mark.exhaustive
def test_training_writes_a_model_that_decodes(tmp_path):
    done = run("train.py", "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (
        float(line.split()[3]) for line in done.stdout.splitlines() if line.startswith("held-out")
    )
    assert after < before
    done = run("decode.py", "--model", tmp_path, "--prompt", "def ", "--max-tokens", 3)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("method", [exhaustive("coupled"), "tree"])
def test_a_speculative_text_equals_plain_decoding(method):
    drafter = decode.open_weights(speculative.DRAFT_MODEL)[1]
    first = speculative.start(WEIGHTS, drafter, CONFIG, TOKENIZER)
    ends = first.state.lengths + 16
    seeds = [jnp.asarray(of) for of in speculative.seeds_of()]

    def written(number, method):
        step = functools.partial(speculative.step, WEIGHTS, drafter, number=number, method=method)
        run = functools.partial(step, ends=ends, seeds=seeds[0], drafter_seeds=seeds[1])
        return speculative.write(run, first)[0]

    plain, drafted = written(0, "lookup"), written(3, method)
    np.testing.assert_array_equal(plain.state.tokens, drafted.state.tokens)
    np.testing.assert_array_equal(plain.state.lengths, drafted.state.lengths)
    assert (plain.state.lengths > first.state.lengths).all()
    assert int(drafted.steps.sum()) < 0.8 * int(plain.steps.sum())


@pytest.mark.exhaustive
def test_the_pictures_are_drawn_small(tmp_path, monkeypatch):
    committed = {file.name for file in gallery.IMAGES.glob("*.svg")}
    monkeypatch.setattr(gallery, "IMAGES", tmp_path)
    gallery.main()
    assert {file.name for file in tmp_path.iterdir()} == committed
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 60_000
