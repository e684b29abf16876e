import dataclasses
import importlib.metadata
import json
import math
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from rows import ON_GPU

from bench import (
    bars,
    gpu,
    logits,
    memory,
    model,
    peers,
    performance,
    requests,
    scaling,
    tpu_static,
)
from bench.__main__ import main
from bench.baselines import argmax, sort_stack_logits
from bench.peers.borrowed import borrow
from bench.sizes import QUICK, Sizes
from bench.timing import Timing, measure
from bench.works import BASELINES, Call
from jaxsample import min_p_logits, scaled_logits, top_k_logits, top_p_logits

ROOT = Path(__file__).parent.parent


@pytest.mark.exhaustive
def test_a_table_is_printed_and_the_measurements_are_written(tmp_path):
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


@pytest.mark.exhaustive
def test_rows_of_the_model_often_keep_more_than_64_tokens(monkeypatch, capsys):
    monkeypatch.setattr(model, "ROWS", 512)
    monkeypatch.setattr(model, "BATCHES", (8,))
    monkeypatch.setattr("sys.argv", ["bench.model", "--repeats", "1"])
    model.main()
    _, sizes, times = capsys.readouterr().out.split("\n\n")
    beyond = [int(line.split("|")[3].strip(" %")) for line in sizes.splitlines()[2:]]
    assert beyond[0] > 50 > beyond[1] > beyond[2] > 0
    assert len(times.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--batch 0", "--batch"),
        ("--vocab 63", "--vocab"),
        ("--repeats many", "--repeats"),
        ("--dtype int8", "--dtype"),
        ("--out no/such/folder/times.json", "no/such/folder"),
        ("--fast", "--fast"),
        ("--report --batch 8", "--batch"),
        ("--report --rules", "--rules"),
    ],
)
def test_a_bad_option_is_reported_in_one_line(capsys, arguments, word):
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
def test_the_nucleus_has_the_documented_size(kind, expected):
    weights = np.exp(np.asarray(kind(1, 32000, "float32")[0], np.float64))
    mass = np.cumsum(np.sort(weights)[::-1]) / weights.sum()
    assert np.searchsorted(mass, 0.95) + 1 == pytest.approx(expected, rel=0.02)


def nuclei(vocab):
    """Returns the number of tokens that top-p .95 keeps in text-like rows."""
    weights = np.exp(np.asarray(logits.text(128, vocab, "float32"), np.float64))
    mass = np.cumsum(np.sort(weights, axis=-1)[:, ::-1], axis=-1)
    return np.sum(mass < 0.95 * mass[:, -1:], axis=-1) + 1


@pytest.mark.slow
def test_estimates_count_text_like_rows_that_need_the_search():
    searched = nuclei(128_256) > 64
    assert searched.sum() == tpu_static.TEXT_ROWS
    assert searched.reshape(-1, 8).any(1).sum() == tpu_static.TEXT_BLOCKS


def test_text_like_rows_have_the_nuclei_of_a_language_model():
    sizes = nuclei(32000)
    assert np.median(sizes) == pytest.approx(10, abs=1)
    assert np.mean(sizes > 64) == pytest.approx(0.1, abs=0.01)
    assert 500 < np.quantile(sizes, 0.99) < 1500


@pytest.fixture
def _no_clock(monkeypatch):
    """Gives every function a time of one millisecond and compiles nothing."""

    def measured(works, most_repeats, label):
        return {name: Timing(1.0, (1.0, 1.0), most_repeats) for name in works}

    for module in (bars, gpu, performance, scaling):
        monkeypatch.setattr(module, "measure", measured)
    monkeypatch.setattr(bars, "compile_seconds", lambda function, arguments, repeats: 3.0)
    analysis = types.SimpleNamespace(temp_size_in_bytes=4096)
    program = types.SimpleNamespace(memory_analysis=lambda: analysis)
    monkeypatch.setattr(memory, "compiled", lambda work: program)
    monkeypatch.setitem(peers.PEERS, "nobody", peers.Peer(("nobody",), "bench.peers.nobody.draw"))


@pytest.mark.slow
@pytest.mark.usefixtures("_no_clock")
def test_the_report_writes_data_text_and_plots(tmp_path, capsys):
    path = tmp_path / "times.json"
    main(["--report", "--quick", "--out", str(path)])
    printed = capsys.readouterr().out

    document = json.loads(path.read_text())
    check_report(document)
    assert document["absent_peers"]["nobody"].startswith("ModuleNotFoundError")
    assert document["peers_milliseconds"]["8"]["sort stack"]["median"] == 1
    assert [point["vocab"] for point in document["scaling"]["vocab"]] == list(QUICK.vocabs)
    assert document["memory"][0]["of_logits"] == 4096 / (QUICK.batch * QUICK.vocab * 4)

    text = path.with_suffix(".md").read_text()
    assert text in printed
    for words in ("Not measured: nobody", "python -m bench --report --quick", "(times.png)"):
        assert words in text
    for line in document["bars"]:
        assert f"| {line['work']} " in text
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "jaxsample, k, p, min-p" in path.with_suffix(".svg").read_text()


