"""Compiles a program for a TPU in a process of its own, and reads what the compiler dumps.

The compiler takes its flags once a process and writes all to one folder, and a crash of it ends the
process. `python -m bench.tpu.compiler CHIP NAME BATCH VOCAB DTYPE FOLDER` is that process.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from bench.tpu.chips import CHIPS
from bench.works import Case

HLO = "optimised.hlo"


class Compiled(NamedTuple):
    """What the compiler wrote.

    Attributes:
      hlo: the optimised module, in the order that it runs in.
      bundles: the scheduled bundles of each of its operations, by name.
    """

    hlo: str
    bundles: dict[str, str]


def compiled(chip: str, name: str, case: Case) -> Compiled:
    """A program for a chip.

    Raises:
      RuntimeError: the compiler's last words, where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [chip, name, *map(str, case), folder]
        process = subprocess.run(
            [sys.executable, "-m", __name__, *arguments],
            env=os.environ | environment(folder),
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            raise RuntimeError(f"{name} for {chip}: {process.stderr.strip()[-500:]}")
        files = {
            match[1]: path.read_text(errors="replace")
            for path in Path(folder).iterdir()
            if (match := re.fullmatch(r"\d+-(.+)-\d+-final_bundles\.txt", path.name))
        }
        (equal,) = Path(folder).glob("*-deduplication-map.txt")
        return Compiled((Path(folder) / HLO).read_text(), files | _equal(equal.read_text(), files))


def _equal(deduplication: str, files: dict[str, str]) -> dict[str, str]:
    """The bundles of operations that are scheduled once for several."""
    found: dict[str, str] = {}
    for group in deduplication.split("key:")[1:]:
        names = [line.strip() for line in group.splitlines() if line.startswith("  ")]
        for one in files.keys() & set(names):
            found |= dict.fromkeys(names, files[one])
    return found


def environment(folder: str) -> dict[str, str]:
    """The variables that have libtpu compile without a TPU and dump little but final bundles."""
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_pass_label_regex=final_bundles|dedup"
        ),
    }


def main(chip: str, name: str, batch: str, vocab: str, dtype: str, folder: str) -> None:
    """Compiles in this process."""
    import jax
    from jax.experimental import topologies

    from bench.tpu.programs import program

    work = program(name, Case(int(batch), int(vocab), dtype))
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=CHIPS[chip].topology
    ).devices
    one = jax.sharding.SingleDeviceSharding(devices[0])
    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), work.arguments
    )
    text = jax.jit(work.function).lower(*arguments).compile().as_text()
    (Path(folder) / HLO).write_text(str(text))


if __name__ == "__main__":
    main(*sys.argv[1:])
