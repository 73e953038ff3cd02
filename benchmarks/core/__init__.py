"""Cases, clocks, counters and reports: what every suite uses. Imports no other folder of the benchmarks."""