@pytest.mark.exhaustive
def test_the_report_measures(tmp_path):
    path = tmp_path / "times.json"
    command = [sys.executable, "-m", "bench", "--report", "--quick", "--out", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_report(json.loads(path.read_text()))


@pytest.mark.usefixtures("_no_clock")
def test_a_gpu_is_measured_by_its_own_clock(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(gpu, "compiled", lambda work: None)
    monkeypatch.setattr(gpu, "ready", lambda work: work)
    monkeypatch.setattr(peers, "present", lambda: ({}, {gpu.PEER: "no such wheel"}))

    def kernels(work):
        twice = work.function is not argmax
        return gpu.Kernels(microseconds=20.0 * (1 + twice), operations=4.0)

    monkeypatch.setattr(gpu, "kernels", kernels)
    path = tmp_path / "times.json"
    gpu.main(["--batch", "2", "--vocab", "256", "--out", str(path)])
    text = path.with_suffix(".md").read_text()
    assert "Not measured: FlashInfer (no such wheel)" in text
    assert re.search(r"\| greedy +\| +40 \| +2 \| +4 \| +1000 \|", text)
    assert "2 x 256 bfloat16" in capsys.readouterr().out
    tables = json.loads(path.read_text())["tables"]
    assert [table["dtype"] for table in tables] == ["float32", "bfloat16"]
    for table in tables:
        assert table["works"]["jnp.argmax"]["gpu"] == {"microseconds": 20.0, "operations": 4.0}


def test_the_events_of_the_streams_of_a_gpu_are_added_up():
    def named(name, **parts):
        return types.SimpleNamespace(name=name, **parts)

    def line(name, *durations):
        return named(name, events=[named("a kernel", duration_ns=ns) for ns in durations])

    lines = [line("Stream #14(Compute)", 5.0, 7.0), line("XLA Ops", 12.0), line("Stream #9", 1.0)]
    planes = [
        named("/host:CPU", lines=[line("Stream", 100.0)]),
        named("/device:GPU:0", lines=lines),
    ]
    assert gpu.durations(types.SimpleNamespace(planes=planes)) == [5.0, 7.0, 1.0]


def test_a_profile_contains_the_work_of_a_gpu():
    doubled = jax.jit(lambda x: 2 * x)
    found = gpu.kernels(Call(lambda: doubled(np.ones(3, np.float32))))
    assert (found.operations > 0) == (found.microseconds > 0) == ON_GPU


def test_measuring_without_a_gpu_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(gpu.jax, "default_backend", lambda: "cpu")
    with pytest.raises(SystemExit, match="needs a GPU, and JAX runs on cpu"):
        gpu.main([])
    with pytest.raises(SystemExit, check=lambda end: end.code == 2):
        gpu.main(["--batch", "0"])
    assert capsys.readouterr().err.startswith("python -m bench.gpu: argument --batch: must be in")


def check_report(document):
    assert "jaxsample" in document["versions"]
    assert len(document["bars"]) == 15 + len(QUICK.odd_vocabs)
    for line in document["bars"]:
        assert line["value"] > 0
        assert line["bar"] > 0
        assert line["stretch"] > 0
        assert line["verdict"] in ("missed", "bar", "stretch")
    measured = document["peers_milliseconds"][str(QUICK.peer_batches[0])]
    assert measured.keys() >= {peers.OURS, peers.OURS_T_LAST}
    assert (measured.keys() | document["absent_peers"].keys()) >= peers.PEERS.keys()
    assert len(document["memory"]) == 6


@pytest.mark.parametrize(
    ("value", "bar", "stretch", "verdict"),
    [
        (59, 60, 100, "missed"),
        (60, 60, 100, "bar"),
        (100, 60, 100, "stretch"),
        (0.13, 0.12, 0.08, "missed"),
        (0.12, 0.12, 0.08, "bar"),
        (0.08, 0.12, 0.08, "stretch"),
        (math.nan, 0.12, 0.08, "missed"),
    ],
)
def test_the_verdict_of_a_line(value, bar, stretch, verdict):
    assert bars.Line("work", value, "of jnp.argmax", bar, stretch).verdict == verdict


def test_a_peer_is_left_out_before_it_takes_seconds(monkeypatch):
    def measured(works, most_repeats, label):
        return {name: Timing(600.0, (600.0, 600.0), 3) for name in works}

    monkeypatch.setattr(scaling, "measure", measured)
    sizes = Sizes(vocabs=(64, 128, 512), vocabs_batch=2, batches=(), repeats=1)
    points = scaling.scaling(sizes, {"sort stack": peers.PEERS["sort stack"]})["vocab"]
    assert ["sort stack" in point.timings for point in points] == [True, True, False]
    assert all(peers.OURS in point.timings for point in points)


def test_each_call_is_prepared_outside_of_the_measurement():
    events = []
    call = Call(lambda: events.append("run"), lambda: events.append("prepare"))
    timing = measure({"call": call}, 2, "")["call"]
    assert timing.repeats == 2
    assert events == ["prepare", "run"] * (len(events) // 2)


def test_every_stage_sets_every_field():
    params = jax.eval_shape(lambda: requests.every_stage(2, 64))
    fields = [field.name for field in dataclasses.fields(params) if field.metadata]
    assert [name for name in fields if getattr(params, name) is None] == []


def test_a_function_is_borrowed_without_the_imports_of_its_file(tmp_path, monkeypatch):
    (tmp_path / "lender-1.dist-info").mkdir()
    (tmp_path / "lender-1.dist-info" / "METADATA").write_text("Name: lender\nVersion: 1\n")
    (tmp_path / "lender.py").write_text(
        "import no_such_package\n"
        "UNIT = 2\n"
        "def twice(x: no_such_package.Number): return UNIT * plus(x, 0)\n"
        "def plus(x, y): return given.add(x, y)\n"
        "no_such_package.register(twice)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (twice,) = borrow("lender", "lender.py", "twice", given=np)
    assert twice(21) == 42
    with pytest.raises(LookupError, match=r"lender/lender.py has no thrice"):
        borrow("lender", "lender.py", "thrice")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        borrow("nobody", "lender.py", "twice")
