"""Compiles a program for a TPU in a separate process, and reads the dumps of the compiler.

The compiler reads its flags once per process and writes all dumps to one folder, and if it crashes,
the process ends. `python -m bench.tpu.compiler CHIP NAME BATCH VOCAB DTYPE FOLDER` is that process.
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
    """The output of the compiler.

    Attributes:
      hlo: the optimised module, scheduled.
      bundles: the scheduled bundles of each of its operations, by name.
    """

    hlo: str
    bundles: dict[str, str]


def compiled(chip: str, name: str, case: Case) -> Compiled:
    """Compiles a program for a chip.

    Raises:
      RuntimeError: if the compiler fails, with the end of its output.
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
    """Returns the operations that share the schedule of another one, by name."""
    found: dict[str, str] = {}
    for group in deduplication.split("key:")[1:]:
        names = [line.strip() for line in group.splitlines() if line.startswith("  ")]
        for one in files.keys() & set(names):
            found |= dict.fromkeys(names, files[one])
    return found


def environment(folder: str) -> dict[str, str]:
    """Returns the variables with which libtpu needs no TPU and dumps little but final bundles."""
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
