#!/usr/bin/env python3
"""Widths at which all architectures of the comparison have as many parameters.

    python3 sizes.py 1e6 --layers 4 --head-size 32

All have the same layers, width, heads, embedding and head; each channel mix is as wide as it takes for the parameters asked
for (embedding and head not counted). The width is that at which the channel mixes come nearest to the proportions that their
authors give them. compare.py counts what the program made and stops if it is another number.
"""

import argparse
import math

# What `version` of a run is called, and the name in tables and plots.
VERSIONS = {
    "4": "RWKV-4",
    "5.2": "Eagle (5.2)",
    "6": "Finch (6)",
    "7": "Goose (7)",
    "attention": "attention",
}

# Inner width of the channel mix beside the width, as their authors have it.
USUAL = {"4": 4, "5.2": 3.5, "6": 3.5, "7": 4, "attention": 8 / 3}

# The channel mixes are whole multiples of this: whole registers.
STEP = 8


def whole_32s(rank):
    return max(32, 32 * round(rank / 32))


def block(version, d):
    """Parameters of a block without its channel mix's wide matrices, and how many of those there are."""
    root = math.sqrt(d)
    if version == "4":  # time mix 4 D^2, receptance of the channel mix D^2; decay, first, mixes, norms
        return 5 * d * d + 11 * d, 2
    if version == "5.2":  # and a gate
        return 6 * d * d + 14 * d, 2
    if version == "6":  # low-rank mixes of rank 32, decay of rank 64
        return 6 * d * d + (16 + 10 * 32 + 2 * 64) * d, 2
    if version == "7":  # low-rank decay, learning rate, value, gate
        ranks = 2 * whole_32s(2.5 * root) + whole_32s(1.7 * root) + whole_32s(5 * root)
        return 4 * d * d + (19 + 2 * ranks) * d, 2
    return 4 * d * d + 6 * d, 3  # attention; its channel mix has a gate


def parameters(version, layers, d, f, vocab=0):
    """Parameters that are used. (Layer 0 of RWKV-7 has a value residual that nothing uses.)"""
    rest, matrices = block(version, d)
    total = layers * (rest + matrices * d * f) + 4 * d + 2 * d * vocab
    if version == "7":
        total -= d + 2 * whole_32s(1.7 * math.sqrt(d)) * d
    return total


def fitted(target, version, layers, d):
    """The inner width that comes nearest to `target`, and the parameters."""
    rest, step = parameters(version, layers, d, 0), layers * block(version, d)[1] * d * STEP
    f = STEP * max(1, round((target - rest) / step))
    return f, parameters(version, layers, d, f)


def sizes(target, layers, head_size):
    """The width, {version: (inner width, parameters)} without embedding and head, and how far the channel mixes are from
    their authors' proportions: a factor."""

    def at(d):
        found = {version: fitted(target, version, layers, d) for version in VERSIONS}
        off = max(abs(math.log(f / (USUAL[version] * d))) for version, (f, _) in found.items())
        return off, d, found

    least = min(parameters(version, layers, head_size, STEP) for version in VERSIONS)
    if target < least:
        raise SystemExit(f"{target:.0f} parameters are fewer than the smallest such model has ({least})")
    widest = int(math.sqrt(target / layers)) + head_size
    off, width, found = min(at(d) for d in range(head_size, widest + 1, head_size))
    return width, found, math.exp(off)


def check(target, found):
    """Stops unless all are within 2% of each other."""
    counts = [count for _, count in found.values()]
    if max(counts) > 1.02 * min(counts):
        raise SystemExit(
            f"no widths make these architectures equal within 2% at {target} parameters "
            f"({min(counts)} to {max(counts)}): ask for more parameters or fewer layers"
        )


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("parameters", type=float, help="of each model, embedding and head not counted")
    args.add_argument("--layers", type=int, default=4)
    args.add_argument("--head-size", type=int, default=32)
    args = args.parse_args()
    width, found, off = sizes(args.parameters, args.layers, args.head_size)
    print(f"{args.layers} layers, width {width}, heads of {args.head_size}")
    for version, (f, count) in found.items():
        wide = f"{f / width:.1f} widths, usually {USUAL[version]:.1f}"
        print(f'version = "{version}"{"":<{10 - len(version)}}ffn-width = {f:<6} {count:>10} parameters   {wide}')
    check(args.parameters, found)
    if off > 1.5:
        print(f"channel mixes are up to {off:.1f} times as narrow or wide as usual: more parameters would fit better")


if __name__ == "__main__":
    main()
