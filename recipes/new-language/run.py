#!/usr/bin/env python3
"""A language for a model: trained beside it by LoRA and by state tuning, measured before and after, there and elsewhere.

    python3 run.py HAWFINCH MODEL OUT --language NAME=TRAIN.txt,TEST.txt --other NAME=TEST.txt

Texts have a sentence or a paragraph a line. OUT gets a folder a language (data, runs, loss.svg) and table.md: bits a byte of
the language's TEST and of the other languages' (what is forgotten shows there). Stopped, the same command goes on; what is
done is not repeated.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
METHODS = ["lora", "state"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hawfinch", help="the program")
    parser.add_argument("model", help="a model, or `demo`")
    parser.add_argument("out", type=Path, help="folder for runs and table")
    parser.add_argument("--language", action="append", required=True, metavar="NAME=TRAIN,TEST")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=TEST", help="to see what is forgotten")
    parser.add_argument("--lines", type=int, default=10, help="lines of TRAIN that make a document [10]")
    parser.add_argument("--keep", type=float, default=0.1, help="part of TRAIN to validate on while training [0.1]")
    for method in METHODS:
        parser.add_argument(f"--{method}", default="", metavar="FLAGS", help=f"more settings of the {method} run")
    args = parser.parse_args()
    program = shutil.which(args.hawfinch) or shutil.which(f"./{args.hawfinch}")
    if program is None:
        parser.error(f"{args.hawfinch} is no program that can be run")
    args.hawfinch = str(Path(program).resolve())
    if Path(args.model).exists():
        args.model = str(Path(args.model).resolve())
    try:
        args.language = [(name, *map(Path, files.split(","))) for name, files in (l.split("=", 1) for l in args.language)]
        args.other = [(name, Path(file)) for name, file in (o.split("=", 1) for o in args.other)]
        assert all(len(l) == 3 for l in args.language)
    except (ValueError, AssertionError):
        parser.error("--language takes NAME=TRAIN.txt,TEST.txt and --other NAME=TEST.txt")
    for file in [f for l in args.language for f in l[1:]] + [f for _, f in args.other]:
        if not file.is_file():
            parser.error(f"there is no file {file}")
    return args


def run(command, **more):
    done = subprocess.run([str(c) for c in command], **more)
    if done.returncode != 0:
        sys.exit(f"this failed, and the same command goes on from here: {' '.join(map(str, command))}")
    return done


def documents(file, lines):
    """Texts of some lines each."""
    all_lines = [l.strip() for l in file.read_text(encoding="utf-8").splitlines() if l.strip()]
    return ["\n".join(all_lines[at : at + lines]) for at in range(0, len(all_lines), lines)]


def write(file, texts):
    file.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")


class Recipe:
    def __init__(self, args):
        self.args = args
        self.tests = {}

    def test(self, name, file):
        """The texts to measure a language by."""
        path = self.args.out / "test" / f"{name}.jsonl"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, documents(file, self.args.lines))
        self.tests[name] = path

    def bits(self, more, cache):
        """Bits a byte of every language."""
        if not cache.exists():
            names = list(self.tests)
            command = [self.args.hawfinch, "perplexity", self.args.model, *(self.tests[n] for n in names), "--json", *more]
            said = json.loads(run(command, stdout=subprocess.PIPE).stdout)
            cache.write_text(json.dumps({n: f["bits_per_byte"] for n, f in zip(names, said["files"])}))
        return json.loads(cache.read_text())

    def language(self, name, train):
        """{method: bits a byte of every language}"""
        args, folder = self.args, self.args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "data"
        if not data.with_suffix(".idx").exists():
            write(folder / "train.jsonl", documents(train, args.lines))
            run([args.hawfinch, "data", "build", folder / "train.jsonl", "--tokenizer", args.model, "--held-out", f"{100 * args.keep:g}%", "-o", data])
        found = {}
        for method in METHODS:
            out = folder / method
            command = [args.hawfinch, "train", HERE / f"{method}.toml", "--from", args.model, "--data", data, "--out", out]
            run(command + vars(args)[method].split())
            last = sorted(out.glob("step-*"))[-1]
            best = best_of(out, last)
            more = ["--lora", best / "adapter.safetensors"] if method == "lora" else ["--state", best / "state.safetensors"]
            found[method] = self.bits(more, folder / f"{method}.json")
        runs = [f"{method}={folder / method}" for method in METHODS]
        run([args.hawfinch, "plot", *runs, "--y", "bits-per-byte", "--out", folder / "loss.svg"])
        return found

    def all(self):
        args = self.args
        args.out.mkdir(parents=True, exist_ok=True)
        for name, _, test in args.language:
            self.test(name, test)
        for name, file in args.other:
            self.test(name, file)
        before = self.bits([], args.out / "before.json")
        names = list(self.tests)
        lines = [
            "Bits a byte of text that nothing was trained on; in bold the language that was trained.",
            "",
            "| trained | by | " + " | ".join(names) + " |",
            "| --- | --- |" + " --- |" * len(names),
            "| - | the model | " + " | ".join(f"{before[n]:.3f}" for n in names) + " |",
        ]
        for name, train, _ in args.language:
            for method, bits in self.language(name, train).items():
                cells = [f"**{bits[n]:.3f}**" if n == name else f"{bits[n]:.3f}" for n in names]
                lines.append(f"| {name} | {method} | " + " | ".join(cells) + " |")
        table = "\n".join(lines) + "\n"
        (args.out / "table.md").write_text(table)
        print("\n" + table)


def best_of(out, last):
    """The checkpoint that was best in validation, where it is kept."""
    best = json.loads((last / "progress.json").read_text()).get("best")
    folder = out / f"step-{best[1]:08}" if best else last
    return folder if folder.is_dir() else last


if __name__ == "__main__":
    Recipe(arguments()).all()
