"""Faults that were found by use, and the tests that hold their cures: entry -> tests, as "file::name" without test_.

A: numbers that were wrong and did not say so; B: messages that did not help; C: runs; D: what a newcomer stumbled over.
"""

import re
from pathlib import Path

FAULTS = {
    "A1 forbidden moves of a hidden Markov model became possible by an M-step": [
        "hidden_markov::forbidden_moves_stay_so_through_m_steps",
        "hidden_markov::m_step_of_logits",
        "hidden_markov::improbable_paths_are_not_lost",
        "hidden_markov::forbidden_symbols",
        "em::a_component_of_weight_zero_stays_so",
        "discrete_families::what_is_forbidden_stays_so",
    ],
    "A2 state-space models and factor analysis with small noise": [
        "state_space::float32_where_states_are_1e5_times_wider_than_the_noise",
        "state_space::an_m_step_finds_small_noise_in_float32",
        "factor_analysis::float32_where_factors_are_1e5_times_wider_than_the_noise",
        "factor_analysis::an_m_step_finds_small_noise_in_float32",
        "factor_analysis::factors_beyond_what_is_seen_in_float32",
        "linalg::small_rows_keep_their_digits_beside_large_ones",
        "selfcheck::all_identities_hold_in_single_precision",
    ],
    "A3 missing=True squared the covariance": ["em::missing_entries_where_a_column_is_the_sum_of_two"],
    "A4 float64 and int64 were cast unseen": [
        "arrays::what_jax_cannot_hold_is_refused",
        "arrays::values_arrive",
        "arrays::double_precision_stays",
    ],
    "A5 relaxed classes at low temperature": [
        "relaxed::the_rate_of_a_relaxed_z_is_right_at_any_temperature",
        "relaxed::a_relaxed_z_is_the_data_of_another_vae",
        "relaxed::a_relaxed_z_wants_a_relaxed_prior",
    ],
    "A6 two levels of finite scalar quantisation": [
        "vq::fsq_uses_all_levels_of_normal_numbers_alike",
        "vq::fsq_codes_and_values_are_in_bijection",
    ],
    "A7 updates that are not finite": [
        "train::what_is_not_finite_after_the_update_is_noticed_too",
        "fit::the_leaf_that_is_not_finite_is_named",
        "fit::a_run_without_one_update_is_an_error_at_its_end",
        "fit::skipped_updates_are_counted_and_change_nothing",
        "distributions::l2_refuses_a_sigma_that_is_none",
    ],
    "A8 k=2.5, beta=-1, schedules of arrays, params of another number of components": [
        "evaluate::options_out_of_range",
        "objectives::options_out_of_range",
        "objectives::a_schedule_gives_one_number_for_all_examples",
        "em::params_of_another_model_are_refused",
        "hidden_markov::params_of_another_number_of_states_are_refused",
    ],
    "A9 samplers on unequal steps": [
        "diffusion_samplers::unequal_steps_are_those_of_the_papers",
        "diffusion_samplers::heun_says_where_it_goes_astray",
        "diffusion_samplers::guidance_of_a_learned_variance",
        "diffusion_samplers::likelihood_of_a_gaussian",
    ],
    "A10 to what precision numbers do not depend on the batch": [
        "evaluate::an_example_has_its_number_whatever_the_batches"
    ],
    "A11 top_p(1.0), sentences with carriage returns alone": [
        "autoregressive::top_p_keeps_what_float64_keeps",
        "autoregressive::temperatures_at_the_edge_leave_numbers",
        "text::lines_end_as_on_any_machine",
        "text::one_file_with_carriage_returns_alone",
    ],
    "A12 labels and no condition": [
        "conditions::a_class_is_its_one_hot_vector",
        "conditions::labels_train_and_evaluate_as_one_hot_vectors",
        "conditions::classes_that_are_none",
        "conditions::networks_take_no_class_for_a_quantity",
        "conditions::dropped_classes_are_no_class",
        "conditions::guidance_by_a_class",
        "conditions::quantities_stay_as_they_are",
    ],
    "A13 supports that depend on the example": ["evaluate::the_support_of_each_example"],
    "A14 optax on the whole tree": [
        "train::all_parts_together_are_optax_on_the_whole_tree",
        "train::frozen_parts_are_not_there_for_the_optimizer",
        "train::optimizers_that_would_do_nothing",
    ],
    "A15 16-bit colours, palettes, folders of photos": [
        "data::more_than_8_bits_are_refused",
        "data::fewer_than_8_bits_are_scaled",
        "data::16_bit_pixels_of_a_bitmap_are_8_bit_colours",
        "data::a_palette_counts_by_its_colours",
        "data::both_splits_have_the_channels_of_the_richest",
        "data::photos_are_brought_to_size_one_by_one",
    ],
    "A16 tables as people have them": ["data::tables_as_people_have_them", "data::damaged_tables"],
    "A17 folders as people have them": [
        "data::classes_in_one_split_only",
        "data::images_below_a_class_are_of_it",
        "data::further_kinds_of_files",
    ],
    "A18 a resume with other validation data": ["fit::a_directory_takes_one_run"],
    "B --batch-size 0, --learning-rate -1, --patience -1, --k -1, a seed beyond 64 bits": [
        "experiments_house::numbers_out_of_range_are_refused_before_anything_else",
        "experiments_house::what_is_wanted_of_a_number",
    ],
    "B npz without arrays": ["data::npz_refusals"],
    "B --out that is a file or read-only, a full disk": [
        "run_directory::a_directory_that_cannot_be",
        "checkpoint::a_full_disk_is_one_line",
        "run_directory::a_command_line_says_in_one_line_what_is_wrong_with_its_directory",
    ],
    "B Ctrl-C, damaged checkpoints, tracebacks of the command line": ["experiments_house::errors_are_one_line"],
    "B ys as lists, frames, tensors; cs as a Series": [
        "arrays::tables_and_tensors",
        "arrays::fit_and_evaluate_take_an_array_or_say_why_not",
        "check::arrays_that_are_no_data",
    ],
    "B a distribution without support, ys as a dict": [
        "evaluate::a_distribution_that_does_not_say_where_it_is",
        "evaluate::data_that_are_trees",
    ],
    "B a prior of another size than z": ["check::an_encoder_of_another_size_than_the_prior"],
    "B key=0, optimizer None or uncalled, validation without cs, Dropout without a key": [
        "fit::options_that_do_not_fit_are_errors_before_anything_is_made",
        "fit::keys_of_the_old_style_are_keys_and_seeds_are_none",
        "check::what_is_of_another_kind",
    ],
    "B latent 0 or -1": ["priors::sizes_of_a_latent"],
    "B pseudo-inputs of another shape, or NaN": [
        "priors::pseudo_inputs_of_another_shape_than_the_examples",
        "priors::priors_refuse",
    ],
    "B a test label that training lacks": ["experiment::a_test_label_that_training_lacks"],
    "B a test image of another size": ["experiments_house::splits_that_do_not_match_are_refused"],
    "B a network that returns a tuple": ["distributions::a_network_that_gives_no_array_is_named"],
    "B categorical_hmm(4, 2, 1), an HMM given an empty sequence": ["hidden_markov::sequences_of_one_step"],
    "B l2(sigma=np.float32(.1))": ["distributions::l2_takes_numbers_of_every_kind"],
    "B ys and cs on different devices": ["arrays::arrays_on_several_devices_come_to_the_host"],
    "B denoiser(steps=2.5), a lambda as schedule": ["diffusion::bad_options"],
    "B paths with accents under a C locale": ["experiments_house::an_ascii_locale"],
    "B float16 with full covariances": ["em::half_precision_is_widened"],
    "B chorales --smoke": ["chorales_experiment::what_cannot_be_run_is_an_error_in_words"],
    "C a lock per run directory": [
        "run_directory::a_process_holds_the_directory_until_it_ends_however_it_does",
        "fit::a_directory_is_free_again_after_an_error",
    ],
    "C checkpoints that are gone": ["fit::checkpoints_that_are_gone_are_not_started_over"],
    "C resuming compares what decides": ["fit::a_directory_takes_one_run", "fit::what_tells_functions_apart"],
    "D1 reports": [
        "report::a_run_is_published_with_how_it_was_made",
        "report::notice_and_foot_frame_the_page",
        "report::columns_and_rows_of_a_grid_have_names",
        "report::a_table_of_text_can_be_scrolled_and_breaks_only_long_cells",
    ],
    "D2 a smoke run may be repeated": ["experiments_house::a_smoke_run_may_be_repeated"],
    "D3 a Mean prints as tables do": ["report::a_mean_prints_as_tables_do"],
    "D4 the default batch fits small data": [
        "experiments_house::the_default_batch_fits_small_data",
        "fit::by_default_a_batch_is_128_or_all_data",
    ],
    "D5 tables": ["data::damaged_tables", "data::what_reads_the_other_kind_is_named"],
    "D6 sizes, homes, proportions": [
        "data::pictures_keep_their_proportions",
        "data::homes_are_expanded",
        "data::bad_options",
    ],
    "D7 what models sample is shown": ["report::what_models_sample_is_shown"],
    "D8 a notebook whose install fails stops": [
        "notebook::a_notebook_that_cannot_be_installed_stops_and_says_where_the_package_comes_from"
    ],
    "D9 two processes": ["pods::a_directory_each", "pods::a_killed_process_ends_the_others_and_the_run_goes_on"],
}


def test_every_fault_has_its_tests():
    for fault, tests in FAULTS.items():
        for file, test in (each.split("::") for each in tests):
            text = (Path(__file__).parent / f"test_{file}.py").read_text()
            assert re.search(rf"^def test_{test}\(", text, re.MULTILINE), f"{fault}: no test_{test} in test_{file}"
