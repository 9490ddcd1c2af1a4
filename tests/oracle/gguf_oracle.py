#!/usr/bin/env python3
"""Holds fulgur's GGUF reader and writer against the `gguf` package.

usage: gguf_oracle.py FULGUR SOURCE_DIR

What `fulgur convert` writes must be read by the package with the keys of config.json and tokenizer.json and
the tensors of the safetensors files, bit for bit. What the package writes from those (whole, split, with
tensors of every type it knows beside the model's) must be read by fulgur with the same logits. What the
package or `fulgur quantize` quantises must run with the logits of the weights that the package reads back
from it, and what the package does with those of the safetensors files within the type's error. Environment:
FULGUR_TEST_LEVEL=full takes more mixes. Exit code 77: a package is missing.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile

try:
    import gguf
    import numpy as np
except ImportError as error:
    print(f"skipped: {error} (pip install gguf numpy)")
    sys.exit(77)

KINDS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
EXPERTS = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}
LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.output_gate": "attn_gate",
    "self_attn.norm": "attn_norm_2", "self_attn.out_proj": "attn_output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "block_sparse_moe.gate": "ffn_gate_inp",
}
failures = 0


def check(good, what):
    global failures
    if not good:
        failures += 1
        print(f"FAIL {what}")


def safetensors(folder):
    """name -> (type, array) of all files of a checkpoint."""
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if not name.startswith("model") or not name.endswith(".safetensors"):
            continue
        data = open(os.path.join(folder, name), "rb").read()
        size = struct.unpack_from("<Q", data)[0]
        for key, entry in json.loads(data[8:8 + size]).items():
            if key == "__metadata__":
                continue
            begin, end = (8 + size + x for x in entry["data_offsets"])
            array = np.frombuffer(data[begin:end], KINDS[entry["dtype"]]).reshape(entry["shape"])
            tensors[key] = (entry["dtype"], array)
    return tensors


def to_f32(kind, array):
    if kind == "BF16":
        return (array.astype("<u4") << 16).view("<f4")
    return array.astype("<f4")


def stacked(folder):
    """The same under GGUF's names: experts in one, norms and routers as F32."""
    out, experts = {}, {}
    for name, (kind, array) in safetensors(folder).items():
        parts = name.split(".")
        if name == "model.embed_tokens.weight":
            out["token_embd.weight"] = (kind, array)
        elif name == "lm_head.weight":
            out["output.weight"] = (kind, array)
        elif name == "model.norm.weight":
            out["output_norm.weight"] = ("F32", to_f32(kind, array))
        elif "experts" in parts:
            at = f"blk.{parts[2]}.{EXPERTS[parts[6]]}.weight"
            experts.setdefault(at, (kind, {}))[1][int(parts[5])] = array
        else:
            role = LAYER[".".join(parts[3:-1])]
            wide = array.ndim == 1 or role == "ffn_gate_inp"
            out[f"blk.{parts[2]}.{role}.weight"] = ("F32", to_f32(kind, array)) if wide else (kind, array)
    for name, (kind, arrays) in experts.items():
        out[name] = (kind, np.stack([arrays[i] for i in range(len(arrays))]))
    return out


