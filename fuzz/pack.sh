#!/usr/bin/env bash
# Packs a sample of a target's corpus for the tests: fuzz/pack.sh TARGET. Of the inputs of at most 3000 bytes it
# takes a minimal set that reaches what they all reach, and of these the smallest, up to 20 kB in all, into
# crates/CRATE/tests/data/fuzz/TARGET.corpus (each input its length as u32, little-endian, and its bytes).
set -euo pipefail
cd "$(dirname "$0")"
target=$1
# The crate whose checks the target calls; `ids` is part of the binary, whose own tests cover it.
crate=$(sed -n 's|.*"../../crates/\(.*\)/tests/fuzz_checks/mod.rs".*|\1|p' "fuzz_targets/$target.rs")
bin=target/$(rustc -vV | sed -n 's/^host: //p')/release/$target
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/small" "$work/cover"
find "corpus/$target" -type f -size -3001c -exec cp -t "$work/small" {} +
nice "$bin" -set_cover_merge=1 -rss_limit_mb=2048 "$work/cover" "$work/small" 2>/dev/null
out=../crates/$crate/tests/data/fuzz/$target.corpus
mkdir -p "$(dirname "$out")"
: >"$out"
total=0
while read -r size file; do
    [ $((total + size + 4)) -gt 20000 ] && break
    for shift in 0 8 16 24; do printf "\\x$(printf %02x $(((size >> shift) & 255)))"; done >>"$out"
    cat "$file" >>"$out"
    total=$((total + size + 4))
done < <(find "$work/cover" -type f -size +0c -printf '%s %p\n' | sort -n)
echo "$out: $total bytes of $(find "$work/cover" -type f | wc -l) covering inputs"
