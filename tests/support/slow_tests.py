"""What `make test-fast` leaves out, which tests/conftest.py marks as slow.

These tests compile for GPUs, start torchrun, kill processes, train for long or run whole programs.
"""

from pathlib import Path

TESTS = Path(__file__).parents[1]

# Folders, files, or single tests as "file::test", relative to tests/.
SLOW = (
    "benchmarks",
    "checkpoints/test_hub.py",
    "cli/test_options.py::test_train_vqvae_and_resume",
    "cli/test_evaluate.py::test_two_processes_give_the_figures_of_one",
    "cli/test_sweep.py::test_two_processes_share_the_presets_and_compare_their_options",
    "demo/test_demo.py",
    "docs/test_code_blocks.py",
    "docs/test_commands.py",
    "docs/test_examples.py",
    "emulator",
    "evaluation/test_dinov2.py::test_features_of_a_file",
    "evaluation/test_open_sets.py::test_digits_in_one_table",
    "evaluation/test_open_sets.py::test_models_in_folders_of_one_name_are_drawn_and_shown_apart",
    "evaluation/test_open_sets.py::test_pictures_of_two_sets_of_one_name_lie_apart",
    "evaluation/test_open_sets.py::test_a_place_that_is_not_there_is_known_before_anything_is_drawn",
    "evaluation/test_inception.py",
    "evaluation/test_sweep.py::test_images_are_those_of_the_pipeline_with_that_preset",
    "benchmarks/test_aot.py",
    "kernels/test_natten.py",
    "kernels/test_neighborhoods.py::test_windows_exactly",
    "kernels/test_ops.py::test_everything_but_triton_works_without_triton",
    "kernels/test_schedule.py::test_large_windows_need_no_more_features",
    "networks/test_block.py::test_the_released_shape_keeps_little",
    "pipeline/test_base.py::test_a_saved_pipeline_draws_the_same_in_a_fresh_process",
    "sampling/test_engine.py::test_modulation_is_read_once_per_image",
    "sampling/test_engine.py::test_the_loop_can_be_captured",
    "recipes/test_ablation.py::test_rows_are_kept_and_tabled",
    "recipes/test_emoji_weights.py::test_the_chain_is_made_once",
    "recipes/test_fuzz.py",
    "sampling/test_same_bits.py",
    "sampling/test_same_digits.py",
    "tokens/test_writer.py",
    "training/test_agreement.py",
    "training/test_combinations.py",
    "training/test_distributed.py",
    "training/test_finetuning.py",
    "training/test_held_out_distance.py::test_a_vqvae_s_training_is_not_touched",
    "training/test_held_out_distance.py::test_efficientnet_where_the_extra_is_there",
    "training/test_held_out_distance.py::test_reconstructions_of_held_out_images",
    "training/test_loop.py::test_compiled_blocks_train_alike",
    "training/test_killed_starts.py",
    "training/test_resume.py",
    "training/test_runs.py",
    "training/test_parallel.py::test_two_processes_equal_one",
    "training/test_vqvae_losses.py::test_a_step_in_parts_and_processes_equals_a_whole_step",
    "training/test_vqvae_losses.py::test_dead_codes_come_back",
    "training/test_vqvae_task.py",
    "triton",
)


def is_slow(path: Path, test: str) -> bool:
    """Whether a test, or the file or folder that it lies in, is listed in SLOW."""
    name = f"{path.relative_to(TESTS).as_posix()}::{test}"
    return any(name == slow or name.startswith((f"{slow}::", f"{slow}/")) for slow in SLOW)
