"""What `make test` leaves to `make test-all` and `.ci/run`, for its time: what is in no table runs in all of them."""

# Of these tests, whose instances take seconds each, the first instance runs in `make test`.
FIRST_OF = {
    "test_annealed.py": ("test_weights_are_unbiased_however_badly_chains_mix",),
    "test_autoregressive.py": (
        "test_probabilities_sum_to_one_and_samples_follow_them",
        "test_adjusted_logits_give_the_distribution_worked_out_by_hand",
    ),
    "test_bounds.py": (
        "test_leave_one_out_is_unbiased",
        "test_vimco_is_unbiased",
        "test_score_function_is_unbiased",
        "test_bounds_meet_the_elbo_and_the_importance_weighted_bound",
        "test_expected_value_with_two_samples",
        "test_doubly_reparameterised_is_noiseless_at_the_posterior",
        "test_doubly_reparameterised_with_shared_and_nested_parts",
    ),
    "test_certify.py": ("test_an_example_has_its_number_whatever_the_batches",),
    "test_collapse_experiments.py": ("test_every_way_is_a_model_with_the_same_parameters_in_training",),
    "test_diffusion.py": (
        "test_continuous_rate_depends_on_the_ends_alone",
        "test_optimal_reverse_variance_makes_every_step_count_exact",
        "test_the_whole_bound_of_gaussian_data",
        "test_a_random_step_has_the_expectation_of_the_folded_chain",
        "test_importance_samples_average_to_the_likelihood",
    ),
    "test_diffusion_experiments.py": (
        "test_diffusion",
        "test_latent_diffusion",
    ),
    "test_diffusion_samplers.py": (
        "test_order_of_convergence",
        "test_both_processes_are_one_on_the_scale_of_variance_one",
        "test_ancestral_variances",
        "test_ddim_with_all_noise_anew_is_ancestral",
        "test_draws_have_the_moments_of_the_mixture",
        "test_guidance_of_a_gaussian",
        "test_likelihood_of_a_gaussian",
        "test_likelihood_of_a_mixture",
    ),
    "test_discrete_experiment.py": ("test_exact_gradients",),
    "test_discrete_families.py": (
        "test_the_distribution_of_one_example_is_the_same",
        "test_weighted_fit",
        "test_the_fixed_point_has_gradient_zero",
        "test_em_equals_numpy",
    ),
    "test_distributions.py": (
        "test_extreme_outputs_are_finite_in_value_and_gradient",
        "test_samples_follow_the_probabilities",
    ),
    "test_em.py": (
        "test_equals_scikit_learn",
        "test_never_falls",
        "test_density_and_e_step_agree_with_scipy",
        "test_e_and_m_step_are_the_two_halves_of_the_lecture",
        "test_fisher_identity",
        "test_degenerate_data_stay_finite",
    ),
    "test_experiment.py": ("test_trains_evaluates_and_reports",),
    "test_factor_analysis.py": (
        "test_log_prob_against_scipy",
        "test_the_posterior_is_exact",
        "test_em_equals_numpy",
        "test_oracle_13",
        "test_the_fixed_point_has_gradient_zero",
        "test_stats_about_another_fit_give_the_same_m_step",
        "test_degenerate_data_end_at_the_floor",
    ),
    "test_feed.py": ("test_the_numbers_do_not_depend_on_the_mesh",),
    "test_fit.py": ("test_a_directory_takes_one_run",),
    "test_flow_experiment.py": ("test_toys",),
    "test_flows.py": (
        "test_density_is_that_of_the_jacobian",
        "test_density_integrates_to_one_and_draws_follow_it",
        "test_starts_as_its_base",
        "test_a_draw_and_its_own_density",
        "test_vmap_is_a_loop",
        "test_finite_at_extremes",
        "test_one_flow_in_both_precisions",
    ),
    "test_gan.py": (
        "test_gradients_go_where_they_should",
        "test_patches",
    ),
    "test_hidden_markov.py": (
        "test_inference_is_the_sum_over_all_paths",
        "test_the_posterior_is_a_distribution_over_paths",
        "test_gaussian_model_equals_hmmlearn",
        "test_left_to_right_models_are_exact_in_float32",
    ),
    "test_hierarchical_experiment.py": ("test_smoke",),
    "test_labels.py": ("test_the_bound_is_tight_where_the_encoders_are_exact",),
    "test_ladder.py": ("test_convolutional_rungs",),
    "test_lecture.py": ("test_reparameterised_gradient_is_the_exact_gradient",),
    "test_linalg.py": ("test_values_and_derivatives_are_those_of_jax",),
    "test_missing.py": (
        "test_linear_gaussian",
        "test_a_likelihood_of_what_is_seen",
    ),
    "test_nets.py": (
        "test_matrix_form_is_the_native_convolution",
        "test_gradients_are_finite_differences",
        "test_examples_do_not_mix",
        "test_types_of_inputs_and_computation",
    ),
    "test_objectives.py": (
        "test_importance_weighted_loss_is_minus_the_log_of_the_mean_weight",
        "test_reported_bound_does_not_change_with_the_objective",
    ),
    "test_oracles.py": (
        "test_beta_decides_what_collapses",
        "test_learned_sigma_with_beta",
        "test_training_reaches_probabilistic_pca_from_a_random_start",
        "test_rate_is_mutual_information_plus_marginal_kl",
    ),
    "test_pixelcnn_experiment.py": ("test_smoke",),
    "test_preprocess.py": ("test_batches_keep_shape_and_equal_single_examples",),
    "test_priors.py": ("test_mixture_of_gaussians",),
    "test_rate_distortion.py": ("test_smoke",),
    "test_relaxed.py": (
        "test_one_model_whatever_the_estimator",
        "test_gumbel_by_quadrature",
        "test_bias_vanishes_with_the_temperature",
        "test_unbiased",
        "test_extreme_numbers_stay_finite",
    ),
    "test_report.py": ("test_figures_are_safe_repeatable_and_follow_the_page",),
    "test_selfcheck.py": ("test_a_likelihood_without_ln_z_is_seen",),
    "test_sequence_nets.py": (
        "test_logits_depend_on_what_came_before_and_on_nothing_else",
        "test_the_gradient_of_a_loss_with_respect_to_later_inputs_is_zero",
        "test_steps_give_the_logits_of_the_whole",
        "test_examples_do_not_mix_and_conditions_count",
        "test_a_longer_array_has_the_same_logits_at_its_start",
        "test_types_of_the_computation",
        "test_gradients_are_finite_differences",
        "test_an_encoder_sees_the_sentence_and_not_its_padding",
    ),
    "test_state_space.py": (
        "test_filter_and_smoother_against_the_dense_gaussian",
        "test_parallel_equals_sequential",
        "test_em_equals_numpy",
        "test_every_draw_of_the_exact_bound_is_ln_p_and_fishers_identity",
        "test_float32_at_small_noise_and_constant_columns",
    ),
    "test_text_lengths.py": ("test_loss_and_gradient_are_those_of_the_whole_width",),
    "test_train.py": (
        "test_pmap_equals_one_device",
        "test_clip_norm_is_that_of_optax_over_the_parts_that_train",
        "test_culprit_is_the_first_leaf_that_is_not_finite",
        "test_share_names_the_path_that_is_not_there",
    ),
    "test_unet.py": (
        "test_number_of_parameters",
        "test_sizes_that_work",
    ),
    "test_vq.py": (
        "test_decay_0_on_a_full_batch_is_one_step_of_lloyd",
        "test_codes_stand_for_the_vectors",
        "test_the_gradient_reaches_the_encoder_and_is_finite",
        "test_fsq_codes_and_values_are_in_bijection",
        "test_uniform_codes_cost_n_ln_k",
        "test_straight_through_and_which_term_moves_what",
    ),
    "test_vq_vae_experiment.py": ("test_both_stages",),
}

