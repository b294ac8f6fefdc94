"""Sequences with an exact posterior: hidden Markov models, and linear-Gaussian state-space models."""
