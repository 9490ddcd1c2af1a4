#!/usr/bin/env python3
"""Holds fulgur's codecs of blocks against the `gguf` package.

usage: quant_oracle.py QUANT_MAIN [SAFETENSORS TENSOR]

Decoding, also by way of a device's planes, must give the package's floats bit for bit, of random blocks and of
blocks whose scales are zeros, subnormals, the largest halves, infinities and NaN (where both must be NaN: payloads
are not compared). Encoding must not have a larger error than the package's quantiser, where it has one, and q8_0
the same bits. Exit code 77: the package is missing.
"""

import json
import struct
import subprocess
import sys
import warnings

try:
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
except ImportError as error:
    print(f"skipped: {error} (pip install gguf)")
    sys.exit(77)

TYPES = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "mxfp4"]
# Where the halves of a block's scale and minimum lie.
HALVES = {
    "q8_0": [0], "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q2_k": [80, 82], "q3_k": [108],
    "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208], "iq4_nl": [0], "mxfp4": [],
}
EDGES = [0x0000, 0x8000, 0x0001, 0x8001, 0x0200, 0x03FF, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF,
         0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFE00, 0x7FFF]

failures = 0


def check(good, message):
    global failures
    if not good:
        failures += 1
        print("FAILED: " + message)


def run(main, verb, name, cols, data, *more):
    done = subprocess.run([main, verb, name, str(cols), *more], input=data, stdout=subprocess.PIPE, check=True)
    return done.stdout


def blocks_of(name, rng, count):
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    edge = 0
    for first in EDGES:
        for second in EDGES:
            for at, half in zip(HALVES[name], (first, second)):
                blocks[edge, at] = half & 255
                blocks[edge, at + 1] = half >> 8
            edge += 1
    if name == "mxfp4":
        blocks[:256, 0] = np.arange(256)
    return elements, blocks


def decoding(main, rng):
    for name in TYPES:
        elements, blocks = blocks_of(name, rng, 2048)
        per_row = 16
        want = quants.dequantize(blocks, GGMLQuantizationType[name.upper()]).ravel()
        nan = np.isnan(want)
        for verb in ("decode", "device"):
            got = np.frombuffer(run(main, verb, name, elements * per_row, blocks.tobytes()), np.float32)
            check(got.size == want.size, f"{name}: {got.size} of {want.size} numbers")
            check((np.isnan(got) == nan).all(), f"{name}, {verb}: NaN elsewhere")
            different = (got.view(np.uint32) != want.view(np.uint32)) & ~nan
            check(not different.any(), f"{name}, {verb}: {different.sum()} of {want.size} numbers differ, the first "
                  f"in block {int(np.argmax(different)) // elements}")


def relative_error(got, want, weights):
    got, want = got.astype(np.float64), want.astype(np.float64)
    return np.sqrt((weights * (got - want) ** 2).sum() / (weights * want ** 2).sum())


def encoding(main, rng, sets):
    print(f"{'values':10} {'type':8} {'fulgur':>9} {'package':>9} {'weighted':>9}   errors relative to the values")
    for title, values in sets.items():
        cols = values.shape[1]
        importance = (rng.standard_normal(cols) ** 2 + 1e-3).astype(np.float32)
        for name in TYPES:
            kind = GGMLQuantizationType[name.upper()]
            elements, size = GGML_QUANT_SIZES[kind]
            if cols % elements:
                continue

            def encoded(*head, more=()):
                data = b"".join(h.tobytes() for h in head) + values.tobytes()
                out = run(main, "encode", name, cols, data, *more)
                return np.frombuffer(out, np.uint8).reshape(values.shape[0], -1)

            own = encoded()
            error = relative_error(quants.dequantize(own, kind), values, 1)
            weighted = relative_error(quants.dequantize(encoded(importance, more=("weighted",)), kind), values,
                                      importance)
            plain = relative_error(quants.dequantize(own, kind), values, importance)
            check(weighted <= plain * 1.001, f"{title}, {name}: importance makes it worse: {weighted} > {plain}")
            try:
                theirs = quants.quantize(values, kind)
                package = relative_error(quants.dequantize(theirs, kind), values, 1)
                check(error <= package * 1.000001, f"{title}, {name}: error {error}, the package's {package}")
                if name == "q8_0":
                    check((own == theirs).all(), f"{title}: q8_0 differs from the package's bits")
                package = f"{package:9.6f}"
            except NotImplementedError:
                package = f"{'-':>9}"
            print(f"{title:10} {name:8} {error:9.6f} {package} {weighted:9.6f}")


def tensor(path, name):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        entry = json.loads(file.read(size))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + size + begin)
        data = file.read(end - begin)
    if entry["dtype"] == "BF16":
        floats = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        floats = np.frombuffer(data, {"F16": np.float16, "F32": np.float32}[entry["dtype"]]).astype(np.float32)
    return np.ascontiguousarray(floats.reshape(entry["shape"]))


def main():
    warnings.simplefilter("ignore")
    program = sys.argv[1]
    rng = np.random.default_rng(7)
    decoding(program, rng)
    sets = {
        "gaussian": rng.standard_normal((32, 1024)).astype(np.float32),
        "laplace": rng.laplace(size=(16, 1024)).astype(np.float32),
        "small": (rng.standard_normal((16, 512)) * 1e-6).astype(np.float32),
        "shifted": (rng.standard_normal((16, 512)) * 0.1 + 1).astype(np.float32),
    }
    if len(sys.argv) > 3:
        sets["model"] = tensor(sys.argv[2], sys.argv[3])
    encoding(program, rng, sets)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
