"""`make bench`: the code that it runs in processes of their own, which no type checker sees."""

from experiments.bench.__main__ import FIRST_STEP, seconds_of


def test_the_first_step_is_timed():
    ((seconds, mebibytes),) = seconds_of(FIRST_STEP, 1)
    assert 0.1 < seconds < 120 and 100 < mebibytes < 10_000
