"""A small trainer and sampler, for examples, tests and benchmarks."""