# And these run in `make test-all` alone: what they show is shown, in less time, by the test that is named.
LATER = {
    "test_annealed.py": ("test_default_interval_contains_ln_p",),  # test_certify: the interval contains the likelihood
    "test_bounds.py": ("test_all_report_the_elbo",),  # test_objectives: the reported bound does not change
    "test_buckets.py": ("test_a_run_of_two_processes",),  # a checkpoint of two, and a run of one
    "test_certify.py": (
        "test_data_have_the_noise_that_evaluate_gives_them",  # an example has its number whatever the batches
        "test_conditions_follow_their_examples",
        "test_from_the_exact_posterior_nothing_is_missing",  # test_annealed: every chain is ln P
    ),
    "test_diffusion.py": ("test_dropout_is_for_training_only",),  # the network with a key, for training alone
    "test_discrete_experiment.py": ("test_em_and_the_vae_are_one_model",),  # test_it_runs takes both routes
    "test_distributions.py": ("test_gumbel_softmax_bias_vanishes_with_the_temperature",),  # the discrete experiment
    "test_em.py": (
        "test_a_mixture_is_the_prior_of_a_vae",  # the experiment gmm_prior; the laws: a mixture, as a VAE
        "test_iris_reaches_the_known_maximum",  # the self-check: oracle 24
        "test_the_maximum_is_stationary",  # the self-check: Fisher's identity
    ),
    "test_em_experiments.py": ("test_the_routes_end_at_one_optimum",),  # test_em_mixture runs the same routes
    "test_evaluate.py": ("test_an_example_has_its_number_whatever_the_batches",),  # the laws: independent of batches
    "test_factor_analysis.py": (
        "test_mixtures_rise_to_a_fixed_point",  # test_em: never falls; the fixed point of one analyser
        "test_oracle_13",  # the self-check: oracle 13
    ),
    "test_fit.py": ("test_four_devices_compute_what_one_does",),  # test_train: a scan over a mesh; the laws: devices
    "test_flow_experiment.py": ("test_images", "test_all_models_start_alike"),  # test_flow runs all models
    "test_flows.py": ("test_in_a_vae", "test_many_draws_at_once"),  # the laws: flows as prior and as encoder
    "test_gan.py": ("test_a_vae_gan_of_images_is_one_composition",),  # the laws: adversarial term
    "test_hidden_markov.py": ("test_fit_on_the_geyser",),  # the experiment hmm: test_geyser
    "test_hmm_experiment.py": ("test_scores_are_of_every_step",),  # test_geyser adds them up
    "test_ladder.py": (
        "test_every_part_has_a_gradient",  # the laws take the derivative of each leaf
        "test_state_and_numbers_are_float32_under_bfloat16",
        "test_remat_changes_nothing",  # test_unet: the same of its own blocks
    ),
    "test_linear_vae_experiment.py": ("test_three_ways_to_a_known_optimum",),  # test_smoke runs the ways
    "test_nets.py": ("test_images_of_any_size",),
    "test_objectives.py": ("test_importance_weighted_loss_falls_to_the_exact_likelihood",),  # test_bounds
    "test_rate_distortion.py": ("test_the_linear_model_reaches_the_curve",),  # the linear theory has oracles of its own
    "test_relaxed.py": ("test_bias_vanishes_with_the_temperature",),  # the discrete experiment measures it
    "test_selfcheck.py": ("test_command_passes_in_double_precision",),  # all identities hold in single precision
    "test_text_lengths.py": ("test_a_scan_of_steps_in_this_order_is_that_of_the_whole_width",),  # loss and gradient are
    "test_two_steps_experiment.py": ("test_a_small_diffusion_recovers_the_density",),  # a minute of training
    "test_unet.py": ("test_one_example_is_its_row_of_a_batch",),  # the laws: rows do not touch each other
}

