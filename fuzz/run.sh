#!/usr/bin/env bash
# Fuzzes one target, or all in turn, for so many CPU-minutes each (30 unless said):
#
#   fuzz/run.sh [TARGET] [MINUTES]
#
# Installs cargo-fuzz where it is absent, builds (stable Rust, no sanitizer, debug assertions and overflow
# checks on), writes the seeds into fuzz/corpus/TARGET, runs, and appends a line a half minute of CPU time to
# fuzz/record/TARGET.csv: cumulative CPU seconds, executions, edges and features covered, inputs kept. A later
# run goes on from the corpus that is there. What breaks is left in fuzz/artifacts/TARGET, and ends the run
# with exit code 1. See docs/fuzzing.md.
set -euo pipefail
cd "$(dirname "$0")"

minutes=${2:-30}
targets=${1:-all}
if [ "$targets" = all ]; then
    targets=$(sed -n 's|^path = "fuzz_targets/\(.*\)\.rs"|\1|p' Cargo.toml)
fi

command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --version 0.13.2 --locked

if [ -z "${FUZZ_NO_BUILD:-}" ]; then
    for target in $targets; do nice cargo fuzz build --sanitizer none "$target"; done
    # The crates' replay tests write their seeds and the samples kept of earlier corpora.
    (cd .. && HAWFINCH_FUZZ_SEEDS=$PWD/fuzz/corpus nice cargo test --release --quiet \
        -p hawfinch-model -p hawfinch-tokenizer -p hawfinch-engine --test fuzz_replay)
fi
bin=target/$(rustc -vV | sed -n 's/^host: //p')/release

# CPU seconds of a process: user and system time in clock ticks, fields 14 and 15.
ticks=$(getconf CLK_TCK)
cpu_seconds() { awk -v t="$ticks" '{ sub(/.*\) /, ""); print ($12 + $13) / t }' "/proc/$1/stat" 2>/dev/null; }
# The last status line of libFuzzer: executions, edges, features, inputs.
status() {
    awk '/^#[0-9]+.* cov: / { n = substr($1, 2); for (i = 2; i < NF; i++) { if ($i == "cov:") c = $(i + 1); \
        if ($i == "ft:") f = $(i + 1); if ($i == "corp:") k = $(i + 1) } } /^stat::number_of_executed_units/ { n = $2 } \
        END { sub("/.*", "", k); if (n != "") printf "%d,%d,%d,%d\n", n, c, f, k }' "$1"
}

failed=0
for target in $targets; do
    mkdir -p "corpus/$target" "artifacts/$target" record
    record=record/$target.csv
    [ -s "$record" ] || echo "cpu_seconds,executions,edges,features,inputs" >"$record"
    before=$(tail -n 1 "$record" | awk -F, '/^[0-9]/ { print $1; exit } { print 0 }')
    executed=$(tail -n 1 "$record" | awk -F, '/^[0-9]/ { print $2; exit } { print 0 }')
    log=$(mktemp)
    case $target in # the seeds' sizes
        pth) max_len=40960 ;;
        gguf) max_len=32768 ;;
        template) max_len=4096 ;;
        *) max_len=20480 ;;
    esac
    dictionary=()
    [ -f "dictionaries/$target.dict" ] && dictionary=("-dict=dictionaries/$target.dict")
    # The 64 MiB limit on a single allocation is in the targets themselves: libFuzzer's needs a sanitizer.
    nice -n 19 "$bin/$target" "corpus/$target" "${dictionary[@]}" -artifact_prefix="artifacts/$target/" \
        -rss_limit_mb=2048 -timeout="${FUZZ_TIMEOUT:-10}" -max_len="$max_len" -print_final_stats=1 -verbosity=1 2>"$log" &
    pid=$!
    trap 'kill -INT $pid 2>/dev/null || true' EXIT
    line() {
        local s
        s=$(status "$log")
        [ -n "$s" ] && echo "$1,$s" | awk -F, -v OFS=, -v b="$before" -v e="$executed" \
            '{ printf "%.0f,%d,%d,%d,%d\n", b + $1, e + $2, $3, $4, $5 }' >>"$record"
        return 0
    }
    next=30
    used=0
    while sleep 2; now=$(cpu_seconds $pid) && [ -n "$now" ]; do
        used=$now
        if awk "BEGIN { exit !($used >= $next) }"; then
            line "$used"
            next=$(awk "BEGIN { print $used + 30 }")
        fi
        if awk "BEGIN { exit !($used >= $minutes * 60) }"; then kill -INT $pid; break; fi
    done
    code=0
    wait $pid || code=$?
    line "$used"
    # 72: stopped by the signal above.
    if [ "$code" -ne 0 ] && [ "$code" -ne 72 ]; then
        echo "$target: found something (exit code $code)"
        grep -v '^#' "$log" | tail -n 40
        failed=1
    fi
    echo "$target: $(tail -n 1 "$record") (CPU seconds, executions, edges, features, inputs)"
    rm -f "$log"
done
exit $failed
