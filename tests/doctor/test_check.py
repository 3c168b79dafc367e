"""Checks: their limits, what an error becomes, and what is made of many ranks' words."""

from __future__ import annotations

import threading
import time

from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import TopologyError
from dmt_plugin.doctor import tiny
from dmt_plugin.doctor.check import Check, Finding, merged, ranks_in_words, run_limited, worst
from dmt_plugin.doctor.program import Diagnosis
from dmt_plugin.doctor.text import WIDTH, written
from dmt_plugin.topology.shape import Topology


def test_a_check_that_hangs_is_a_failed_check():
    forever = threading.Event()
    started = time.monotonic()
    check = run_limited("links", lambda: (forever.wait(30), Finding("late"))[1], 0.2, "pull the cable")
    assert time.monotonic() - started < 5
    forever.set()
    assert check.status == "fail" and check.stuck
    assert "0.2 s" in check.finding.found and check.finding.change == "pull the cable"


def test_an_error_is_a_failed_check_with_its_words():
    def broken() -> Finding:
        raise TopologyError("3 hosts for 4 ranks; set dmt.topology.hosts")

    check = run_limited("topology", broken, 5)
    assert check.status == "fail" and not check.stuck
    assert "TopologyError: 3 hosts for 4 ranks" in check.finding.found


def test_ranks_that_agree_speak_once_and_others_are_named():
    same = [Check("ninja", Finding("1.11"), s) for s in (0.1, 0.3, 0.2)]
    assert merged(same) == Check("ninja", Finding("1.11"), 0.3)
    odd = merged([*same, Check("ninja", Finding("none", "fail", "ninja", "install it"), 0.0)])
    assert odd.status == "fail" and odd.finding.change == "install it"
    assert odd.finding.found == "ranks 0-2: 1.11; rank 3: none"


def test_the_worst_decides_and_a_warning_is_no_failure():
    assert worst([]) == "ok" and worst(["skip", "ok"]) == "skip" and worst(["warn", "fail", "ok"]) == "fail"
    warned = Diagnosis((Check("ninja", Finding("none", "warn", "ninja", "pip install ninja"), 0.0),), "alone", 1)
    failed = Diagnosis((*warned.checks, Check("links", Finding("none", "fail"), 0.0)), "alone", 1)
    assert (warned.exit_status, failed.exit_status) == (0, 1)
    page = written(failed)
    assert "expected ninja" in page and "change pip install ninja" in page and "FAIL  links" in page
    assert "1 warn, 1 fail; exit status 1" in page
    assert max(map(len, page.splitlines())) <= WIDTH


def test_rank_numbers_as_words():
    assert ranks_in_words([3]) == "rank 3"
    assert ranks_in_words([6, 0, 1, 2, 3]) == "ranks 0-3, 6"


def test_there_is_a_table_for_every_host():
    """A tower for each of nine hosts needs nine features."""
    topology = Topology(9, 1)
    tables = tiny.tables_for(topology)
    config = tiny.config({"module": "dlrm", "dim": 4}, topology, 60.0)
    model = transform(tiny.build(tables), tiny.batch(0, 4, tables)[:2], config, topology)
    assert len(model.plan.towers) == 9 and tiny.tables_for(Topology(2, 1)) == tiny.TABLES
