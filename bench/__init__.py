"""Benchmarks that run from a checkout; measured results lie in bench/results."""
