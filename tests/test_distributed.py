"""The example on real processes: each writes the tokens of one process, and all end together."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from rows import exhaustive

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.append(str(EXAMPLES))

pytest.importorskip("tokenizers")
import batching  # noqa: E402
import decode  # noqa: E402
import distributed_decode  # noqa: E402
import jobs  # noqa: E402
from request import DEMO, Request  # noqa: E402

pytestmark = pytest.mark.slow

LIMIT = 300
"""The timeout in seconds of each wait, larger than needed on a busy machine."""
SOON = 20
"""Seconds within which a process ends after another one is lost."""

SHORT = [
    {"prompt": prompt, "top_k": k, "top_p": 1, "seed": k, "max_tokens": 8 + k % 3}
    for k, prompt in enumerate(["import os\n", "def main(", "class A", "x = ", "for "], 20)
]
VARIED = [vars(request) | {"max_tokens": 10} for request in DEMO]
LONG = [{"prompt": "x = ", "top_k": 9, "top_p": 1, "min_tokens": 60, "max_tokens": 60}]


class Run:
    """A command whose output is read while it runs."""

    def __init__(self, folder, *args):
        self.out = folder / f"{len(list(folder.iterdir()))}.txt"
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, EXAMPLES / "distributed_decode.py", *map(str, args)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds=LIMIT):
        """Returns the exit status and the whole output."""
        return self.process.wait(seconds), self.out.read_text()

    def find(self, pattern, count=1):
        """Returns the groups of `count` matches as soon as there are as many."""
        end = time.monotonic() + LIMIT
        while len(found := re.findall(pattern, text := self.out.read_text(), re.MULTILINE)) < count:
            running = self.process.poll() is None
            assert running, text
            assert time.monotonic() < end, text
            time.sleep(0.05)
        return found

    def pids(self, count):
        """Returns the process ids in the order of the processes."""
        return [int(pid) for _, pid in sorted(self.find(r"^process (\d) of \d: pid (\d+),", count))]


@pytest.fixture
def start(tmp_path):
    """Starts runs and ends all their processes at the end."""
    runs = []

    def start(*args):
        runs.append(Run(tmp_path, *args))
        return runs[-1]

    yield start
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait(SOON)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def flags_of(folder, requests):
    (folder / "requests.json").write_text(json.dumps(requests))
    return "--requests", folder / "requests.json"


def cluster(start, count, *args):
    """Starts each process separately, as on a cluster."""
    address = distributed_decode.loopback()
    told = ["--coordinator", address, "--num-processes", count, "--process-id"]
    return [start(*told, i, *args) for i in range(count)]


def digest_of(requests):
    """Returns the digest of the tokens of a single process without a mesh."""
    config, tokenizer, weights = decode.open_model(decode.MODEL)
    work = jobs.make_jobs(tokenizer, [Request(**r) for r in requests], config.context)
    return distributed_decode.digest(batching.serve(weights, config, work)[0])


@pytest.mark.parametrize(("count", "requests"), [(4, SHORT), exhaustive(2, VARIED)])
def test_every_process_writes_the_tokens_of_a_single_one(start, tmp_path, count, requests):
    status, out = start("--processes", count, *flags_of(tmp_path, requests)).wait()
    assert status == 0, out
    held = re.findall(r"^process (\d) of \d: \d+ tokens, sha256 (\w+)$", out, re.MULTILINE)
    digest = digest_of(requests)
    assert sorted(held) == [(str(id), digest) for id in range(count)]
    assert out.count(", slot ") == len(requests)  # only one process prints the texts


def test_a_killed_process_of_a_cluster_ends_the_others(start, tmp_path):
    """The processes have no common parent, and one is killed while decoding."""
    first, second = cluster(start, 2, *flags_of(tmp_path, LONG))
    first.find("tokens, sha256")  # the second decoding has started
    os.kill(*second.pids(1), signal.SIGKILL)
    status, out = first.wait(SOON)
    assert status == 1
    assert re.search(
        r"^process 0: error: another process seems to be gone: .+$", out, re.MULTILINE
    ), out
    assert out.endswith("error: process 0 ended with status 2\n")
    status, out = second.wait(SOON)
    assert status == 1
    assert out.endswith("error: process 1 ended by SIGKILL\n")


def test_a_killed_process_ends_the_others_of_its_parent(start):
    run = start("--processes", 2)
    pids = run.pids(2)
    os.kill(pids[1], signal.SIGKILL)
    status, out = run.wait(SOON)
    assert status == 1
    assert out.endswith("error: process 1 ended by SIGKILL; the others were stopped\n")
    assert not any(map(alive, pids))


def test_the_others_end_without_process_0(start, tmp_path):
    first, *others = cluster(start, 4, *flags_of(tmp_path, LONG))
    first.find("tokens, sha256")
    os.kill(*first.pids(1), signal.SIGKILL)
    for other in others:
        status, out = other.wait(SOON)
        assert status == 1
        assert re.search(
            r"error: another process seems to be gone|ended .+, as JAX ends one that", out
        )


def test_an_unresponsive_process_is_abandoned(start, tmp_path):
    run = start("--processes", 2, "--patience", 5, *flags_of(tmp_path, LONG))
    run.find("tokens, sha256")
    os.kill(run.pids(2)[1], signal.SIGSTOP)
    status, out = run.wait(SOON)
    assert status == 1
    assert re.search("error: process 0 ended .+, as JAX ends one that has lost another", out)


def test_no_process_outlives_its_parent(start):
    run = start("--processes", 2)
    pids = run.pids(2)
    run.process.kill()
    end = time.monotonic() + SOON
    while any(map(alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--processes", "0"], "--processes must be at least 1, and alone, got 0"),
        (["--processes", "2", "--process-id", "1"], "at least 1, and alone, got 2"),
        (["--processes", "2", "--patience", "0"], "--patience must be at least 1, got 0"),
        (["--processes", "2", "--top-p", "2"], "--top-p: top_p must be in [0, 1], got 2"),
        (["--processes", "2", "--model", "nope"], "No such file or directory: 'nope/config.json'"),
    ],
)
def test_a_bad_flag_is_named_once(monkeypatch, capsys, args, said):
    monkeypatch.setattr(sys, "argv", ["distributed_decode.py", *args])
    with pytest.raises(SystemExit) as ended:
        distributed_decode.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_shards_of_the_example_must_be_whole_chunks(monkeypatch):
    _, _, weights = decode.open_model(decode.MODEL)
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="4096 tokens must split into whole chunks of 256 over"):
        distributed_decode.place(weights)
