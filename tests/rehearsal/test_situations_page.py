"""Every row of the guide's page on situations has a test that shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
PAGE = HERE.parent / "docs" / "guide" / "situations.md"

# By the beginning of a row: the file and test that shows it, and, of a parametrized one, the case.
SHOWN = {
    "a buffer that is None": ("situations", "test_buffers_of_every_kind_are_recorded_replayed_and_resumed", '"expanded"'),
    "an observer of": ("situations", "test_hashing_leaves_a_storage_resizable", '"resized"'),
    "running minima": ("situations", "test_buffers_of_every_kind_are_recorded_replayed_and_resumed", '"extremes"'),
    "lazy layers": ("situations", "test_lazy_layers_get_their_shapes_before_anything_is_captured", "else Lazy)"),
    "a hidden state": ("rehearsal", "test_a_trap_is_named_within_the_first_steps", '"recurrent"'),
    "a private generator": ("rehearsal", "test_a_trap_is_named_within_the_first_steps", '"numpy generator"'),
    "pruning": ("rehearsal", "test_a_trap_is_named_within_the_first_steps", '"pruning"'),
    "a start without": ("situations", "test_a_start_that_follows_from_no_key_is_said_with_both_cures", "orthogonal"),
    "a factory that": ("rehearsal", "test_a_trap_is_named_within_the_first_steps", '"unseeded model"'),
    "entries that belong": ("situations", "test_an_optimizers_state_that_belongs_to_no_parameter_is_recorded", ""),
    "entries for something": ("situations", "test_an_optimizers_state_for_a_stranger_is_refused", ""),
    "a group added on": ("groups", "test_groups_added_in_mid_run_are_valid_under_every_draw", "by a scheduler"),
    "a group that a callback": ("groups", "test_a_group_added_outside_of_what_replays_is_refused_by_name", ""),
    "groups that are taken": ("groups", "test_groups_that_are_taken_away_are_refused", ""),
    "a group without": ("situations", "test_a_group_without_a_rate_is_refused_by_name", ""),
    "Lookahead": ("rehearsal", "test_a_trap_is_named_within_the_first_steps", '"lookahead"'),
    "parameters that no": ("situations", "test_parameters_that_no_part_holds_are_refused_before_training", ""),
    "gradients left": ("situations", "test_gradients_left_for_the_next_step_are_refused_before_training", ""),
    "a part whose": ("situations", "test_a_part_that_counts_on_the_order_of_a_dict_is_named", ""),
    "`ReduceLROnPlateau`": ("settings", "test_a_schedule_that_follows_a_metric_gets_a_verdict", ""),
    "an augmentation": ("rehearsal", "test_a_trap_is_named_within_the_first_steps", '"writing"'),
    "a vocabulary": ("rehearsal", "test_data_that_follow_the_hash_seed_are_named", ""),
    "a split": ("situations", "test_data_that_are_drawn_anew_are_refused", ""),
    "a loss with": ("rehearsal", "test_a_trap_is_named_within_the_first_steps", '"trained loss"'),
    "a loss that draws": ("rehearsal", "test_a_trap_is_named_within_the_first_steps", '"clocked"'),
    "batches that": ("situations", "test_batches_of_any_container_reach_a_device", ""),
    "an evaluation that returns": ("situations", "test_an_evaluation_that_cannot_work_is_found_before_training", ""),
    "an evaluation that fails": ("situations", "test_a_corrected_evaluation_does_not_bar_resuming", ""),
    "an evaluation that makes": ("situations", "test_the_rehearsed_evaluation_changes_no_bit", ""),
    "another learning rate": ("own_loops", "test_other_settings_than_the_tasks_are_said_before_the_first_step", ""),
    "clipping": ("rehearsal", "test_a_loop_that_does_what_its_task_does_not_is_stopped", ""),
    "a scheduler stepped": ("own_loops", "test_a_scheduler_that_is_stepped_elsewhere_is_said_at_the_first_rate", ""),
    "a loop that goes on": ("own_loops", "test_what_trains_or_seals_nothing_is_said", ""),
    "a loop that ends": ("own_loops", "test_what_trains_or_seals_nothing_is_said", ""),
    "a loop that begins": ("own_loops", "test_a_finished_recording_gives_the_trained_model", ""),
    "a run that stops": ("format2", "early=True", ""),
    "`gs://`": ("situations", "test_the_extra_for_s3_is_advised_for_s3", '"gs"'),
}  # fmt: skip


def test_every_row_of_the_page_has_a_test() -> None:
    rows = [
        line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| situation |")
    ]
    assert len(rows) == len(SHOWN)
    for row, start in zip(rows, SHOWN, strict=True):
        assert row.startswith(f"| {start}"), (row, start)
        assert re.search(r"\| (valid|said|sealed)", row), row


@pytest.mark.parametrize("start", SHOWN)
def test_the_test_of_a_row_exists(start: str) -> None:
    file, name, case = SHOWN[start]
    text = next(HERE.glob(f"*/test_{file}.py")).read_text()
    assert (f"def {name}(" in text or not name.startswith("test_")) and name in text and case in text
