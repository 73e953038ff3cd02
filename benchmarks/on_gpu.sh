#!/bin/sh
# Everything that wants a GPU, in one go, from the tree, within about 9 minutes: tests, benchmarks, tuning. `make gpu OUT=folder`.
# Each step has its own limit and the next one runs whatever became of it; what was measured lies in OUT.
out=${OUT:-bench_out}
python=${GPU_PYTHON:-python3}
export PYTHONPATH=.:tests
mkdir -p "$out"
timeout 140 "$python" -m pytest tests/triton_cases.py tests/test_attention.py -q -p no:cacheprovider > "$out/tests.txt" 2>&1
tail -n 3 "$out/tests.txt"
timeout 40 "$python" -m mvar_kernels > "$out/selfcheck.txt" 2>&1
timeout 140 "$python" -m benchmarks --suite attention --quick --out "$out" > "$out/attention.txt" 2>&1
tail -n 3 "$out/attention.txt"
timeout 100 "$python" -m benchmarks --suite model --suite sampling --suite memory --quick --out "$out" > "$out/models.txt" 2>&1
tail -n 3 "$out/models.txt"
timeout 120 "$python" -m benchmarks.tune --minutes 1.5 --out "$out" > "$out/tune.txt" 2>&1
tail -n 5 "$out/tune.txt"
