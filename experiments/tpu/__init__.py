"""Training steps compiled for TPUs by the real compiler, without one. Not part of the library."""
