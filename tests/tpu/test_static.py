import functools
import importlib.util
import json

import pytest
from rows import exhaustive

from bench import tpu_static
from bench.tpu import bundles, hlo
from bench.tpu.chips import CHIPS
from bench.tpu.compiler import Compiled, compiled
from bench.tpu.estimate import SEARCH_TURNS, cheapest, dearest
from bench.works import Case

pytestmark = pytest.mark.tpu_aot

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the extra tpu)"
)

LARGE = Case(128, 128_256, "float32")

DUMP = """= control target key start
LB: loop body
= control target key end

     0   :  { %1 = vsyncpa [#allocation1], 0 }
   0x1 LB: > { %p1 = scmp.ge.s32.totalorder %s1, 9  ;;  %2 = dma.hbm_to_vmem /*
window_bounds: (16, 24) */ }
   0x2   :  {} /* End region 14 */
   0x3 LB: >> { %v1 = vld [vmem:[%s1] sm:$0xff] }
   0x4   : >> { %p2 = scmp.ge.s32.totalorder %s2, 5 /* loop exit test */ }
   0x5   : > { %3 = sbr.rel (!%p2) target = $region3 }
   0x6 LB: >> { %v2 = vld [vmem:[%s1] sm:$0xff] }
   0x7   : > { %p3 = scmp.ge.s32.totalorder %s3, 10 /* loop exit test */ }
   0x8   :  { %4 = sbr.rel (!%p3) target = $region1 }
"""

MODULE = """HloModule jit_f, is_scheduled=true

%fused (param_0.1: f32[8,1024]) -> f32[8,128] {
  %param_0.1 = f32[8,1024]{1,0:T(8,128)} parameter(0)
  ROOT %slice.1 = f32[8,128]{1,0:T(8,128)S(1)} slice(%param_0.1), slice={[0:8], [0:128]}
}

%body (s: (f32[8,128], /*index=1*/s32[])) -> (f32[8,128], s32[]) {
  %s = (f32[8,128]{1,0:T(8,128)}, /*index=1*/s32[]{:T(128)}) parameter(0)
  %g = f32[8,128]{1,0:T(8,128)} get-tuple-element(%s), index=0
  %dear = f32[8,128]{1,0:T(8,128)S(1)} negate(%g), metadata={op_name="jit(f)/while/neg"}
  ROOT %t = (f32[8,128]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%dear, %g)
}

%condition (s: (f32[8,128], s32[])) -> pred[] {
  %c = (f32[8,128]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  ROOT %true = pred[]{:T(512)} constant(true)
}

%nothing (q: f32[8,128]) -> f32[8,128] {
  ROOT %q = f32[8,128]{1,0:T(8,128)} parameter(0)
}

%search (r: f32[8,128]) -> f32[8,128] {
  %r = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %w = (f32[8,128]{1,0:T(8,128)}, s32[]{:T(128)}) while(%r), condition=%condition, body=%body
}

ENTRY %main (x: f32[8,1000]) -> f32[8,128] {
  %x = f32[8,1000]{1,0:T(8,128)} parameter(0)
  %copy-start = (f32[8,1000]{1,0:T(8,128)S(1)}, f32[8,1000]{1,0:T(8,128)}) copy-start(%x)
  %f = f32[8,128]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%fused
  %copy-done = f32[8,1000]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  ROOT %if = f32[8,128]{1,0} conditional(%f, %f, %f), branch_computations={%nothing, %search}
}
"""


def test_bundles_count_once_per_iteration():
    # Two bundles outside; ten iterations of two, five times two, one, one (the inner loop) and one.
    assert bundles.schedule(DUMP) == (2 + 10 * (2 + 5 * 2 + 1 + 1 + 1), 1)
    assert bundles.schedule(DUMP, [3]) == (2 + 10 * (2 + 5 * 2 + 1 + 3 + 1), 1)


def test_a_bundle_from_outside_does_not_end_a_loop():
    dump = """
     0   :  { %1 = vsyncpa [#allocation1], 0 }
   0x1 LB: > { %v1 = vld [vmem:[%s1] sm:$0xff] }
   0x2   :  { %s9 = sshll.u32 (%p2), 1 }
   0x3   : > { %p2 = scmp.ge.s32.totalorder %s2, 16 /* loop exit test */ }
   0x4   :  { %4 = sbr.rel (!%p2) target = $region1 }
"""
    assert bundles.schedule(dump) == (1 + 2 * 16 + 1 + 1, 0)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 0),
        ("f32[128,2004,64]{2,0,1:T(8,128)}", 128 * 2004 * 128 * 4),
        ("f32[128,2004,64]{0,2,1:T(8,128)}", 128 * 2004 * 64 * 4),
        ("bf16[100]{0:T(256)(128)(2,1)}", 512),
        ("(pred[128]{0:T(512)(128)(4,1)}, s32[]{:T(128)}, u32[]{:S(2)})", 512 + 4),
    ],
)
def test_bytes_in_hbm_are_padded_to_tiles(shape, size):
    assert hlo.hbm_bytes(shape) == size


