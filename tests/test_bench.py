import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import logits
from bench.__main__ import main
from bench.baselines import sort_stack_logits
from bench.works import BASELINES
from jaxsample import min_p_logits, scaled_logits, top_k_logits, top_p_logits

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_prints_a_table_and_writes_what_it_measured(tmp_path):
    path = tmp_path / "times.json"
    sizes = ["--batch", "1", "--vocab", "1000", "--dtype", "bfloat16", "--repeats", "1"]
    command = [sys.executable, "-m", "bench", "--quick", *sizes, "--out", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    document = json.loads(path.read_text())
    assert document["versions"].keys() == {"python", "jax", "jaxlib", "jaxsample"}
    assert document["device"].keys() == {"platform", "kind", "processor", "cores"}
    (table,) = document["tables"]
    assert (table["batch"], table["vocab"], table["dtype"]) == (1, 1000, "bfloat16")
    times = table["milliseconds"]
    assert all(time["median"] > 0 and time["repeats"] == 1 for time in times.values())
    assert times.keys() == table["times_as_fast_as"].keys() | set(BASELINES)
    for name, ratios in table["times_as_fast_as"].items():
        assert name in done.stdout
        for baseline in BASELINES:
            assert ratios[baseline] == times[baseline]["median"] / times[name]["median"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--batch 0", "--batch"),
        ("--vocab 63", "--vocab"),
        ("--repeats many", "--repeats"),
        ("--dtype int8", "--dtype"),
        ("--out no/such/folder/times.json", "no/such/folder"),
        ("--fast", "--fast"),
    ],
)
def test_a_bad_option_ends_with_one_line(capsys, arguments, word):
    with pytest.raises(SystemExit, check=lambda end: end.code == 2):
        main(arguments.split())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert word in printed.err


@pytest.mark.slow
def test_the_sort_stack_keeps_what_the_library_keeps():
    x = logits.flat(6, 1000, "float32")
    t, k = np.linspace(0.2, 2, 6, dtype=np.float32), np.array([1, 7, 50, 400, 999, 1000], np.int32)
    p, m = np.linspace(0.5, 0.99, 6, dtype=np.float32), np.linspace(0.3, 0, 6, dtype=np.float32)
    ours = min_p_logits(top_p_logits(top_k_logits(scaled_logits(x, t), k), p), m)
    theirs = sort_stack_logits(x, t, k, p, m)
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(theirs))


@pytest.mark.parametrize(("kind", "expected"), [(logits.peaked, 12), (logits.flat, 0.74 * 32000)])
def test_the_nucleus_is_as_large_as_it_is_said_to_be(kind, expected):
    weights = np.exp(np.asarray(kind(1, 32000, "float32")[0], np.float64))
    mass = np.cumsum(np.sort(weights)[::-1]) / weights.sum()
    assert np.searchsorted(mass, 0.95) + 1 == pytest.approx(expected, rel=0.02)
