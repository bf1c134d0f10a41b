"""Checks that PyTorch and the safetensors package open what hawfinch writes. Run by hand:

    INTEROP_OUT=/tmp/ours cargo test --release -p hawfinch-model --test roundtrip
    python check_ours.py /tmp/ours

The test writes NAME.pth, NAME.safetensors and NAME.expected.safetensors (made by the safetensors crate
from the source) for each of its checkpoints.
"""
import sys
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

folder = Path(sys.argv[1])
count = 0
for pth in sorted(folder.glob("*.pth")):
    expected = load_file(folder / f"{pth.stem}.expected.safetensors")
    archive = zipfile.ZipFile(pth)
    assert archive.testzip() is None, f"{pth}: a checksum is wrong"
    # What hawfinch says of the file (base, method, rank, data of an adapter): a record that torch.load passes over.
    assert any(name.endswith("/hawfinch.json") for name in archive.namelist()), f"{pth} says nothing of itself"
    for tensors in [
        torch.load(pth, weights_only=True),
        torch.load(pth, weights_only=True, mmap=True),
        torch.load(pth, weights_only=False),
        load_file(folder / f"{pth.stem}.safetensors"),
    ]:
        assert set(tensors) == set(expected), pth
        for name, t in tensors.items():
            e = expected[name]
            assert t.dtype == e.dtype and t.shape == e.shape and torch.equal(t, e), (pth, name)
            assert t.is_contiguous()
    print(pth.stem, len(expected), "tensors", safe_open(folder / f"{pth.stem}.safetensors", "pt").metadata())
    count += 1
assert count > 0, "nothing to check"
print("all equal")
