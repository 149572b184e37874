"""Benchmarks: ``python -m benchmarks`` lists the suites, ``python -m benchmarks gmm`` runs one."""
