#!/usr/bin/env python3
"""Holds what `fulgur quantize` writes against the `gguf` package.

usage: quantize_oracle.py FULGUR SOURCE_DIR

The package must read every file with the keys of the unquantised one and the numbers it knows for its type, with
all tensors in their shapes and in the types asked for. F32, F16, BF16 and Q8_0 have the bytes that the package makes
of the safetensors' numbers; blocks for which it has a quantiser are no further off than what that makes, others within
what their bits allow. An importance matrix that the package writes makes errors smaller where it weighs. Exit code 77:
a package is missing.
"""

import os
import sys
import tempfile

import gguf_oracle
from gguf_oracle import check, gguf, np, run, stacked, to_f32, value

# Errors relative to the values, a little above those of blocks of gaussian numbers.
BOUNDS = {
    "Q4_0": 0.09, "Q4_1": 0.075, "Q5_0": 0.045, "Q5_1": 0.038, "Q2_K": 0.3, "Q3_K": 0.165, "Q4_K": 0.08,
    "Q5_K": 0.04, "Q6_K": 0.02, "IQ4_NL": 0.085, "MXFP4": 0.13, "Q8_0": 0.0065,
}
SMALLER = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
NUMBERS = {"F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE", "Q3_K": "MOSTLY_Q3_K_S", "Q4_K": "MOSTLY_Q4_K_S",
           "Q5_K": "MOSTLY_Q5_K_S"}
NEW_KEYS = {"general.file_type", "general.quantization_version", "quantize.imatrix.file"}


def keys_of(reader):
    return {k: (f.types, value(reader, k)) for k, f in reader.fields.items() if not k.startswith("GGUF.")}


def is_wide(name):
    return "norm" in name or "ffn_gate_inp." in name


def fitting(kind, cols):
    return SMALLER[kind] if kind in SMALLER and cols % 256 else kind


def floats(source):
    kind, array = source
    return np.ascontiguousarray(to_f32(kind, array))


def relative(got, want, weights=1.0):
    got, want = got.astype("f8"), want.astype("f8")
    return float(np.sqrt((weights * (got - want) ** 2).sum() / (weights * want ** 2).sum()))


def decoded(tensor):
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape([int(x) for x in tensor.shape][::-1])


def check_bytes(tensor, source, what):
    """Returns the squares of errors and values."""
    kind, want = tensor.tensor_type.name, floats(source)
    if kind in ("F32", "F16", "BF16", "Q8_0"):
        theirs = want if kind == "F32" else gguf.quants.quantize(want, tensor.tensor_type)
        check(tensor.data.tobytes() == theirs.tobytes(), f"{what}: bytes of {kind}")
        return
    error = relative(decoded(tensor), want)
    check(error <= BOUNDS[kind], f"{what}: {kind} is {error} off")
    try:
        theirs = gguf.quants.dequantize(gguf.quants.quantize(want, tensor.tensor_type), tensor.tensor_type)
        other = relative(theirs.reshape(want.shape), want)
        check(error <= other * 1.000001, f"{what}: {kind} is {error} off, the package's {other}")
    except NotImplementedError:
        pass


def check_file(path, plain, sources, name, number, type_of):
    reader = gguf.GGUFReader(path)
    old, new = keys_of(plain), keys_of(reader)
    check({k: v for k, v in old.items() if k not in NEW_KEYS} == {k: v for k, v in new.items() if k not in NEW_KEYS},
          f"{name}: other keys")
    check(value(reader, "general.file_type") == int(gguf.LlamaFileType[number]), f"{name}: general.file_type")
    blocks = any(gguf.GGML_QUANT_SIZES[t.tensor_type][0] > 1 for t in reader.tensors)
    check(value(reader, "general.quantization_version") == (gguf.GGML_QUANT_VERSION if blocks else None),
          f"{name}: general.quantization_version")
    check([t.name for t in reader.tensors] == [t.name for t in plain.tensors], f"{name}: names of tensors")
    for tensor in reader.tensors:
        what = f"{name}: {tensor.name}"
        source = sources[tensor.name]
        check([int(x) for x in tensor.shape] == list(source[1].shape)[::-1], f"{what}: shape {tensor.shape}")
        want = "F32" if is_wide(tensor.name) else type_of(tensor.name, source[1].shape[-1])
        check(tensor.tensor_type.name == want, f"{what}: type {tensor.tensor_type.name}, not {want}")
        check_bytes(tensor, source, what)
    print(f"{name}: {len(new)} keys and {len(reader.tensors)} tensors read by gguf")


