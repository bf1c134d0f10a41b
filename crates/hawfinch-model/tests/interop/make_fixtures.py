"""Makes the fixtures in ../data: tiny random checkpoints written by torch.save, and what other
projects' own converters make of them. Run by hand when a fixture is to change; tests only read.

    python make_fixtures.py --web-rwkv  CLONE/assets/scripts/convert_safetensors.py \
        --hf-v4 SITE-PACKAGES/transformers/models/rwkv/convert_rwkv_checkpoint_to_hf.py \
        --hf-v5 CLONE/scripts/convert_rwkv5_checkpoint_to_hf.py \
        --hf-v6 CLONE/scripts/convert_rwkv6_checkpoint_to_hf.py \
        --fla   CLONE/utils

needs torch, safetensors, huggingface_hub, transformers and flash-linear-attention; each option makes its
part of the fixtures (web-rwkv's script needs safetensors before 0.6). ../data/README.md says which commits
and versions made the committed files.
"""
import argparse
import ast
import re
import runpy
import shutil
import sys
import types
from collections import OrderedDict
from pathlib import Path

import torch

DATA = Path(__file__).resolve().parent.parent / "data"


def official(version, d=16, n=8, layers=2, vocab=11, f=24, ranks=(3, 5, 2, 4), dtype=torch.float32):
    """A random checkpoint under official names and shapes."""
    g = torch.Generator().manual_seed(sum(map(ord, version)))
    h = d // n
    out = OrderedDict()

    def put(name, *shape):
        out[name] = (torch.randn(*shape, generator=g) * 0.5).to(dtype)

    put("emb.weight", vocab, d)
    for i in range(layers):
        p = f"blocks.{i}."
        for ln in ["ln1", "ln2"] + (["ln0"] if i == 0 else []):
            put(p + ln + ".weight", d)
            put(p + ln + ".bias", d)
        a = p + "att."
        if version == "v7":
            for x in "rwkvag":
                put(a + "x_" + x, 1, 1, d)
            for x, r in zip("wavg", ranks):
                if x == "v" and i == 0:
                    continue
                if x != "g":
                    put(a + x + "0", 1, 1, d)
                put(a + x + "1", d, r)
                put(a + x + "2", r, d)
            put(a + "k_k", 1, 1, d)
            put(a + "k_a", 1, 1, d)
            put(a + "r_k", h, n)
        elif version == "v6":
            for x in "xwkvrg":
                put(a + "time_maa_" + x, 1, 1, d)
            put(a + "time_maa_w1", d, 5 * ranks[0])
            put(a + "time_maa_w2", 5, ranks[0], d)
            put(a + "time_decay", 1, 1, d)
            put(a + "time_decay_w1", d, ranks[1])
            put(a + "time_decay_w2", ranks[1], d)
            put(a + "time_faaaa", h, n)
        else:
            for x in "kvr" + ("" if version in ("v4", "v50") else "g"):
                put(a + "time_mix_" + x, 1, 1, d)
            shape = {"v4": (d,), "v50": (h,), "v51": (h,), "v51-log": (h,), "v52": (h, n)}[version]
            put(a + "time_decay", *shape)
            put(a + ("time_first" if version in ("v4", "v51-log") else "time_faaaa"), *shape)
        for m in ["receptance", "key", "value", "output"] + (["gate"] if version in ("v51", "v51-log", "v52", "v6") else []):
            put(a + m + ".weight", d, d)
        if version != "v4":
            put(a + "ln_x.weight", d)
            put(a + "ln_x.bias", d)
        c = p + "ffn."
        if version == "v7":
            put(c + "x_k", 1, 1, d)
        else:
            mix = "time_maa_" if version == "v6" else "time_mix_"
            put(c + mix + "k", 1, 1, d)
            put(c + mix + "r", 1, 1, d)
            put(c + "receptance.weight", d, d)
        put(c + "key.weight", f, d)
        put(c + "value.weight", d, f)
    put("ln_out.weight", d)
    put("ln_out.bias", d)
    put("head.weight", vocab, d)
    return out


def run_script(path, *args):
    """Runs another project's script as a program."""
    old = sys.argv
    sys.argv = [str(path), *map(str, args)]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = old


def function_of(path, name):
    """One function of a script whose other parts need a network."""
    tree = ast.parse(Path(path).read_text())
    body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    scope = {"re": re, "torch": torch}
    exec(compile(ast.Module(body, []), str(path), "exec"), scope)
    return scope[name]


