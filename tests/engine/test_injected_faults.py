"""A few of each injected fault; ``make faults`` runs the full counts of the catalogue."""

import injected
import pytest


def check(tally: injected.Tally) -> None:
    assert tally.total > 0
    assert tally.passed == tally.total, "\n".join(tally.problems)


@pytest.mark.fault("F58")
def test_kill_during_a_save_leaves_the_last_checkpoint(tmp_path):
    check(injected.kills_during_saves(tmp_path, 4))


@pytest.mark.fault("F57")
def test_full_disk_is_an_error_and_the_previous_checkpoint_loads(tmp_path):
    check(injected.full_disk(tmp_path, 4))


@pytest.mark.fault("F65")
def test_truncated_and_bit_flipped_checkpoints_are_refused(tmp_path):
    check(injected.damaged_files(tmp_path, truncations=40, flips=200))


@pytest.mark.parametrize("ema", [0.9, 0.0])
def test_resume_is_exact_after_every_step(tmp_path, shapes, ema):
    check(injected.resumed_runs(tmp_path, shapes, list(range(1, 12, 5 if ema else 7)), ranks=1, ema=ema))


def test_resume_is_exact_on_two_ranks(tmp_path, shapes):
    check(injected.resumed_runs(tmp_path, shapes, [6], ranks=2, ema=0.9))


@pytest.mark.fault("F59")
def test_sigterm_finishes_the_step_saves_and_exits_143(tmp_path, shapes):
    check(injected.terminations(tmp_path, shapes, 2))


@pytest.mark.fault("F60")
def test_a_dead_rank_ends_the_others(tmp_path, shapes):
    check(injected.killed_ranks(tmp_path, shapes, 1))
