"""The fuzzer detects and names wrong results; the cases that it has found stay fixed."""

import sys

import fuzz
import fuzz_rules
import numpy as np
import pytest

import jaxsample as js

pytestmark = pytest.mark.slow

FOUND = [
    ("sample", 1),
    ("laws", 2),
    ("draws", 3),
    ("rule", 4),
    ("rule", 1693762902),
]


@pytest.mark.parametrize(("name", "seed"), FOUND)
def test_a_case(name, seed):
    fuzz.run(name, seed)


def test_a_rule_without_effect_is_detected(monkeypatch):
    monkeypatch.setattr(js, "allowed_logits", lambda x, allowed: x)
    with pytest.raises(AssertionError, match="kept"):
        fuzz_rules.check("allowed_logits", np.random.default_rng(0), 33, "float32")


def test_a_failure_is_reported_as_a_line_that_repeats_it(monkeypatch, capsys):
    def fails(rng, order, vocab, dtype):
        raise AssertionError("something is wrong")

    monkeypatch.setattr(fuzz, "CHECKS", {"sample": (fails, 1)})
    monkeypatch.setattr(sys, "argv", ["fuzz", "--minutes", "0.002", "--seed", "5"])
    assert fuzz.main() == 1
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith('("sample", '))
    ((name, seed),) = eval(line)  # in the format of FOUND
    with pytest.raises(AssertionError, match="something is wrong"):
        fuzz.run(name, seed)
    assert "tokens, " in printed