def test_slices_and_updates_count_only_the_bytes_they_access():
    module = hlo.parse("""
ENTRY %main (x: f32[64,128], i: s32[]) -> f32[64,128] {
  %x = f32[64,128]{1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %some = f32[8,128]{1,0:T(8,128)S(1)} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={8,128}
  ROOT %new = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%x, %some, %i, %i)
}
""")
    operations = module.computations["main"]
    some, new = operations["some"], operations["new"]
    index = 2 * 4
    assert hlo.bytes_read(module, operations, some) == 4096 + index
    assert hlo.bytes_written(operations, some) == 0
    assert hlo.bytes_read(module, operations, new) == index
    assert hlo.bytes_written(operations, new) == 4096


@pytest.mark.parametrize(
    ("test", "turns"),
    [
        ("compare(%i, %n), direction=LT", 32),
        ("compare(%i, %n), direction=NE", None),
        ("compare(%n, %i), direction=LT", None),
        ("and(%i, %n)", None),
    ],
)
def test_iterations_of_a_counted_loop(test, turns):
    module = hlo.parse(f"""
%count (c: (s32[], f32[8])) -> pred[] {{
  %c = (s32[]{{:T(128)}}, /*index=1*/f32[8]{{0:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%c), index=0
  %n = s32[]{{:T(128)}} constant(32)
  ROOT %test = pred[]{{:T(512)}} {test}
}}

ENTRY %main (x: (s32[], f32[8])) -> (s32[], f32[8]) {{
  ROOT %w = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}) while(%x), condition=%count, body=%count
}}
""")
    assert hlo.turns(module, module.computations["main"]["w"]) == turns


def test_loops_conditionals_and_copies_are_counted():
    chip = CHIPS["v5e"]._replace(bandwidth=CHIPS["v5e"].clock)  # one byte per cycle
    bundle = "   0x1   :  { nop }\n"
    program = Compiled(MODULE, {"f": 5000 * bundle, "dear": 100 * bundle})
    settled, searched = cheapest(program, chip), dearest(program, chip)
    read, copied = 8 * 128 * 4, 8 * 1024 * 4
    # While the fusion runs its 5,000 bundles, it uses HBM for a part and leaves it to the copy
    # otherwise.
    assert settled.cycles == 5000 + copied - (5000 - read)
    assert settled.read == read + copied
    assert searched.cycles - settled.cycles == SEARCH_TURNS * read
    assert settled.unscheduled == []
    assert [cost.source for cost in searched.costs if cost.name == "dear"] == ["while/neg"]


def test_the_mass_of_rows_is_computed_if_it_is_needed():
    shape, loop = "f32[8,128]{1,0:T(8,128)}", "  ROOT %w ="
    mass = f'  %m = {shape} negate(%r), metadata={{op_name="jit(f)/row_mass/cond/neg"}}\n'
    program = Compiled(MODULE.replace(loop, mass + loop), {})
    for weighed in (False, True):
        found = cheapest(program, CHIPS["v5e"], weighed=weighed)
        assert ("m" in [cost.name for cost in found.costs]) == weighed


@needs_libtpu
@pytest.mark.parametrize("chip", CHIPS)
def test_a_maximum_reads_its_logits_once(chip):
    case = Case(8, 4096, "float32")
    program = compiled(chip, "jnp.argmax", case)
    found = cheapest(program, CHIPS[chip])
    size = case.batch * case.vocab * 4
    assert size <= found.read < 1.1 * size
    assert found.cycles >= found.read / CHIPS[chip].bytes_a_cycle
    assert found.unscheduled == found.unknown == []
    assert dearest(program, CHIPS[chip]) == found


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "of_argmax", "of_xla"),
    [
        ("greedy", 0.65, 0.7),
        ("categorical", 1.0, 0.6),
        exhaustive("T .8", 1.2, 0.7),
        exhaustive("top-k 64", 1.0, 0.5),
        ("T .8, k 50, p .95, min-p .02", 1.2, 0.5),
    ],
)
def test_kernels_are_used_if_they_are_estimated_to_be_faster(name, of_argmax, of_xla):
    ours, xla, argmax = map(on_v5e, (name, f"{name}, XLA", "jnp.argmax"))
    assert ours.cycles < of_argmax * argmax.cycles
    assert ours.cycles < of_xla * xla.cycles
    logits = LARGE.batch * LARGE.vocab * 4
    assert logits <= ours.read < 1.05 * logits


@functools.cache
def on_v5e(name):
    return cheapest(compiled("v5e", name, LARGE), CHIPS["v5e"])


@needs_libtpu
def test_a_program_that_does_not_compile_says_so():
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        compiled("v5e", "nothing", Case(8, 4096, "float32"))


@needs_libtpu
def test_tables_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tpu_static, "THEIRS", {"jnp.argmax": (), "nothing": ()})
    monkeypatch.setattr(tpu_static, "OURS", {"greedy": ()})
    out = tmp_path / "static.json"
    sizes = "--chip v5e --batch 8 --vocab 4096 --dtype float32"
    tpu_static.main([*sizes.split(), "--out", str(out)])
    (table,) = json.loads(out.read_text())["tables"]
    assert table["programs"]["greedy"]["settled"]["cycles"] > table["floor"]
    assert "KeyError" in table["programs"]["nothing"]["failure"]
    words = out.with_suffix(".md").read_text()
    assert "Nothing here was measured" in words
    assert "greedy, settled" in words
