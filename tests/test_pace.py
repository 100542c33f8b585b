from __future__ import annotations

import pytest

from nexus_vdb.cli import pace
from nexus_vdb.cli.common import progress_bar
from nexus_vdb.cli.pace import Pace


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def test_a_job_from_nothing(clock: Clock) -> None:
    whole = Pace()
    assert whole.left(0, 100) is None
    clock.now += 20
    assert whole.left(10, 100) == "0:03:00"
    for done in range(11, 21):
        clock.now += 2
        left = whole.left(done, 100)
    assert left == "0:02:40"
    assert whole.left(100, 100) == "0:00:00"


def test_what_a_run_before_did_is_not_its_pace(clock: Clock) -> None:
    resumed = Pace()
    for done in range(701, 721):
        clock.now += 1.5
        left = resumed.left(done, 1500)
    assert left == "0:19:30"


def test_a_long_pause_is_forgotten(clock: Clock) -> None:
    stopped = Pace()
    stopped.left(1, 1000)
    clock.now += 36_000
    for done in range(2, 102):
        clock.now += 1
        left = stopped.left(done, 1000)
    assert left == "0:14:59"


def test_a_line_of_progress_ends_where_there_is_nothing_more_to_say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexus_vdb.cli.common.LINE_SECONDS", 0)
    with progress_bar("teacher", lines=True) as update:
        update(1, None, "")
        update(2, None, "slow")
    assert capsys.readouterr().err == "teacher: 1\nteacher: 2; slow\n"
