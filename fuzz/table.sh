#!/usr/bin/env bash
# Prints the table of docs/fuzzing.md from fuzz/record/*.csv: edges at 1, 5, 10, 20 and 30 minutes of CPU time.
set -euo pipefail
cd "$(dirname "$0")/record"
echo "| target | CPU minutes | executions | edges at 1 min | 5 | 10 | 20 | 30 | at the end | inputs kept |"
echo "|---|---|---|---|---|---|---|---|---|---|"
for target in $(sed -n 's|^path = "fuzz_targets/\(.*\)\.rs"|\1|p' ../Cargo.toml); do
    [ -f "$target.csv" ] || continue
    awk -F, -v target="$target" '
        NR > 1 {
            # The sample nearest to each minute, if it lies within 20 s.
            for (i = 1; i <= split("60 300 600 1200 1800", want, " "); i++) {
                d = $1 - want[i]; if (d < 0) d = -d
                if (d <= 20 && (!(i in best) || d < best[i])) { best[i] = d; edges[i] = $3 }
            }
            seconds = $1; executions = $2; last = $3; inputs = $5
        }
        END {
            printf "| %s | %.1f | %.1f M |", target, seconds / 60, executions / 1e6
            for (i = 1; i <= 5; i++) printf " %s |", (i in edges) ? edges[i] : "–"
            printf " %d | %d |\n", last, inputs
        }' "$target.csv"
done
