"""Reports about runs: one of a pretraining, one of vision tokenizers, a comparison."""
