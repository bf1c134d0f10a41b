"""Checks that the `gguf` package and llama.cpp open the GGUF files hawfinch writes. Run by hand:

    INTEROP_OUT=/tmp/ours cargo test --release -p hawfinch-model --test gguf_files
    python check_gguf.py /tmp/ours [PARITY DRIVER]

Needs `gguf` and numpy. The first part reads every file with `gguf.GGUFReader`, decodes every tensor, and
checks names and keys against the package's tables.
PARITY is the folder of parity sets, DRIVER a program `DRIVER MODEL OUT IDS…` over libllama that decodes
the ids in one batch and writes the logits of every position as f32; the second part compares them.
"""
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize

folder = Path(sys.argv[1])
NEEDED = ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
          "attention.layer_norm_epsilon"]
count = 0
for path in sorted(folder.glob("*.gguf")):
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    for key in NEEDED:
        assert f"{arch}.{key}" in reader.fields, (path, key)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        assert values.size == tensor.n_elements and np.isfinite(values).all(), (path, tensor.name)
    layers = reader.fields[f"{arch}.block_count"].contents()
    if arch in ("rwkv6", "rwkv7"):
        # Names and number of tensors are llama.cpp's.
        kinds = [gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[gguf.MODEL_ARCH[arch.upper()]]]
        known = {kind.format(bid=i) for kind in kinds for i in range(layers)}
        for tensor in reader.tensors:
            stem = tensor.name.removesuffix(".weight").removesuffix(".bias")
            assert stem in known, (path, tensor.name)
    print(path.name, arch, len(reader.tensors), "tensors")
    count += 1
assert count > 0, "nothing to check"

if len(sys.argv) > 3:
    from safetensors.numpy import load_file

    parity, driver = Path(sys.argv[2]), sys.argv[3]
    for group in "M", "A":
        for version in "v6", "v7":
            case = load_file(parity / group / version / "case.safetensors")
            ids = [str(i) for i in case["tokens"].tolist()]
            for file, expected in [("model", "logits_f32"), ("model-bf16", "logits_bf16w"), ("q8_0", None), ("q4_k", None)]:
                model = folder / f"{group}-{version}-{file}.gguf"
                if not model.exists():
                    continue
                out = folder / "logits.f32"
                subprocess.run([driver, model, out, *ids], check=True, capture_output=True)
                logits = np.fromfile(out, "<f4").reshape(len(ids), -1)
                error = np.abs(logits - case[expected or "logits_bf16w"]).max()
                print(f"llama.cpp on {model.name}: largest difference {error:.2e}")
                # llama.cpp rounds activations to bf16 before a product with bf16 weights.
                bound = {"model": 1e-5, "model-bf16": 5e-2, "q8_0": 0.3, "q4_k": 1.0}[file]
                assert error < bound, (model, error)
print("all good")
