#!/usr/bin/env python3
"""RWKV-4, Eagle, Finch, Goose and a transformer of one size on the same tokens.

    python3 compare.py HAWFINCH DATA OUT

HAWFINCH is the program, DATA the name of a data set that `hawfinch data build` made (with documents held out, or give
--validation), OUT the folder for everything that comes of it. Each architecture is tuned over the same learning rates, each
in a short run of its own schedule; then it is trained at the best of them from several seeds. OUT gets a folder a run, table.md
and loss.svg. Stopped, the same command goes on; finished runs are not repeated.
"""

import argparse
import json
import math
import shutil
import statistics
import struct
import subprocess
import sys
from pathlib import Path

import sizes

HERE = Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hawfinch", help="the program")
    parser.add_argument("data", type=Path, help="data set: NAME of NAME.bin and NAME.idx")
    parser.add_argument("out", type=Path, help="folder for runs, table and plot")
    parser.add_argument("--validation", type=Path, help="data set to validate on [what was held out of DATA]")
    parser.add_argument("--settings", type=Path, default=HERE / "comparison.toml", help="TOML of what runs share")
    parser.add_argument("--versions", nargs="+", default=list(sizes.VERSIONS), choices=list(sizes.VERSIONS))
    parser.add_argument("--parameters", type=float, default=1e6, help="of each model, but embedding and head [1e6]")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--head-size", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=256, help="rows of the embedding [256: bytes]")
    parser.add_argument("--rates", nargs="+", default=["1e-3", "2e-3", "4e-3", "8e-3", "1.6e-2", "3.2e-2"], help="learning rates to try")
    parser.add_argument("--tune-steps", type=int, default=120, help="steps of a tuning run [120]")
    parser.add_argument("--steps", type=int, default=480, help="steps of a run that counts [480]")
    parser.add_argument("--evals", type=int, default=12, help="validations of a run that counts [12]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--dry-run", action="store_true", help="only say which runs there would be")
    args = parser.parse_args()
    program = shutil.which(args.hawfinch) or shutil.which(f"./{args.hawfinch}")
    if program is None:
        parser.error(f"{args.hawfinch} is no program that can be run")
    args.hawfinch = Path(program).resolve()
    if args.validation is None and not Path(f"{args.data}.held-out.idx").is_file():
        parser.error(f"no documents were held out of {args.data}: build it with --held-out, or give --validation")
    return args