# Of these `.ci/run` runs what `make test-all` is not left with, after `make test`: no commit goes without them. They
# take seconds each beside shorter tests of the same code; experiments train and write their report, as test_experiment
# has the first of them do in `make test`.
AFTERWARDS = {
    "test_accounting.py": (
        "test_gaps_of_a_linear_model",
        "test_parts_of_the_rate",
        "test_approximation_gap_of_a_diagonal_family",
        "test_gaps_are_of_the_data_that_evaluate_sees",
    ),
    "test_annealed.py": (
        "test_keys_are_used_once",
        "test_from_the_exact_posterior_every_chain_is_ln_p",
        "test_weights_are_unbiased_however_badly_chains_mix",
    ),
    "test_architecture.py": ("test_importing_the_library_imports_nothing_heavy",),
    "test_autoregressive.py": (
        "test_it_trains_inside_a_vae",
        "test_a_text_vae_is_bounded_sampled_and_importance_weighted",
    ),
    "test_bench.py": ("test_the_first_step_is_timed",),
    "test_bounds.py": (
        "test_baselines_lower_the_variance",
        "test_piwae_trains_the_encoder_by_another_bound",
        "test_drawn_latents_of_weight_zero",
        "test_doubly_reparameterised_with_shared_and_nested_parts",
        "test_doubly_reparameterised_leaves_the_gradient_of_penalties_alone",
        "test_score_function_of_a_normal_latent",
        "test_refining_a_full_covariance_under_a_nested_prior",
        "test_score_function_of_two_latents_is_unbiased",
        "test_doubly_reparameterised_agrees_with_an_order_less_variance",
        "test_leave_one_out_trains_an_encoder_to_the_posterior",
    ),
    "test_buckets.py": (
        "test_checkpoints_are_whole_or_named",
        "test_killed_and_resumed_equals_uninterrupted",
        "test_two_processes_write_one_checkpoint",
        "test_an_experiment",
        "test_a_directory_takes_one_configuration",
    ),
    "test_cells.py": ("test_it_trains_on_what_is_read",),
    "test_certify.py": (
        "test_an_example_has_its_number_whatever_the_batches",
        "test_the_interval_contains_the_likelihood",
    ),
    "test_checkpoint.py": ("test_sigkill_leaves_a_good_checkpoint", "test_importing_the_module_does_not_import_orbax"),
    "test_chorales_experiment.py": ("test_chorales",),
    "test_codec.py": ("test_another_process_reads_it",),
    "test_collapse_experiments.py": ("test_collapse", "test_text_vae"),
    "test_columns.py": ("test_a_vae_of_rows",),
    "test_command.py": (
        "test_training_says_how_the_model_is_built",
        "test_what_is_written_is_what_the_run_gives",
        "test_the_page_is_written_anew",
        "test_a_folder_of_pictures_is_encoded_whole_and_in_order",
        "test_what_cannot_be_done_is_one_line",
        "test_another_directory",
        "test_recipes_are_found_where_the_command_is_called",
    ),
    "test_conditions.py": ("test_labels_train_and_evaluate_as_one_hot_vectors",),
    "test_cures.py": (
        "test_the_bound_is_that_of_the_generator_alone",
        "test_a_generator_that_ignores_z_has_an_encoder_that_learns",
    ),
    "test_data.py": ("test_loading_carried_arrays_imports_neither_tfds_nor_pillow",),
    "test_diffusion.py": ("test_times_change_the_variance_only", "test_importance_samples_average_to_the_likelihood"),
    "test_diffusion_experiments.py": ("test_diffusion", "test_latent_diffusion"),
    "test_diffusion_samplers.py": (
        "test_likelihood_of_a_gaussian",
        "test_likelihood_integrates_to_one",
        "test_likelihood_of_a_mixture",
        "test_probes_are_unbiased",
        "test_unequal_steps_are_those_of_the_papers",
    ),
    "test_discrete_experiment.py": ("test_it_runs", "test_bias_and_spread"),
    "test_discrete_families.py": (
        "test_the_fixed_point_has_gradient_zero",
        "test_float32_on_many_pixels",
        "test_what_is_forbidden_stays_so",
    ),
    "test_disentanglement.py": ("test_dci",),
    "test_disentangling.py": (
        "test_geco_meets_its_limit",
        "test_a_rate_that_is_asked_for",
        "test_a_high_weight_makes_units_independent",
        "test_factor_vae_learns_the_total_correlation",
    ),
    "test_docstrings.py": ("test_every_example_runs",),
    "test_em.py": (
        "test_degenerate_data_stay_finite",
        "test_missing_entries_where_a_column_is_the_sum_of_two",
        "test_single_precision_far_from_zero",
        "test_a_component_of_weight_zero_stays_so",
        "test_e_and_m_step_are_the_two_halves_of_the_lecture",
        "test_never_falls",
        "test_hard_em_with_equal_spheres_is_lloyd",
        "test_stepwise_em_on_minibatches_reaches_the_maximum",
        "test_half_precision_is_widened",
        "test_missing_entries_are_summed_out",
    ),
    "test_em_experiments.py": ("test_em_mixture", "test_gmm_prior"),
    "test_evaluate.py": ("test_data_that_are_trees",),
    "test_experiment.py": (
        "test_a_folder_of_pictures_and_a_run_that_goes_on",
        "test_what_cannot_be_run_is_an_error_without_a_traceback",
        "test_help_shows_every_option_with_its_default",
        "test_a_misspelt_option_is_an_error_that_suggests_the_right_one",
    ),
    "test_experiments_house.py": ("test_an_ascii_locale",),
    "test_exported.py": ("test_the_folder_opens_without_this_library",),
    "test_factor_analysis.py": (
        "test_float32_where_factors_are_1e5_times_wider_than_the_noise",
        "test_a_mixture_of_one_is_factor_analysis",
        "test_the_fixed_point_has_gradient_zero",
        "test_degenerate_data_end_at_the_floor",
        "test_float32_at_small_noise",
        "test_closed_form_at_the_floor",
        "test_fishers_identity",
        "test_stats_about_another_fit_give_the_same_m_step",
        "test_samples_have_mean_and_covariance",
    ),
    "test_feed.py": (
        "test_a_run_that_gets_sigterm_is_continued_bit_for_bit",
        "test_the_state_stays_where_the_rule_says",
        "test_the_numbers_do_not_depend_on_the_mesh",
        "test_a_source_is_visited_in_the_order_of_arrays",
        "test_records_go_by_steps",
        "test_records_go_by_time",
        "test_a_trace_is_of_the_second_call",
        "test_conditions_may_come_with_the_examples_or_beside_them",
    ),
    "test_fit.py": (
        "test_the_bar_warns_of_posterior_collapse",
        "test_calls_of_two_sizes_are_one_epoch",
        "test_validation_is_of_the_moving_average_every_n_epochs_and_at_the_end",
        "test_split_parameters_are_whole_while_they_are_used",
    ),
    "test_flow_experiment.py": ("test_flow",),
    "test_flows.py": (
        "test_sticking_the_landing_is_exact_at_the_posterior",
        "test_a_draw_and_its_own_density",
        "test_vmap_is_a_loop",
        "test_the_first_dimension_is_conditioned_too",
        "test_context_network",
        "test_one_flow_in_both_precisions",
        "test_finite_at_extremes",
        "test_a_flow_encoder_of_a_linear_gaussian_model",
    ),
    "test_gan.py": (
        "test_a_vqgan_is_one_composition",
        "test_a_gan_in_one_dimension_and_its_inverter",
        "test_gradients_go_where_they_should",
        "test_the_bound_has_no_part_in_it",
        "test_hoist_moves_parameters_and_nothing_else",
    ),
    "test_hidden_markov.py": (
        "test_parallel_equals_sequential",
        "test_improbable_paths_are_not_lost",
        "test_padding_counts_for_nothing",
        "test_missing_steps_are_steps_without_observation",
        "test_forbidden_moves_stay_so_through_m_steps",
        "test_map_adds_counts_and_is_monotone",
        "test_impossible_sequences_have_log_probability_minus_infinity",
        "test_gradient_is_that_of_the_expected_log_joint",
        "test_float32_is_safe_on_5000_steps",
        "test_fit_with_missing_steps_is_monotone",
        "test_recentred_stats_give_the_same_step",
        "test_it_trains_by_gradient_and_under_vmap",
        "test_expected_counts",
        "test_forbidden_symbols",
        "test_samples_follow_the_density",
        "test_start_of_symbols_is_random_and_of_numbers_is_near",
        "test_sequences_of_one_step",
    ),
    "test_hierarchical_experiment.py": ("test_smoke",),
    "test_hmm_experiment.py": ("test_geyser",),
    "test_labels.py": ("test_few_labels_teach_a_classifier",),
    "test_ladder.py": (
        "test_a_ladder_is_a_model_like_any_other",
        "test_convolutional_rungs",
        "test_temperature_and_given_latents",
        "test_a_posterior_of_zeros_is_the_prior",
        "test_dense_rungs_take_conditions_and_any_shape",
        "test_samples_that_cannot_be_drawn",
        "test_the_exact_posterior_leaves_no_gap",
    ),
    "test_laws.py": ("test_another_key_another_sample",),
    "test_lecture.py": ("test_denoising_by_a_u_net", "test_training_lets_the_encoder_of_a_language_model_ignore_y"),
    "test_linear_vae_experiment.py": ("test_smoke", "test_collapse_is_as_predicted"),
    "test_missing.py": (
        "test_an_example_is_filled_alike_whatever_the_batches",
        "test_it_is_trained_as_any_other",
        "test_of_an_exact_model",
    ),
    "test_nets.py": ("test_constant_images_are_finite",),
    "test_network.py": (
        "test_run_of_nnx_is_resumed_bit_for_bit",
        "test_nnx_and_linen_of_the_same_weights_have_the_same_bound_and_gradient",
        "test_nnx_module_as_denoiser",
    ),
    "test_notebook.py": (
        "test_it_runs",
        "test_a_notebook_that_cannot_be_installed_stops_and_says_where_the_package_comes_from",
    ),
    "test_oracles.py": (
        "test_importance_weighted_bound_of_nested_models_converges",
        "test_training_reaches_probabilistic_pca_from_a_random_start",
        "test_sticking_is_not_used_with_more_than_one_sample",
    ),
    "test_package.py": (
        "test_the_installed_wheel_works_from_another_directory",
        "test_the_wheel_holds_the_package_and_nothing_else",
    ),
    "test_pixelcnn_experiment.py": ("test_smoke",),
    "test_pods.py": (
        "test_several_processes_are_one",
        "test_a_directory_each",
        "test_a_killed_process_ends_the_others_and_the_run_goes_on",
        "test_an_error_in_one_process_ends_the_others",
        "test_sigterm_saves_and_the_run_goes_on",
        "test_a_run_goes_on_on_another_mesh",
        "test_the_script_for_pods",
        "test_an_experiment",
        "test_no_pod",
    ),
    "test_priors.py": (
        "test_shared_vampprior_has_the_gradient_written_out",
        "test_sharing_ties_every_function_of_the_model",
    ),
    "test_rate_distortion.py": ("test_smoke", "test_what_cannot_be_run_is_an_error_without_a_traceback"),
    "test_readme.py": ("test_every_block_of_code_runs",),
    "test_relaxed.py": ("test_the_rate_of_a_relaxed_z_is_right_at_any_temperature",),
    "test_report.py": ("test_drawing_libraries_are_imported_only_when_used",),
    "test_resume.py": ("test_killed_and_resumed_equals_uninterrupted",),
    "test_selfcheck.py": (
        "test_all_identities_hold_in_single_precision",
        "test_a_likelihood_without_ln_z_is_seen",
        "test_an_m_step_that_forgets_the_weights_is_seen",
    ),
    "test_sequence_nets.py": ("test_dropout_is_on_with_a_key_and_off_without",),
    "test_sources.py": ("test_workers_read_the_same", "test_numbers_do_not_depend_on_the_mesh"),
    "test_state_space.py": (
        "test_every_draw_of_the_exact_bound_is_ln_p_and_fishers_identity",
        "test_parallel_equals_sequential",
        "test_float32_at_small_noise_and_constant_columns",
        "test_float32_where_states_are_1e5_times_wider_than_the_noise",
        "test_stats_about_another_fit_give_the_same_m_step",
        "test_em_equals_numpy",
        "test_posterior_samples",
        "test_an_m_step_finds_small_noise_in_float32",
        "test_missing_sequences_change_only_what_is_known_of_paths",
    ),
    "test_table_experiments.py": (
        "test_table",
        "test_table_of_ones_own",
        "test_imputation",
        "test_few_labels",
        "test_cells",
        "test_cells_of_ones_own",
        "test_sprites",
        "test_a_table_of_rows_goes_on",
    ),
    "test_text_lengths.py": ("test_an_evaluation_by_length_is_the_evaluation",),
    "test_tpu_table.py": ("test_each_has_a_state_and_a_batch", "test_pairs_are_of_one_size"),
    "test_train.py": (
        "test_scan_equals_single_steps_also_over_a_mesh",
        "test_parts_take_turns",
        "test_shared_parameters_give_the_same_terms_and_the_sum_of_the_gradients",
    ),
    "test_trained.py": (
        "test_models_that_the_package_carries",
        "test_parameters_trained_otherwise_are_kept_the_same_way",
        "test_conditions",
        "test_a_model_without_z_says_so",
    ),
    "test_two_steps_experiment.py": ("test_two_steps",),
    "test_unet.py": (
        "test_bfloat16_is_near",
        "test_forms_on_cpu_are_the_native_ones",
        "test_what_saves_memory_changes_no_value",
        "test_starts_at_zero",
        "test_examples_do_not_mix_and_every_input_counts",
        "test_dropout_is_on_where_there_is_a_key",
        "test_no_label_is_no_condition",
    ),
    "test_vq.py": (
        "test_the_codebook_stays_in_step_between_devices",
        "test_what_is_left_falls_with_depth",
        "test_fsq_uses_all_levels_of_normal_numbers_alike",
        "test_stage_two_is_training_with_a_fixed_encoder",
    ),
    "test_vq_vae_experiment.py": ("test_both_stages",),
}


def _names(table):
    return {f"{file}::{test}" for file, tests in table.items() for test in tests}


INSTANCES = dict.fromkeys(_names(FIRST_OF), 1) | dict.fromkeys(_names(LATER), 0)
AFTER_ALL = _names(AFTERWARDS)
