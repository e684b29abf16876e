"""The example of structured text: a grammar engine on the host, the draw on the device."""

import json
import sys
from pathlib import Path

import chex
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent.parent / "examples"))

for package in ("tokenizers", "llguidance", "jsonschema"):
    pytest.importorskip(package)
import decode  # noqa: E402
import jobs  # noqa: E402
import jsonschema  # noqa: E402
import structured  # noqa: E402
import structured_speculative as speculative  # noqa: E402
from request import Request  # noqa: E402
from structured import DEMO  # noqa: E402

pytestmark = pytest.mark.slow

CONFIG, TOKENIZER, WEIGHTS = decode.open_model(decode.MODEL)


def write(seeds, rows=DEMO, max_tokens=120, **settings):
    """Decodes rows of prompt and schema, and returns the texts with their verdicts."""
    requests = [
        Request(prompt=prompt, seed=seed, max_tokens=max_tokens, **settings)
        for seed, (prompt, _) in zip(seeds, rows, strict=True)
    ]
    work = jobs.make_jobs(TOKENIZER, requests, CONFIG.context)
    schemas = [schema for _, schema in rows]
    grammars = structured.Grammars(TOKENIZER.to_str(), CONFIG.vocab, schemas)
    return structured.write(WEIGHTS, CONFIG, work, grammars)


def spell(text):
    return TOKENIZER.decode(text.tokens.tolist())


@pytest.mark.parametrize(("seed", "temperature"), [(0, 0.8), (4, 0.0), (8, 50.0)])
def test_every_constrained_text_is_json_of_its_schema(seed, temperature):
    texts = write(range(seed, seed + 4), temperature=temperature)
    for text, (_, schema) in zip(texts, DEMO, strict=True):
        assert np.all(text.logprobs <= 0)
        if schema is None:
            continue
        assert text.reason == "stop"
        jsonschema.validate(json.loads(spell(text)), schema)
    with pytest.raises(ValueError, match=r"Expecting value|Extra data"):  # needs the mask
        json.loads(spell(texts[3]))


def test_a_text_is_the_same_beside_other_grammars():
    function, *_, free = write([5, 6, 7, 8])
    rows = [DEMO[3], DEMO[1], DEMO[0], DEMO[0]]
    other_free, _, first, second = write([8, 3, 5, 9], rows)
    chex.assert_trees_all_equal(first[:2], function[:2])
    chex.assert_trees_all_equal(other_free[:2], free[:2])
    assert spell(first) != spell(second)


def test_a_text_that_was_cut_short_says_so():
    texts = write(range(4), max_tokens=8)
    for text, (_, schema) in zip(texts[:2], DEMO, strict=False):
        assert text.reason == "length"
        said = structured.verdict(spell(text), text.reason, schema)
        assert said == "length: max_tokens ran out before the JSON was complete"
    assert structured.verdict("2", "stop", {"type": "string"}).startswith("stop, not valid: 2 is")
    assert structured.verdict("[", "stop", None).startswith("stop, not valid: Expecting value")
    assert structured.verdict("[]", "stop", None) == "stop, valid"


def test_drafts_that_keep_to_the_grammar_change_no_text():
    models = WEIGHTS, decode.open_weights(speculative.DRAFT_MODEL)[1]
    plain, fast = (speculative.write(models, CONFIG, TOKENIZER, n, 60) for n in (0, 3))
    assert fast.texts == plain.texts
    np.testing.assert_array_equal(fast.ended, plain.ended)
    assert fast.steps < 0.8 * plain.steps
    for text, ended, (_, schema) in zip(fast.texts, fast.ended, DEMO, strict=True):
        if ended and schema is not None:
            jsonschema.validate(json.loads(TOKENIZER.decode(text)), schema)
    assert fast.ended.any()


def test_the_command_line(tmp_path, monkeypatch, capsys):
    file = tmp_path / "schema.json"
    file.write_text('{"enum": ["left", "right", 3]}')
    flags = ["--schema", str(file), "--seed", "3", "--max-tokens", "20"]
    monkeypatch.setattr(sys, "argv", ["structured.py", *flags])
    structured.main()
    out = capsys.readouterr().out
    assert out.count("── stop, valid ──") == 3
    assert "── seed 6, temperature 0.8, top_p 0.95 ──\n" in out


@pytest.mark.parametrize(
    ("flags", "schema", "said"),
    [
        ([], '{"type": "word"}', "schema: Invalid type: word"),
        ([], "3", "schema.json must hold a JSON object"),
        ([], "{", "Expecting property name"),
        (["--max-tokens", "300"], "{}", "max_tokens 300 and the"),
        (["--top-p", "2"], "{}", "top_p must be in [0, 1], got 2"),
    ],
)
def test_errors_are_reported_in_one_line(tmp_path, monkeypatch, capsys, flags, schema, said):
    file = tmp_path / "schema.json"
    file.write_text(schema)
    monkeypatch.setattr(sys, "argv", ["structured.py", "--schema", str(file), *flags])
    with pytest.raises(SystemExit) as ended:
        structured.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert said in err