def run(fulgur, *arguments):
    environment = dict(os.environ, FULGUR_DEVICE="cpu")
    result = subprocess.run([fulgur, *arguments], capture_output=True, text=True, env=environment)
    check(result.returncode == 0, f"fulgur {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def logits(fulgur, model, vocab, folder):
    ids = os.path.join(folder, "ids.txt")
    out = os.path.join(folder, "logits.npy")
    open(ids, "w").write("\n".join(str((i * i + 5) % vocab) for i in range(40)))
    run(fulgur, "logits", model, "--tokens", ids, "--prefill", "30", "--out", out)
    return np.load(out)


# ---- what fulgur writes ----

def value(reader, key):
    field = reader.get_field(key)
    return None if field is None else field.contents()


def key_of(config, *names):
    for name in names:
        if config.get(name) is not None:
            return config[name]
    return None


def check_keys(reader, config, name):
    a = "minimax-01."
    same = {
        "general.architecture": "minimax-01", a + "block_count": config["num_hidden_layers"],
        a + "context_length": config["max_position_embeddings"], a + "embedding_length": config["hidden_size"],
        a + "feed_forward_length": config["intermediate_size"], a + "vocab_size": config["vocab_size"],
        a + "attention.head_count": config["num_attention_heads"],
        a + "attention.head_count_kv": config["num_key_value_heads"],
        a + "attention.key_length": config["head_dim"], a + "attention.value_length": config["head_dim"],
        a + "rope.dimension_count": config["rotary_dim"], a + "expert_count": config["num_local_experts"],
        a + "expert_used_count": config["num_experts_per_tok"],
        a + "attention.layer_norm_rms_epsilon": float(np.float32(config["rms_norm_eps"])),
        "fulgur.lightning.norm_epsilon": 1e-6,
    }
    theta = key_of(config, "rope_theta") or config["rope_parameters"]["rope_theta"]
    same[a + "rope.freq_base"] = float(np.float32(theta))
    kinds = key_of(config, "attn_type_list")
    if kinds is None:
        kinds = [int(k == "full_attention") for k in config["layer_types"]]
    interval = value(reader, a + "full_attention_interval")
    if interval is not None:
        written = [int((i + 1) % interval == 0) for i in range(len(kinds))]
    else:
        written = [int(not x) for x in value(reader, a + "attention.recurrent_layers")]
    check(written == kinds, f"{name}: kinds of layers {written}")
    factors = [[key_of(config, f"layernorm_{hub}_{f}", f"{native}_{f}_factor") or 1.0 for f in ("alpha", "beta")]
               for hub, native in (("linear_attention", "linear_attn"), ("full_attention", "full_attn"), ("mlp", "mlp"))]
    scale = value(reader, a + "residual_scale")
    plain = all(x == [factors[0][0], 1.0] for x in factors)
    check((scale is not None) == plain, f"{name}: residual_scale is {scale} for {factors}")
    for kind, (alpha, beta) in zip(("lightning", "softmax", "mlp"), factors):
        exact = value(reader, f"fulgur.{kind}.alpha")
        check((scale if exact is None else exact) == alpha, f"{name}: {kind} alpha")
        exact = value(reader, f"fulgur.{kind}.beta")
        check((1.0 if exact is None else exact) == beta, f"{name}: {kind} beta")
    for key, want in same.items():
        check(value(reader, key) == want, f"{name}: {key} is {value(reader, key)}, not {want}")


def check_tokenizer(reader, folder, config):
    spec = json.load(open(os.path.join(folder, "tokenizer.json"), encoding="utf-8"))
    want = {i: (text, gguf.TokenType.NORMAL) for text, i in spec["model"]["vocab"].items()}
    for t in spec["added_tokens"]:
        want[t["id"]] = (t["content"], gguf.TokenType.CONTROL if t["special"] else gguf.TokenType.USER_DEFINED)
    texts, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    check(len(texts) == len(types) == config["vocab_size"], "tokens: a row each")
    for i, (text, kind) in enumerate(zip(texts, types)):
        check((text, kind) == want.get(i, (f"[PAD{i}]", gguf.TokenType.UNUSED)), f"token {i} is {text!r}, {kind}")
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    check(value(reader, "tokenizer.ggml.merges") == merges, "merges")
    check(value(reader, "tokenizer.ggml.model") == "gpt2", "tokenizer.ggml.model")
    check(value(reader, "tokenizer.ggml.pre") == "minimax-m2", "tokenizer.ggml.pre")


def check_tensors(reader, want, name):
    check({t.name for t in reader.tensors} == set(want), f"{name}: names of tensors")
    for t in reader.tensors:
        kind, array = want[t.name]
        check(t.tensor_type.name == kind, f"{name}: {t.name} has type {t.tensor_type.name}")
        check([int(x) for x in t.shape] == list(array.shape)[::-1], f"{name}: {t.name} has shape {t.shape}")
        check(t.data.tobytes() == np.ascontiguousarray(array).tobytes(), f"{name}: {t.name}: data")


def written_by_fulgur(fulgur, source, folder):
    for path in [os.path.join(source, "tests/golden", n) for n in ("hybrid-7to1", "many-experts", "mixed-factors")] \
            + [os.path.join(source, "samples/demo-model")]:
        name = os.path.basename(path)
        out = os.path.join(folder, name + ".gguf")
        run(fulgur, "convert", path, out)
        reader = gguf.GGUFReader(out)
        config = json.load(open(os.path.join(path, "config.json")))
        check_keys(reader, config, name)
        check_tensors(reader, stacked(path), name)
        if os.path.exists(os.path.join(path, "tokenizer.json")):
            check_tokenizer(reader, path, config)
        else:
            check(value(reader, "tokenizer.ggml.model") == "no_vocab", f"{name}: a tokenizer")
        print(f"{name}: {len(reader.fields)} keys and {len(reader.tensors)} tensors read by gguf")


# ---- what the package writes ----

def write(path, model, config, types_too=False, change=None, **options):
    w = gguf.GGUFWriter(path, "minimax-01", **options)
    add_keys(w, config)
    for name, (kind, array) in stacked(model).items():
        if change and array.ndim > 1 and "ffn_gate_inp" not in name:
            data, raw = change(to_f32(kind, array))
            w.add_tensor(name, data, raw_dtype=raw)
        elif kind == "BF16":
            w.add_tensor(name, np.ascontiguousarray(array).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            w.add_tensor(name, array)
    r = np.random.default_rng(1)
    for kind in gguf.GGMLQuantizationType if types_too else ():
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        w.add_tensor(f"extra.{kind.name}", r.integers(0, 256, (3, 2 * size), np.uint8), raw_dtype=kind)
    finish(w)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def add_keys(w, config):
    w.add_block_count(config["num_hidden_layers"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv(config["num_key_value_heads"])
    w.add_key_length(config["head_dim"])
    w.add_value_length(config["head_dim"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_rope_freq_base(config["rope_theta"])
    w.add_rope_dimension_count(config["rotary_dim"])
    w.add_expert_count(config["num_local_experts"])
    w.add_expert_used_count(config["num_experts_per_tok"])
    w.add_float32("minimax-01.residual_scale", config["layernorm_mlp_alpha"])
    w.add_array("minimax-01.attention.recurrent_layers", [k == 0 for k in config["attn_type_list"]])


def written_by_gguf(fulgur, source, folder):
    for name in ("hybrid-7to1", "many-experts"):
        model = os.path.join(source, "tests/golden", name)
        config = json.load(open(os.path.join(model, "config.json")))
        want = logits(fulgur, model, config["vocab_size"], folder)
        for way, options in (("whole", {}), ("types", {"types_too": True}), ("split", {"split_max_tensors": 13})):
            path = os.path.join(folder, f"{name}-{way}.gguf")
            write(path, model, config, **options)
            if way == "split":
                parts = sorted(n for n in os.listdir(folder) if n.startswith(f"{name}-split-"))
                check(len(parts) > 2, f"{name}: {parts} are no parts")
                path = os.path.join(folder, parts[0])
            got = logits(fulgur, path, config["vocab_size"], folder)
            error = np.abs(got - want).max() / np.abs(want).max()
            check(got.shape == want.shape and error <= 1e-6, f"{name} {way}: logits differ by {error}")
            print(f"{name} {way}: logits differ by {error:.1e}")
            listed = {t["name"]: t for t in json.loads(run(fulgur, "inspect", path, "--json", "--tensors"))["tensors"]}
            for kind in gguf.GGMLQuantizationType if way == "types" else ():
                elements, size = gguf.GGML_QUANT_SIZES[kind]
                t = listed[f"extra.{kind.name}"]
                check((t["type"], t["shape"], t["bytes"]) == (kind.name, [3, 2 * elements], 6 * size), f"{t}")


def tokenizer_by_gguf(fulgur, source, folder):
    """The demo model's tokenizer in the keys that the package writes beside another model: the same tokens, and
    the chat format that its template names."""
    model = os.path.join(source, "samples/demo-model")
    text = os.path.join(model, "valid.txt")
    spec = json.load(open(os.path.join(model, "tokenizer.json"), encoding="utf-8"))
    added = {t["id"]: t["content"] for t in spec["added_tokens"]}
    texts = {**{i: t for t, i in spec["model"]["vocab"].items()}, **added}
    rows = len(texts) + 8
    want = run(fulgur, "tokenize", model, "--file", text, "--added")
    turns = "".join(f"{{{{ '<beginning_of_sentence>{head}\\n' + m + '<end_of_sentence>\\n' }}}}"
                    for head in ("system ai_setting=assistant", "user name=user", "ai name=assistant"))
    for chat, format_, told in ((None, "text-01", "none"), (turns, "text-01", "known"),
                                ("{{ '<begin_of_document>' }}" + turns, "m1", "known"),
                                (turns.replace("=assistant", "=someone"), "text-01", "other")):
        path = os.path.join(folder, f"tokens-{format_}-{told}.gguf")
        write_keys(path, os.path.join(source, "tests/golden/hybrid-7to1"), rows, texts, added,
                   spec["model"]["merges"], chat)
        listed = json.loads(run(fulgur, "inspect", path, "--json"))
        check((listed["chat_format"], listed["chat_template"]) == (format_, told), f"chat format {listed}")
        check((listed["bos_token_id"], listed["eos_token_id"]) == (-1, max(added)), f"tokens {listed}")
    check(run(fulgur, "tokenize", path, "--file", text, "--added") == want, "tokens of the package's keys")
    print(f"tokenizer: {want.count(' ') + want.count(chr(10))} tokens of valid.txt as from tokenizer.json")


def write_keys(path, model, rows, texts, added, merges, chat):
    config = json.load(open(os.path.join(model, "config.json")))
    w = gguf.GGUFWriter(path, "minimax-01")
    add_keys(w, config)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("minimax-m2")
    w.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(rows)])
    kinds = gguf.TokenType
    w.add_token_types([kinds.CONTROL if i in added else kinds.NORMAL if i in texts else kinds.UNUSED
                       for i in range(rows)])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    w.add_bos_token_id(min(added))
    w.add_eos_token_id(max(added))
    w.add_add_bos_token(False)
    if chat:
        w.add_chat_template(chat)
    for name, (kind, array) in stacked(model).items():
        if name in ("token_embd.weight", "output.weight"):
            array = np.zeros((rows, array.shape[1]), "f4")
        w.add_tensor(name, to_f32(kind, array) if array.dtype != "f4" else array)
    finish(w)


def big_endian(fulgur, source, folder):
    path = os.path.join(folder, "big.gguf")
    w = gguf.GGUFWriter(path, "minimax-01", endianess=gguf.GGUFEndian.BIG)
    w.add_tensor("x", np.zeros(8, "f4"))
    finish(w)
    done = subprocess.run([fulgur, "inspect", path], capture_output=True, text=True)
    check(done.returncode == 1 and "big-endian" in done.stderr, f"big-endian: {done.stderr}")


# ---- what the package quantises ----

def products_in_series(config):
    """Of matrices that a token's value goes through from the embedding to its logits, both counted."""
    return 2 + 5 * config["num_hidden_layers"]  # qkv or v, out, and in the experts w1 and w3 beside each other, w2


def quantised_by_gguf(fulgur, source, folder):
    """An error e in the weights, relative and as good as independent, is one of e in each product's result.
    Later norms and residuals keep errors relative, and the errors of n products in series add up as squares:
    e * sqrt(n), less what residuals carry past the products."""
    model = os.path.join(source, "tests/golden/hybrid-7to1")
    config = json.load(open(os.path.join(model, "config.json")))
    want = logits(fulgur, model, config["vocab_size"], folder)
    allowed = np.sqrt(products_in_series(config))
    for kind in ("F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"):
        raw = gguf.GGMLQuantizationType[kind]
        squares = [0.0, 0.0]

        def quantised(x):
            data = gguf.quants.quantize(x, raw)
            back = gguf.quants.dequantize(data, raw).reshape(x.shape)
            squares[0] += float(((back - x).astype("f8") ** 2).sum())
            squares[1] += float((x.astype("f8") ** 2).sum())
            return data, raw

        def read_back(x):
            return gguf.quants.dequantize(gguf.quants.quantize(x, raw), raw).reshape(x.shape), None

        path, exact = (os.path.join(folder, f"quantised-{kind}{end}.gguf") for end in ("", "-f32"))
        write(path, model, config, change=quantised)
        write(exact, model, config, change=read_back)
        got = logits(fulgur, path, config["vocab_size"], folder)
        back = logits(fulgur, exact, config["vocab_size"], folder)
        weights = np.sqrt(squares[0] / squares[1])
        error = np.sqrt(((got - want) ** 2).mean() / (want ** 2).mean())
        same = np.abs(got - back).max() / np.abs(back).max()
        check(np.isfinite(got).all() and got.shape == want.shape, f"{kind}: logits")
        check(same <= 1e-5, f"{kind}: {same} from the logits of the weights read back")
        check(error <= allowed * weights + 1e-6, f"{kind}: logits are {error} off, weights {weights}")
        print(f"{kind}: weights {weights:.2e} off, logits {error:.2e}; {same:.1e} from those of the weights read back")


# ---- what fulgur quantises ----

def write_read_back(path, out):
    """The same keys, and the tensors as the package reads them, in F32."""
    reader, w = gguf.GGUFReader(path), gguf.GGUFWriter(out, "minimax-01")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        w.add_key_value(key, field.contents(), field.types[0], sub_type=field.types[-1] if array else None)
    for t in reader.tensors:
        shape = [int(x) for x in t.shape][::-1]
        w.add_tensor(t.name, gguf.quants.dequantize(t.data, t.tensor_type).reshape(shape).astype("f4"))
    finish(w)
    return {t.tensor_type.name for t in reader.tensors}


def quantised_by_fulgur(fulgur, source, folder):
    model = os.path.join(source, "samples/demo-model")
    config = json.load(open(os.path.join(model, "config.json")))
    want = logits(fulgur, model, config["vocab_size"], folder)
    mixes = [("q4_k_m", {"F32", "Q4_K", "Q6_K"}), ("q2_k", {"F32", "Q2_K", "Q3_K"}), ("q8_0", {"F32", "Q8_0"}),
             ("mxfp4", {"F32", "MXFP4"})]
    for mix, types in mixes if os.environ.get("FULGUR_TEST_LEVEL") == "full" else mixes[:1]:
        path, exact = (os.path.join(folder, f"{mix}{end}.gguf") for end in ("", "-f32"))
        run(fulgur, "quantize", model, path, "--type", mix)
        check_keys(gguf.GGUFReader(path), config, mix)
        check_tokenizer(gguf.GGUFReader(path), model, config)
        held = write_read_back(path, exact)
        check(types <= held, f"{mix}: types {held}")
        got, back = (logits(fulgur, f, config["vocab_size"], folder) for f in (path, exact))
        same = np.abs(got - back).max() / np.abs(back).max()
        error = np.sqrt(((got - want) ** 2).mean() / (want ** 2).mean())
        check(same <= 1e-5, f"{mix}: {same} from the logits of the weights read back")
        print(f"{mix} ({' '.join(sorted(held))}): logits {error:.2e} off; "
              f"{same:.1e} from those of the weights read back")
        os.remove(exact)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        written_by_fulgur(sys.argv[1], sys.argv[2], folder)
        written_by_gguf(sys.argv[1], sys.argv[2], folder)
        tokenizer_by_gguf(sys.argv[1], sys.argv[2], folder)
        big_endian(sys.argv[1], sys.argv[2], folder)
        quantised_by_gguf(sys.argv[1], sys.argv[2], folder)
        quantised_by_fulgur(sys.argv[1], sys.argv[2], folder)
    print(f"{failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
