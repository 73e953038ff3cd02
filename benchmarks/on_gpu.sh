#!/bin/sh
# Everything that wants a GPU, in one go, from the tree, within about 9 minutes: tests, benchmarks, tuning. `make gpu OUT=folder`.
# Each step has its own limit and the next one runs whatever became of it; the exit status says whether all went well. OUT gets results.tgz, with
# everything up to the last step that ended, and the tables beside it.
out=${OUT:-bench_out}
python=${GPU_PYTHON:-python3}
export PYTHONPATH=.:tests/support PYTHONUNBUFFERED=1 MVAR_COMMIT="${MVAR_COMMIT:-$(git describe --always --dirty --abbrev=12 2>/dev/null)}"
work=$(mktemp -d)
mkdir -p "$out"
failed=0

step() { # name, seconds, command: what it prints goes to name.txt, its last lines here
    name=$1 seconds=$2
    shift 2
    # SIGINT, so that pytest still says what it found.
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
step tests 170 env OMP_NUM_THREADS=2 "$python" -m pytest tests/triton tests/kernels/test_attention.py -q -p no:cacheprovider $workers
step selfcheck 40 "$python" -m mvar_kernels
step attention 130 "$python" -m benchmarks --suite attention --quick --out "$work"
step models 90 "$python" -m benchmarks --suite model --suite sampling --suite memory --quick --out "$work"
step tune 110 "$python" -m benchmarks.tune --minutes 1.4 --out "$work"
rm -rf "$work"
exit $failed