def records(folder):
    """What a run wrote down."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # the last line of a run that was killed
            pass
    return found


def result(folder, steps):
    """The last validation, once the run is done."""
    last = [r for r in records(folder) if r["kind"] == "eval" and r["step"] == steps]
    return last[-1] if last else None


def held(file):
    """Numbers that a safetensors file holds and a model uses."""
    with open(file, "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        tensors = json.loads(f.read(length))
    unused = ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")
    return sum(math.prod(t["shape"]) for n, t in tensors.items() if n != "__metadata__" and n not in unused)


class Comparison:
    def __init__(self, args):
        self.args = args
        self.width, self.found, _ = sizes.sizes(args.parameters, args.layers, args.head_size)
        sizes.check(args.parameters, self.found)

    def run(self, version, rate, seed, steps, evals):
        """Trains, or goes on, or does nothing if it is done; gives the last validation, None if it came to nothing."""
        args = self.args
        kind = "tune" if steps == args.tune_steps else "run"
        folder = args.out / f"{kind}-{version}-lr{rate}-seed{seed}"
        flags = {
            "version": version,
            "layers": args.layers,
            "width": self.width,
            "ffn-width": self.found[version][0],
            "head-size": args.head_size,
            "vocab": args.vocab,
            "data": args.data.resolve(),
            "lr": rate,
            "seed": seed,
            "steps": steps,
            "eval-every": max(1, steps // evals),
            "save-every": max(1, steps // 4),
            "out": folder,
        }
        if args.validation:
            flags["validation"] = args.validation.resolve()
        settings = {name: str(value) for name, value in flags.items()}
        settings["settings"] = args.settings.read_text()
        if args.dry_run:
            print(folder.name if kind == "tune" else f"{kind}-{version}-(the best)-seed{seed}")
            return {"loss": math.nan, "bits_per_byte": math.nan}
        record = folder / "asked.json"
        if record.is_file() and json.loads(record.read_text()) != settings:
            sys.exit(f"{folder} was made with other settings: give another OUT, or remove it")
        done = result(folder, steps)
        if done is None:
            folder.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(settings, indent=1))
            command = [args.hawfinch, "train", args.settings]
            command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
            print(f"\n== {folder.name}", flush=True)
            if subprocess.run(command).returncode != 0:
                sys.exit(f"{folder.name} ended early; the same command goes on with it")
            done = result(folder, steps)
        self.check(folder, version)
        # JSON has no NaN: a run without a loss has null.
        return done if done and done["loss"] is not None else None

    def check(self, folder, version):
        """Stops if the model is not of the size that was worked out."""
        models = sorted(folder.glob("step-*/model.safetensors"))
        args = self.args
        want = sizes.parameters(version, args.layers, self.width, self.found[version][0], args.vocab)
        if models and held(models[-1]) != want:
            sys.exit(f"{models[-1]} holds {held(models[-1])} parameters, not {want}: sizes.py counts wrong")

    def all(self):
        """{version: (loss of each rate, best rate, folders, last validations)}"""
        args, out = self.args, {}
        for version in args.versions:
            tuned = {}
            for rate in args.rates:
                # A seed of its own: no run that counts has been chosen by its own result.
                found = self.run(version, rate, 0, args.tune_steps, 1)
                tuned[rate] = found["loss"] if found else math.inf
            best = min(tuned, key=tuned.get)
            evals = [self.run(version, best, seed, args.steps, args.evals) for seed in args.seeds]
            folders = [args.out / f"run-{version}-lr{best}-seed{seed}" for seed in args.seeds]
            out[version] = (tuned, best, folders, [e for e in evals if e])
        return out

    def table(self, results):
        args = self.args
        lines = [
            f"{args.steps} steps; {args.layers} layers of width {self.width}, heads of {args.head_size}, embedding and head of "
            f"{args.vocab} rows. Each learning rate is the best of {', '.join(args.rates)} in runs of {args.tune_steps} steps.",
            f"Loss: validation at the end, nats a token, mean of {len(args.seeds)} seeds and their standard deviation.",
            "",
            "| architecture | parameters | channel mix | learning rate | loss | bits a byte | tokens/s |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        notes = []
        for version, (tuned, best, folders, evals) in results.items():
            f = self.found[version][0]
            count = sizes.parameters(version, args.layers, self.width, f, args.vocab)
            losses = [e["loss"] for e in evals]
            bits = [e["bits_per_byte"] for e in evals if e.get("bits_per_byte") is not None]
            speeds = [r["tokens_per_second"] for d in folders for r in records(d) if r["kind"] == "train"]
            mean = lambda values, digits: f"{statistics.fmean(values):.{digits}f}" if values else ""
            spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
            speed = f"{statistics.median(speeds):.0f}" if speeds else ""
            lines.append(
                f"| {sizes.VERSIONS[version]} | {count:,} | {f} | {best} | {mean(losses, 4)}{spread} | {mean(bits, 4)} | {speed} |"
            )
            if best in (args.rates[0], args.rates[-1]) and len(args.rates) > 1:
                notes.append(f"{sizes.VERSIONS[version]}: the best rate is at the edge of what was tried.")
            if len(losses) < len(args.seeds):
                notes.append(f"{sizes.VERSIONS[version]}: {len(args.seeds) - len(losses)} of its runs came to no loss.")
        lines += ["", "Tuning, validation loss:", "", "| architecture | " + " | ".join(args.rates) + " |"]
        lines.append("| --- |" + " --- |" * len(args.rates))
        for version, (tuned, *_) in results.items():
            values = [f"{v:.4f}" if math.isfinite(v) else "none" for v in tuned.values()]
            lines.append(f"| {sizes.VERSIONS[version]} | " + " | ".join(values) + " |")
        if notes:
            lines += [""] + notes
        return "\n".join(lines) + "\n"


def main():
    args = arguments()
    comparison = Comparison(args)
    results = comparison.all()
    if args.dry_run:
        return
    table = comparison.table(results)
    (args.out / "table.md").write_text(table)
    print("\n" + table)
    runs = [f"{sizes.VERSIONS[v]}={folder}" for v, (_, _, folders, _) in results.items() for folder in folders]
    plot = [args.hawfinch, "plot", *runs, "--y", "bits-per-byte", "--log-x", "--out", args.out / "loss.svg"]
    if subprocess.run(plot).returncode != 0:
        sys.exit("the table is written, but no plot; the same command tries again")


if __name__ == "__main__":
    main()
