"""The table that several runs make together: what each found, and the peer that is hardest."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from peers.catalogue import Variant
from peers.figures import Column
from peers.report import lines, merged, row

US, ONE, OTHER = Variant("headrace", "a"), Variant("vllm", "b"), Variant("openvino", "c")
SPEED = Column("16 at once", "batch16", "tok/s", more_is_better=True, target=3.0)
DELAY = Column("TTFT", "ttft", "ms", more_is_better=False)


def test_the_ratio_is_to_the_peer_that_we_do_worst_against() -> None:
    assert row(SPEED, {US: 300.0, ONE: 100.0, OTHER: 150.0}, {})["best_peer"] == OTHER.name
    made = row(DELAY, {US: 30.0, ONE: 100.0, OTHER: 150.0}, {})
    assert (made["best_peer"], made["ratio"]) == (ONE.name, 0.3)


def test_a_run_with_one_peer_keeps_what_another_run_found_beside_others() -> None:
    before = row(SPEED, {US: 300.0, ONE: 100.0}, {ONE.name: 0.5})
    made = merged(before, row(SPEED, {US: 200.0, OTHER: 100.0}, {OTHER.name: 0.4}))
    assert made["figures"] == {US.name: 200.0, ONE.name: 100.0, OTHER.name: 100.0}
    assert made["ratios"] == {ONE.name: 3.0, OTHER.name: 2.0}
    assert (made["best_peer"], made["ratio"]) == (OTHER.name, 2.0)
    assert made["shares"] == {ONE.name: 0.5, OTHER.name: 0.4}


def test_a_run_alone_leaves_the_ratios_that_were_found() -> None:
    before = row(SPEED, {US: 300.0, ONE: 100.0}, {})
    made = merged(before, row(SPEED, {US: 330.0}, {}))
    assert (made["best_peer"], made["ratio"]) == (ONE.name, 3.0)
    assert "target 3" in lines(made)[0]
