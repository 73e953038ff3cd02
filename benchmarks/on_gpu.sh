#!/bin/sh
# Run everything that needs a GPU from the tree, in about 9 minutes: tests, benchmarks, tuning. `make gpu OUT=folder`.
# Each step has its own time limit, and the next one runs even if it failed; the exit status is 0 only if all succeeded.
# After each step OUT holds results.tgz with everything so far, and the Markdown tables.
out=${OUT:-bench_out}
python=${GPU_PYTHON:-python3}
export PYTHONPATH=.:tests/support PYTHONUNBUFFERED=1
export MVAR_COMMIT="${MVAR_COMMIT:-$(git describe --always --dirty --abbrev=12 2>/dev/null)}"
work=$(mktemp -d)
mkdir -p "$out"
failed=0

# step NAME SECONDS COMMAND...: output goes to NAME.txt, its last lines to the terminal.
step() {
    name=$1 seconds=$2
    shift 2
    # SIGINT, so that pytest still prints its summary.
    timeout -s INT -k 10 "$seconds" "$@" > "$work/$name.txt" 2>&1
    status=$?
    [ $status -eq 0 ] || failed=1
    echo "== $name: exit status $status"
    tail -n 4 "$work/$name.txt"
    tar czf "$out/results.tgz" -C "$work" .
    cp "$work"/*.md "$work/tile_table.py" "$out" 2>/dev/null
}

workers=$("$python" -c "import xdist; print('-n 8 --dist worksteal')" 2>/dev/null)
# shellcheck disable=SC2086
step tests 170 env MVAR_EVERYTHING=1 OMP_NUM_THREADS=2 "$python" -m pytest \
    tests/triton tests/kernels/test_attention.py -q -p no:cacheprovider $workers
step selfcheck 40 "$python" -m mvar_kernels
step attention 130 "$python" -m benchmarks --suite attention --quick --out "$work"
step models 90 "$python" -m benchmarks --suite model --suite sampling --suite memory --quick --out "$work"
step tune 110 "$python" -m benchmarks.tune --minutes 1.4 --out "$work"
rm -rf "$work"
exit $failed
