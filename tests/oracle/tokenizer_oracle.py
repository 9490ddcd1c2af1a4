#!/usr/bin/env python3
"""Holds fulgur's tokenizer against the `tokenizers` package.

usage: tokenizer_oracle.py ENCODE_MAIN TOKENIZER_JSON HELD_OUT_TEXT [COUNT]

COUNT random strings (10,000) of code points assigned in Unicode 14, the held-out text, and adversarial
strings are encoded by both; tokens must be equal, and fulgur's decoding must give the package's NFC of the
string byte for byte. Exit code 77: the package is missing.
"""

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

try:
    import tokenizers
except ImportError as error:
    print(f"skipped: {error} (pip install tokenizers)")
    sys.exit(77)

# Blocks of code points first assigned after Unicode 14, for interpreters that know newer versions.
LATER = [
    (0x0897, 0x0897), (0x0CF3, 0x0CF3), (0x0ECE, 0x0ECE), (0x1C89, 0x1C8A), (0x1ACF, 0x1AEB),
    (0x2427, 0x2429), (0x2FFC, 0x2FFF), (0x31E4, 0x31E5), (0x31EF, 0x31EF), (0xA7CB, 0xA7CF),
    (0xA7D2, 0xA7D2), (0xA7D4, 0xA7D4), (0xA7DA, 0xA7DC), (0xA7F1, 0xA7F1), (0x088F, 0x088F),
    (0x0C5C, 0x0C5C), (0x0CDC, 0x0CDC), (0x20C1, 0x20C1), (0x2B96, 0x2B96),
]


def assigned():
    """Code points assigned in Unicode 14, without surrogates and with private use thinned out."""
    version = tuple(int(x) for x in unicodedata.unidata_version.split("."))
    points = []
    for c in range(0x110000):
        category = unicodedata.category(chr(c))
        if category in ("Cn", "Cs"):
            continue
        if category == "Co" and c % 1024:
            continue
        if version > (14, 0, 0) and (c >= 0x10000 or any(a <= c <= b for a, b in LATER)):
            continue
        points.append(c)
    assert 0x180E in points
    return points


def random_strings(count, seed):
    r = random.Random(seed)
    points = assigned()
    low = [c for c in points if c < 0x3000]
    marks = [c for c in points if unicodedata.combining(chr(c))]
    spaces = [c for c in points if chr(c).isspace()] + [0x180E, 0x200B, 0xFEFF, 0x85]
    decomposed = [c for c in points if unicodedata.decomposition(chr(c))]
    letters = [c for c in points if unicodedata.category(chr(c))[0] == "L" and c < 0x3000]
    digits = [c for c in points if unicodedata.category(chr(c))[0] == "N"]
    ascii_points = list(range(0x80))
    kinds = [points, low, marks, spaces, decomposed, letters, digits, ascii_points]
    for _ in range(count):
        style = r.randrange(4)
        length = r.randrange(1, 60)
        if style == 0:
            chosen = [r.choice(points) for _ in range(length)]
        elif style == 1:
            chosen = [r.choice(r.choice(kinds)) for _ in range(length)]
        elif style == 2:
            kind = r.choice(kinds)
            chosen = [r.choice(kind) for _ in range(length)]
        else:
            chosen = []
            while len(chosen) < length:
                chosen.append(r.choice(r.choice([letters, ascii_points, spaces])))
                chosen += [r.choice(marks) for _ in range(r.randrange(4))]
        yield "".join(map(chr, chosen))


def every_point():
    """Each assigned code point between letters, spaces and marks."""
    points = assigned()
    for i in range(0, len(points), 16):
        text = ""
        for c in points[i:i + 16]:
            text += f"a{chr(c)}b {chr(c)}\u0301{chr(c)}1'{chr(c)} \n"
        yield text


def adversarial():
    zwj = "\u200d"
    family = zwj.join("👨👩👧👦")
    yield from [
        "", " ", "  ", "\n", "\r\n", " \n ", "\t\t\n\n\t", "a", "'s", "'S", "it's IT'S it'ſ", "don'T",
        "we'LL'd've", "'ſ", "x'ſy", "1234567890", "١٢٣٤", "Ⅷ½²", "a/b//c/\n/", "...\r\n/\n", "\u180e", "a\u180eb",
        " \u180e ", "\u180e\n", "\x85", "a\x85\x85b", "\u2028\u2029x", "\ufeffBOM", "\x00\x01\x7f", "é", "e\u0301",
        "e\u0323\u0301\u0302", "\u0301", "\u0301a", "q\u0307\u0323", "\u1100\u1161\u11a8", "가\u11a8각", "\u0344",
        "\u212b\u2126\u2000\u2001", "\u0958\u0b5c\ufb1d", "\U0001d15e\U0001d160", "㎏㎐", "ﬁ", "ǅǈ", "ΑΣ Σ",
        family * 7, "🏳️‍🌈🏴‍☠️", "👩🏽‍🚀" * 33, "🇩🇪🇫🇷🇯", "#️⃣*️⃣0️⃣", "Z̸̡̢͎a̶͔̿l̴̰͝g̵̛͕o̷̲͠", "中文，没有空格。" * 9,
        "ภาษาไทยไม่มีช่องว่าง", "हिन्दी में", "العربية بِالتَّشْكِيل", "עִבְרִית", "\u0f71\u0f72\u0f74\u0f80", "\u0cca\u0ccb",
        "<beginning_of_sentence>", "<end_of_sentence><end_of_sentence>", "<end_of_sentence", "<<end_of_sentence>>",
        "e<end_of_sentence>\u0301", "a<end_of_document>b<beginning_of_sentence>c", "<\u0338end_of_sentence>",
        "<end_of_sentence>\n<beginning_of_sentence>user name=user\nHi<end_of_sentence>\n", "def f(x):\n\treturn x\n\n\n",
        "CamelCaseHTTPServer", "ABCdefGHI", "ǄABC", "ªºʰ", "a" * 100000, "A" * 100000, " " * 100000, "\n" * 100000,
        "\t " * 50000, "é" * 50000, "e\u0301" * 50000, "9" * 100000, "." * 100000, "\u0301" * 100000,
        "a" + "\u0301\u0316" * 50000, "ab" * 50000, "aA" * 50000, "the " * 30000, "中" * 30000, "\U0001f600" * 20000,
        "\u3099か\u3099" * 20000, " a" * 1000 + "\n" * 1000 + " ", (" " * 200 + "x") * 200, "1 " * 5000,
        "a" * (1 << 20), " " * (1 << 20),
    ]


