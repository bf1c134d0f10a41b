#!/usr/bin/env bash
# Packs a sample of a target's corpus for the tests: fuzz/pack.sh TARGET. Of the inputs of at most 3000 bytes it
# takes a minimal set that reaches what they all reach, and of these, sorted by size, every k-th so that they take
# at most 20 kB, into
# crates/CRATE/tests/data/fuzz/TARGET.corpus (each input its length as u32, little-endian, and its bytes).
set -euo pipefail
cd "$(dirname "$0")"
target=$1
# The crate whose checks the target calls; `ids` is part of the binary, whose own tests cover it.
crate=$(sed -n 's|.*"../../crates/\(.*\)/tests/fuzz_checks/mod.rs".*|\1|p' "fuzz_targets/$target.rs")
[ -n "$crate" ] || { echo "$target calls the checks of no crate: nothing replays a sample" >&2; exit 2; }
bin=target/$(rustc -vV | sed -n 's/^host: //p')/release/$target
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/small" "$work/cover"
# (A fuzzer that runs beside this replaces inputs by smaller ones.)
find "corpus/$target" -type f -size -3001c -exec cp -t "$work/small" {} + 2>/dev/null || true
nice "$bin" -set_cover_merge=1 -rss_limit_mb=2048 "$work/cover" "$work/small" 2>/dev/null
out=../crates/$crate/tests/data/fuzz/$target.corpus
mkdir -p "$(dirname "$out")"
: >"$out"
files=$(find "$work/cover" -type f -size +0c -printf '%s %p\n' | sort -n)
step=$(awk '{ total += $1 + 4 } END { print int(total / 20000) + 1 }' <<<"$files")
while read -r size file; do
    for shift in 0 8 16 24; do printf "\\x$(printf %02x $(((size >> shift) & 255)))"; done >>"$out"
    cat "$file" >>"$out"
done < <(awk -v step="$step" 'NR % step == 1 % step' <<<"$files")
echo "$out: $(stat -c %s "$out") bytes, one in $step of $(wc -l <<<"$files") covering inputs"
