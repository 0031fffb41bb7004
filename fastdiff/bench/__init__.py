"""Tools for benchmarks: fair timing and the machine's limits."""