def answers(program, tokenizer, texts, added):
    data = b"".join(struct.pack("<I", len(t)) + t for t in texts)
    run = subprocess.run([program, tokenizer] + (["added"] if added else []), input=data,
                         stdout=subprocess.PIPE, check=False)
    if run.returncode != 0:
        sys.exit(f"{program} ended with {run.returncode}")
    out, at, result = run.stdout, 0, []
    for _ in texts:
        (count,) = struct.unpack_from("<I", out, at)
        at += 4
        if count == 0xFFFFFFFF:
            result.append((None, None))
            at += 4
            continue
        tokens = list(struct.unpack_from(f"<{count}I", out, at))
        at += 4 * count
        (size,) = struct.unpack_from("<I", out, at)
        result.append((tokens, out[at + 4:at + 4 + size]))
        at += 4 + size
    assert at == len(out)
    return result


def nfc_between_marks(text, marks, nfc):
    """The package normalises what stands between added tokens."""
    done, start, i = "", 0, 0
    while i < len(text):
        mark = next((m for m in marks if text.startswith(m, i)), None)
        if mark is None:
            i += 1
            continue
        done += nfc(text[start:i]) + mark
        i += len(mark)
        start = i
    return done + nfc(text[start:])


def compare(name, program, path, strings, added):
    reference = tokenizers.Tokenizer.from_file(path)
    marks = sorted((t.content for t in reference.get_added_tokens_decoder().values()), key=len, reverse=True)
    if not added:  # without added tokens the marks are plain text
        spec = json.load(open(path, encoding="utf-8"))
        spec["added_tokens"] = []
        reference = tokenizers.Tokenizer.from_str(json.dumps(spec))
        marks = []
    nfc = tokenizers.normalizers.NFC().normalize_str
    got = answers(program, path, [s.encode() for s in strings], added)
    wrong = tokens = 0
    for text, (ids, back) in zip(strings, got):
        want = reference.encode(text, add_special_tokens=False).ids
        tokens += len(want)
        normal = nfc_between_marks(text, marks, nfc) if any(m in text for m in marks) else nfc(text)
        if ids == want and back == normal.encode():
            continue
        wrong += 1
        if wrong <= 5:
            print(f"{name}: {text[:60]!r} ({len(text)} code points)")
            print(f"   want {want[:40]}\n   got  {ids[:40] if ids else ids}")
            if back != normal.encode():
                print("   decoding differs from NFC")
    print(f"{name}{' with added tokens' if added else ''}: {len(strings)} strings, {tokens} tokens, "
          f"{wrong} differ")
    return wrong


def train(path, out, text):
    """A tokenizer of the same structure whose merges reach into every script and into runs."""
    model = tokenizers.Tokenizer.from_file(path)
    special = [t.content for t in model.get_added_tokens_decoder().values()]
    fresh = tokenizers.Tokenizer(tokenizers.models.BPE())
    fresh.normalizer = model.normalizer
    fresh.pre_tokenizer = model.pre_tokenizer
    fresh.decoder = model.decoder
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=16384, min_frequency=2, special_tokens=special, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    runs = [c * n for c in "a \n.9A\u0301中😀" for n in (3, 7, 40)] * 3
    samples = [s for s in adversarial() if len(s) < 2000] * 3 + list(random_strings(4000, 1)) + runs
    fresh.train_from_iterator(samples + text[:300000].split("\n"), trainer)
    fresh.save(out)


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    program, path, held_out = sys.argv[1:4]
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 10000
    text = open(held_out, encoding="utf-8", newline="").read()
    print(f"tokenizers {tokenizers.__version__}, Unicode {unicodedata.unidata_version} here")
    wrong = 0
    wrong += compare("random", program, path, list(random_strings(count, 1)), False)
    wrong += compare("every code point", program, path, list(every_point()), False)
    wrong += compare("held-out text", program, path, [text] + text.split("\n"), True)
    wrong += compare("adversarial", program, path, list(adversarial()), True)
    wrong += compare("adversarial", program, path, list(adversarial()), False)
    with tempfile.TemporaryDirectory() as folder:
        trained = os.path.join(folder, "tokenizer.json")
        train(path, trained, text)
        wrong += compare("trained on all scripts", program, trained, list(random_strings(count, 1)), False)
        wrong += compare("trained on all scripts", program, trained, list(random_strings(count // 4, 2)), False)
        wrong += compare("trained on all scripts, adversarial", program, trained, list(adversarial()), True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
