"""What `python -m benchmarks --suite NAME` measures: one file per suite, listed in `table.py`."""