def main():
    ap = argparse.ArgumentParser()
    for a in ["--web-rwkv", "--hf-v4", "--hf-v5", "--hf-v6", "--fla"]:
        ap.add_argument(a)
    args = ap.parse_args()

    DATA.mkdir(exist_ok=True)
    if args.web_rwkv:
        web_rwkv(args.web_rwkv)
    if args.hf_v4 and args.hf_v5 and args.hf_v6:
        hugging_face({"v4": args.hf_v4, "v52": args.hf_v5, "v6": args.hf_v6})
    if args.fla:
        fla(Path(args.fla))


def web_rwkv(script):
    for v in ["v4", "v51", "v51-log", "v52", "v6", "v7", "v51-head", "v51-log-head", "v52-head"]:
        pth = DATA / f"{v}.pth"
        version = v.removesuffix("-head")
        torch.save(official(version) if version == v else official(version, d=8, f=8), pth)
        run_script(script, "--input", pth, "--output", DATA / f"{v}.web-rwkv.st")

    # A tuned state, [head, value, key], and what web-rwkv's converter makes of it.
    g = torch.Generator().manual_seed(7)
    state = {f"blocks.{i}.att.time_state": torch.randn(2, 8, 8, generator=g).bfloat16() for i in range(2)}
    torch.save(state, DATA / "state.pth")
    run_script(script, "--input", DATA / "state.pth", "--output", DATA / "state.web-rwkv.st")


def hugging_face(scripts):
    from huggingface_hub import save_torch_state_dict

    for v, script in scripts.items():
        names = function_of(script, "convert_state_dict")(official(v))
        folder = DATA / f"{v}.hf"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        # Small shards for one of them, so that it has an index.
        save_torch_state_dict(names, folder, max_shard_size="15KB" if v == "v6" else "5GB")


def fla(utils):
    """flash-linear-attention's own converters. Its v7 has head size 64, so that one is wider."""
    small = dict(d=64, n=64, vocab=3, f=8, dtype=torch.bfloat16)
    torch.save(official("v7", **small), DATA / "v7-wide.pth")
    convert = runpy.run_path(str(utils / "convert_from_rwkv7.py"))["convert"]
    out = DATA / "v7-wide.fla"
    shutil.rmtree(out, ignore_errors=True)
    convert(str(DATA / "v7-wide.pth"), str(out), "bfloat16")
    (out / "generation_config.json").unlink(missing_ok=True)

    # v6: the converter reads a Hugging Face model object; give it one of plain attributes.
    import fla.utils as fla_utils
    import transformers
    from fla.models import RWKV6Config

    weights = official("v6")
    fla_utils.device = "cpu"
    config = RWKV6Config(
        hidden_size=16, num_hidden_layers=2, num_heads=2, expand_k=1.0, expand_v=1.0, intermediate_size=24,
        vocab_size=11, proj_low_rank_dim=3, gate_low_rank_dim=5, norm_first=True, norm_bias=True,
    )
    out = DATA / "v6.fla"
    shutil.rmtree(out, ignore_errors=True)
    config.save_pretrained(out)

    class Node(types.SimpleNamespace):
        def __getitem__(self, i):
            return getattr(self, str(i))

        def to(self, _):
            return self

    root = Node()
    renames = {"emb": "rwkv.embeddings", "blocks": "rwkv.blocks", "ln_out": "rwkv.ln_out", "head": "rwkv.head"}
    parts = {"att": "attention", "ffn": "feed_forward", "ln0": "pre_ln"}
    for name, value in weights.items():
        first, rest = name.split(".", 1)
        path = (renames[first] + "." + rest).split(".")
        node = root
        for p in [parts.get(p, p) for p in path[:-1]]:
            if not hasattr(node, p):
                setattr(node, p, Node(eps=1e-5))
            node = getattr(node, p)
        setattr(node, path[-1], value.float())
    root.head = root.rwkv.head

    script = utils / "convert_from_rwkv6.py"
    real_model, real_tokenizer = transformers.AutoModelForCausalLM.from_pretrained, transformers.AutoTokenizer
    transformers.AutoModelForCausalLM.from_pretrained = lambda *a, **k: root
    transformers.AutoTokenizer = types.SimpleNamespace(
        from_pretrained=lambda *a, **k: types.SimpleNamespace(save_pretrained=lambda *_: None))
    try:
        runpy.run_path(str(script))["convert"]("unused", str(out), str(out))
    finally:
        transformers.AutoModelForCausalLM.from_pretrained = real_model
        transformers.AutoTokenizer = real_tokenizer
    (out / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