def pure_types(fulgur, model, plain, sources, folder):
    for kind in ["F32", "F16", "BF16", *BOUNDS]:
        path = os.path.join(folder, "pure.gguf")
        run(fulgur, "quantize", model, path, "--type", kind.lower(), "--pure")
        check_file(path, plain, sources, f"{os.path.basename(model)} {kind}", NUMBERS.get(kind, f"MOSTLY_{kind}"),
                   lambda name, cols: fitting(kind, cols))
        os.remove(path)


def mixes(fulgur, model, plain, sources, folder):
    def q4_k_m(name, cols):
        # Of eight layers the first, the last, and every third from the second on have more.
        more = name.startswith("blk.") and int(name.split(".")[1]) in (0, 3, 6, 7)
        return "Q6_K" if name == "output.weight" or (more and ("ffn_down" in name or "attn_qkv" in name
                                                               or "attn_v" in name)) else "Q4_K"

    def q8_0(name, cols):
        return "Q8_0"

    def mxfp4(name, cols):
        return "MXFP4" if "_exps" in name else "Q8_0"

    for mix, number, type_of in (("q4_k_m", "Q4_K_M", q4_k_m), ("q8_0", "Q8_0", q8_0), ("mxfp4", "MXFP4_MOE", mxfp4)):
        path = os.path.join(folder, "mix.gguf")
        run(fulgur, "quantize", model, path, "--type", mix)
        check_file(path, plain, sources, f"{os.path.basename(model)} {mix}", f"MOSTLY_{number}", type_of)
        os.remove(path)


def importance(fulgur, model, plain, sources, folder):
    """Every second tensor has importance; each expert its own."""
    rng, weights = np.random.default_rng(3), {}
    path = os.path.join(folder, "imatrix.gguf")
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    names = [n for n in sources if n.startswith("blk.") and not is_wide(n)][::2]
    for name in names:
        shape = sources[name][1].shape
        matrices = shape[0] if len(shape) == 3 else 1
        sums = (rng.standard_normal((matrices, shape[-1])) ** 4 + 1e-3).astype("f4")
        counts = rng.integers(1, 2000, (matrices, 1)).astype("f4")
        weights[name] = (sums / counts).reshape([*shape[:-2], 1, shape[-1]])
        writer.add_tensor(name + ".in_sum2", sums)
        writer.add_tensor(name + ".counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out = [os.path.join(folder, f"{n}.gguf") for n in ("weighted", "unweighted")]
    summary = run(fulgur, "quantize", model, out[0], "--type", "q4_0", "--pure", "--imatrix", path)
    check(f"{len(names)} of " in summary, f"importance: {summary}")
    run(fulgur, "quantize", model, out[1], "--type", "q4_0", "--pure")
    readers = [gguf.GGUFReader(p) for p in out]
    check(value(readers[0], "quantize.imatrix.file") == "imatrix.gguf", "quantize.imatrix.file")
    gains = []
    for a, b in zip(*(r.tensors for r in readers)):
        if a.name not in weights:
            check(a.data.tobytes() == b.data.tobytes(), f"importance: {a.name} has none and differs")
            continue
        want = floats(sources[a.name])
        with_it, without = (relative(decoded(t), want, weights[a.name]) for t in (a, b))
        check(with_it < without, f"importance: {a.name}: {with_it} off, {without} without")
        gains.append(with_it / without)
    print(f"importance: {len(gains)} tensors, weighted errors {min(gains):.3f} to {max(gains):.3f} of those without")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    fulgur, source = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        for model, tests in (("tests/golden/hybrid-7to1", (pure_types, importance)),
                             ("samples/demo-model", (mixes,))):
            model = os.path.join(source, model)
            plain = os.path.join(folder, os.path.basename(model) + "-plain.gguf")
            run(fulgur, "convert", model, plain)
            for test in tests:
                test(fulgur, model, gguf.GGUFReader(plain), stacked(model), folder)
    print(f"{gguf_oracle.failures} failures")
    sys.exit(1 if gguf_oracle.failures else 0)


if __name__ == "__main__":
    main()
