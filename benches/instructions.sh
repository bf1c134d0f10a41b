#!/usr/bin/env bash
# Counts the instructions of one decode step under callgrind, a figure that other programs on the machine do not
# disturb: benches/instructions.sh [COMMAND OF HAWFINCH]
#
# Small models of random weights (4 layers × 256, vocabulary 256) write 8 and 40 tokens on one thread; a step is a
# 32nd of the difference, sampling included. AVX2 is forced: valgrind knows no AVX-512. Needs valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."
hawfinch=${1:-target/release/hawfinch}
command -v valgrind >/dev/null || { echo "valgrind is not installed" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export HAWFINCH_ISA=avx2

# Instructions of a run that writes so many tokens.
count() {
    local tokens=$1
    shift
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$hawfinch" generate --greedy --threads 1 \
        --ignore-eos -n "$tokens" "$@" "A text" 2>&1 >/dev/null | sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

echo "| model | weights | instructions of a step |"
echo "| --- | --- | --- |"
for version in 4 5.2 6 7; do
    model=$folder/$version.safetensors
    "$hawfinch" synthesize "$model" --version "$version" --layers 4 --width 256 --vocab 256 2>/dev/null
    for quant in bf16 int8 int4; do
        options=()
        [ "$quant" = bf16 ] || options=(--quant "$quant")
        few=$(count 8 "$model" "${options[@]}")
        many=$(count 40 "$model" "${options[@]}")
        echo "| RWKV-$version | $quant | $(((many - few) / 32)) |"
    done
done
