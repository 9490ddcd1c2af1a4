#!/usr/bin/env python3
"""Holds the importance matrices that `fulgur imatrix` writes against the `gguf` package.

usage: imatrix_oracle.py FULGUR SOURCE_DIR

The package must read the file with llama.cpp's keys, and for every matrix but the embedding sums and counts in their
shapes: as many rows as tokens were read, times the chosen experts where they share them. A file that the package
writes is added to. Exit code 77: a package is missing.
"""

import os
import re
import sys
import tempfile

import gguf_oracle
from gguf_oracle import check, gguf, np, run, value

TOP_K = 2


def tensors(path):
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def matrices(path):
    """Names and shapes of a model's matrices that read activations."""
    return {t.name: [int(x) for x in t.shape] for t in gguf.GGUFReader(path).tensors
            if len(t.shape) > 1 and not t.name.startswith("token_embd")}


def check_file(path, wanted, tokens):
    found = tensors(path)
    check(len(found) == 2 * len(wanted), f"{len(found)} tensors for {len(wanted)} matrices")
    for name, shape in wanted.items():
        sums, counts = found[name + ".in_sum2"], found[name + ".counts"]
        experts = shape[2] if len(shape) == 3 else 1
        check(sums.tensor_type.name == counts.tensor_type.name == "F32", f"{name}: types")
        check([int(x) for x in sums.shape] == [shape[0], experts], f"{name}: sums {sums.shape}")
        check([int(x) for x in counts.shape] == [1, experts], f"{name}: counts {counts.shape}")
        rows = tokens * (TOP_K if experts > 1 else 1)
        check(counts.data.sum() == rows, f"{name}: {counts.data.sum()} rows of {rows}")
        check(bool(np.isfinite(sums.data).all() and (sums.data >= 0).all()), f"{name}: sums")
    for a, b in (("attn_qkv", "attn_gate"), ("ffn_gate_exps", "ffn_up_exps")):
        same = found[f"blk.0.{a}.weight.in_sum2"].data, found[f"blk.0.{b}.weight.in_sum2"].data
        check(np.array_equal(*same), f"{a} and {b} read the same rows")


def write_by_package(path, source):
    """The same sums in halves, as another program has them."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["other.txt"])
    writer.add_uint32("imatrix.chunk_count", 5)
    writer.add_uint32("imatrix.chunk_size", 64)
    for name, tensor in tensors(source).items():
        shape = [int(x) for x in tensor.shape][::-1]
        writer.add_tensor(name, np.ascontiguousarray(tensor.data.reshape(shape), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    fulgur, source = sys.argv[1:3]
    demo = os.path.join(source, "samples", "demo-model")
    with tempfile.TemporaryDirectory() as folder:
        model, text = os.path.join(folder, "model.gguf"), os.path.join(folder, "text.txt")
        first, other, both = (os.path.join(folder, n) for n in ("first.gguf", "other.gguf", "both.gguf"))
        with open(os.path.join(demo, "valid.txt"), "rb") as f, open(text, "wb") as out:
            out.write(f.read(6000))
        run(fulgur, "convert", demo, model)
        said = run(fulgur, "imatrix", demo, text, "--out", first, "--window", "200", "--device", "cpu")
        tokens, windows = (int(x) for x in re.search(r"(\d+) tokens in (\d+) windows", said).groups())
        reader = gguf.GGUFReader(first)
        for key, want in (("general.type", "imatrix"), ("imatrix.datasets", ["text.txt"]),
                          ("imatrix.chunk_count", windows), ("imatrix.chunk_size", 200)):
            check(value(reader, key) == want, f"{key}: {value(reader, key)}")
        check_file(first, matrices(model), tokens)
        write_by_package(other, first)
        run(fulgur, "imatrix", model, text, "--out", both, "--in", other, "--window", "200", "--device", "cpu")
        check_file(both, matrices(model), 2 * tokens)
        for name, tensor in tensors(both).items():
            want = 2.0 * tensors(first)[name].data
            check(np.allclose(tensor.data, want, rtol=1e-5), f"{name}: not twice the sums")
        reader = gguf.GGUFReader(both)
        check(value(reader, "imatrix.datasets") == ["other.txt", "text.txt"], "datasets of both")
        check(value(reader, "imatrix.chunk_count") == windows + 5, "chunks of both")
        print(f"{len(matrices(model))} matrices, {tokens} tokens; added to a file of the package")
    print(f"{gguf_oracle.failures} failures")
    return 1 if gguf_oracle.failures else 0


if __name__ == "__main__":
    sys.exit(main())
