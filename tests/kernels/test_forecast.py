"""Instructions counted from a listing, and the model's arithmetic."""

import json
import math

import pytest

from kernels import forecast
from kernels.forecast import Constants, Counted, Layer
from kernels.machine_code import Work, loops, read, times_executed, turns_of, work

LISTING = """
        /*0000*/                   S2R R0, SR_CTAID.X ;                       /* 0x0 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 FADD R4, R4, R5 ;
        /*0030*/                   LDG.E.64 R6, desc[UR4][R8.64] ;
        /*0040*/                   FMNMX.NAN R6, R6, RZ, !PT ;
        /*0050*/                   MUFU.EX2 R7, R6 ;
        /*0060*/               @P1 BRA 0x30 ;
        /*0070*/                   IADD3 R9, R9, 0x1, RZ ;
        /*0080*/               @P2 BRA 0x10 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   BRA 0xa0 ;
"""
"""An outer loop from 10 to 80, an inner one from 30 to 60, and the endless branch behind the end."""


def test_loops_and_what_is_in_them():
    code = read(LISTING)
    assert [one.opcode for one in code[:3]] == ["S2R", "LDG.E.128", "FADD"] and len(code) == 11
    assert loops(code) == [(0x10, 0x80), (0x30, 0x60)]
    assert times_executed(code, []) == [1] * 11
    assert times_executed(code, [5]) == [1, *[5] * 8, 1, 1]
    assert times_executed(code, [5, 3]) == [1, 5, 5, *[15] * 4, 5, 5, 1, 1]


def test_work_by_pipe():
    found = work(read(LISTING), [5, 3])
    assert found == Work(
        instructions=1 + 4 * 5 + 4 * 15 + 2, comparing=15 + 5, special=15, cached_bytes=(5 * 16 + 15 * 8) * 32, turns=16
    )


def test_turns_are_those_of_the_launch():
    assert turns_of("depthwise.forward_kernel", {"STEPS": 4}, (8,)) == [4]
    sizes = {"M": 1000, "BM": 64, "GATED": False}
    assert turns_of("pointwise_backward.one_pass_kernel", sizes, (4, 1)) == [4]
    assert turns_of("norm_act.forward_kernel", {}, (1,)) == []


def launch(**changes):
    one = Counted("depthwise.forward_kernel", 132 * 8, 4, 128, 0, 1 << 20, Work(1000.0, 400.0, 10.0, 3200.0, 4.0))
    return one._replace(**changes)


def test_blocks_are_bound_by_registers_shared_memory_and_warps():
    assert forecast.blocks_at_once(launch()) == 4
    assert forecast.blocks_at_once(launch(registers=32)) == 16
    assert forecast.blocks_at_once(launch(registers=16, warps=1)) == 32
    assert forecast.blocks_at_once(launch(shared_bytes=100 * 1024)) == 2


def test_the_longest_of_execution_bytes_and_waiting_counts():
    known = Constants(clock=1e9, multiprocessors=132, copy_rate=1e12, copy_share=1.0, efficiency=(0.5, 0.5))
    known = known._replace(turn=(0.0, 0.0), launch=0.0)
    assert forecast.seconds(launch(), known) == pytest.approx(8 * 4 * 1000 / 4e9 / 0.5)
    special = launch(work=launch().work._replace(special=1000.0))
    assert forecast.seconds(special, known) == pytest.approx(8 * 8 * 4 * 1000 / 4e9 / 0.5)
    assert forecast.seconds(launch(moved_bytes=10**9), known) == pytest.approx(1e-3)
    assert forecast.seconds(launch(), known._replace(turn=(1e-3, 0.0))) == pytest.approx(2 * 4 * 1e-3)
    assert forecast.library_seconds(10**9, known._replace(launch=1.0)) == pytest.approx(1.001)
    known = known._replace(product_rate=1e12, product_share=0.5)
    assert forecast.library_seconds(10**9, known, operations=10**12) == pytest.approx(2.0)
    assert forecast.library_seconds(10**9, known, operations=10**8) == pytest.approx(1e-3)


def test_a_fit_finds_the_constants_that_made_the_times():
    true = Constants(efficiency=(0.45, 0.3), turn=(1.0e-6, 2.0e-6), launch=2e-6)
    layers = []
    for name in forecast.FAMILIES:
        for size in (1, 4, 16):
            busy = launch(kernel=f"{name}.forward_kernel", programs=132 * 8 * size)
            waiting = busy._replace(work=busy.work._replace(turns=40.0 * size))
            layers += [Layer(name, [one], [1000], 0.0) for one in (busy, waiting)]
    layers = [layer._replace(measured=layer.predicted(true)) for layer in layers]
    found = forecast.fitted(layers, Constants())
    assert forecast.deviation(layers, found) < 1e-6
    assert math.isclose(found.launch, true.launch) and found.efficiency == pytest.approx(true.efficiency)


def test_the_committed_model_says_what_its_constants_and_launches_give(root):
    """profiles/h200/kernel-model.json: each layer's ratio follows from what is in the file, and the fit is as close."""
    kept = json.loads((root / "profiles" / "h200" / "kernel-model.json").read_text(encoding="utf-8"))
    constants = forecast.constants_of("h200", root / "profiles")
    layers = []
    for name, launches, moved, measured in kept["layers"]:
        counted = [Counted(*one[:-1], Work(*one[-1])) for one in launches]
        layers.append(Layer(name, counted, moved, measured))
    ratios = {layer.name: round(layer.predicted(constants) / layer.measured, 3) for layer in layers}
    assert ratios == kept["predicted_over_measured"] and len(ratios) == len(layers) >= 40
    for family, figures in kept["families"].items():
        own = [layer for layer in layers if layer.name.startswith(family)]
        assert round(forecast.deviation(own, constants), 3) == figures["root_mean_square_of_log"] < 0.15


def test_an_unknown_gpu_has_the_assumed_constants(tmp_path):
    assert forecast.constants_of("sm_90", tmp_path) == Constants()
