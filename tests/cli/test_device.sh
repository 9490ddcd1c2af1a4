#!/bin/bash
# What the fulgur program and the samples do on a device.
. "$(dirname "$0")/common.sh"
: "${NPY_COMPARE:?}" "${SAMPLES:?}" "${REPORT_CHECK:?}"
RAN_AS=test_device.sh
level=${FULGUR_TEST_LEVEL:-quick}

run devices
if [ $code = 77 ]; then
    cat "$out"
    exit 77
fi
if grep -q "no Vulkan device" "$err"; then
    printf 'skipped: no Vulkan device: %s\n' "$(head -n 1 "$err")"
    exit 77
fi

# ---- devices ----
expect_code "devices" 0
expect_text "devices describes them" "$out" "driver" "uuid" "MiB" "workgroup" "features"
run devices --json
expect_code "devices --json" 0
"$JSON_GET" <"$out" >"$scratch/n"
report "devices --json is JSON" $?
name=$("$JSON_GET" name <"$out")
uuid=$("$JSON_GET" uuid <"$out")
expect_same "a uuid has 36 characters" "${#uuid}" 36
expect_same "the first device is usable" "$("$JSON_GET" usable <"$out")" true
FULGUR_CAPS=-fp16,shared=16384 run devices --json
expect_same "FULGUR_CAPS takes shared memory away" "$("$JSON_GET" shared_bytes <"$out")" 16384
last="devices (FULGUR_CAPS=-fp16)"
! grep -q '"fp16"' "$out"
report "FULGUR_CAPS takes fp16 away" $?

# ---- choosing a device ----
golden_model=$golden/hybrid-7to1
"$NPY_COMPARE" ids "$golden_model" 17 >"$scratch/ids17"
for which in 0 "$uuid" "${name:0:6}" cpu; do
    run logits "$golden_model" --tokens "$scratch/ids17" --out "$scratch/x.npy" --device "$which"
    expect_code "device '$which'" 0
done
run devices --json
expect_code "devices --json" 0
report "the last device is the built-in one" $(
    "$JSON_GET" <"$out" >/dev/null && grep -c '"built_in": true' "$out" | grep -qx 1 &&
        tail -n 1 "$out" | grep -q '"name": "CPU (.*"built_in": true'
    echo $?
)
run run "$demo" -p x -n 1 --device cpu --threads 1 --stats
expect_code "one thread" 0
expect_text "one thread is named" "$err" "CPU (1 thread)"
run run "$demo" -p x --device 99
expect_error "device index out of range" 1 "99" "${name:0:6}"
run run "$demo" -p x --device 4294967296
expect_error "device index beyond 32 bits" 1 "4294967296"
run run "$demo" -p x --device "no such device"
expect_error "unknown device" 1 "no such device" "${name:0:6}"
run run "$demo" -p x --device 00000000-0000-0000-0000-000000000000
expect_error "unknown uuid" 1 "00000000"
FULGUR_CAPS=banana run run "$demo" -p x
expect_error "FULGUR_CAPS with a word it does not know" 1 FULGUR_CAPS banana
FULGUR_CAPS=shared=lots run run "$demo" -p x
expect_error "FULGUR_CAPS without a number" 1 FULGUR_CAPS lots
# A folder that is none must not cost the start of a device first.
run run "$scratch/none" -p x
expect_error "missing model" 1 "$scratch/none"

# ---- run ----
story() {
    run run "$demo" -p "Once upon a time" "$@"
}
count_tokens() {
    on_driver "$FULGUR" tokenize "$demo" --count -p "$1"
}
story --seed 7 --max-tokens 40
expect_code "run" 0
expect_text "run prints the prompt and goes on" "$out" "Once upon a time"
expect_number "run prints a story" "$(wc -c <"$out")" ">" 80
expect_same "run ends with a newline" "$(tail -c 1 "$out" | od -An -tx1 | tr -d ' ')" 0a
cp "$out" "$scratch/first"
story --seed 7 --max-tokens 40
cmp -s "$out" "$scratch/first"
report "same seed, same text" $?
story --seed 8 --max-tokens 40
! cmp -s "$out" "$scratch/first"
report "other seed, other text" $?
story --temp 0 --max-tokens 20
cp "$out" "$scratch/first"
story --temp 0 --max-tokens 20 --seed 99
cmp -s "$out" "$scratch/first"
report "greedy whatever the seed" $?
story --temp 1 --top-k 1 --max-tokens 20 --seed 5
cmp -s "$out" "$scratch/first"
report "top-k 1 is greedy" $?
story --temp 1 --top-p 0.000001 --max-tokens 20 --seed 5
cmp -s "$out" "$scratch/first"
report "a tiny top-p is greedy" $?
story --temp 1 --min-p 1 --max-tokens 20 --seed 5
cmp -s "$out" "$scratch/first"
report "min-p 1 is greedy" $?

prompt_tokens=$(count_tokens "Once upon a time")
story --temp 0 --max-tokens 20 --json --stats
expect_code "run --json" 0
expect_same "run --json: tokens" "$("$JSON_GET" tokens <"$out")" 20
expect_same "run --json: stop" "$("$JSON_GET" stop <"$out")" max-tokens
expect_same "run --json: the begin token is prepended" "$("$JSON_GET" prefill_tokens <"$out")" $((prompt_tokens + 1))
expect_same "run --json: text" "Once upon a time$("$JSON_GET" text <"$out")" "$(cat "$scratch/first")"
expect_text "run --stats" "$err" device precision load "first token" prefill decode memory "tokens/s"
story --temp 0 --max-tokens 3 --json --no-bos
expect_same "run --no-bos" "$("$JSON_GET" prefill_tokens <"$out")" "$prompt_tokens"
run run "$demo" --max-tokens 3 --seed 1 --json
expect_same "no prompt: the begin token alone" "$("$JSON_GET" prefill_tokens <"$out")" 1
run run "$demo" --no-bos --max-tokens 3
expect_code "neither prompt nor begin token" 2
expect_text "neither prompt nor begin token: says so" "$err" "prompt is empty"
# The same model, its config without a begin token.
mkdir "$scratch/nobos"
ln -s "$demo"/*.safetensors "$demo"/model.safetensors.index.json "$demo"/tokenizer.json "$scratch/nobos"
sed 's/"bos_token_id": 4093/"bos_token_id": null/' "$demo/config.json" >"$scratch/nobos/config.json"
run run "$scratch/nobos" -p "Once upon a time" --max-tokens 3 --json
expect_same "a config without begin token: nothing is prepended" "$("$JSON_GET" prefill_tokens <"$out")" "$prompt_tokens"

printf 'She said "\303\251\\\342\230\203"\tand\001' >"$scratch/prompt"
run run "$demo" --file "$scratch/prompt" --seed 3 --max-tokens 10 --json
"$JSON_GET" text <"$out" >/dev/null
report "run --file --json of special characters" $?
run_from "$scratch/prompt" run "$demo" --file - --seed 3 --max-tokens 10
head -c "$(wc -c <"$scratch/prompt")" "$out" | cmp -s - "$scratch/prompt"
report "run --file - prints the prompt byte for byte" $?
story --context 16 --max-tokens 0 --temp 0 --json
expect_same "run stops where the context ends" "$("$JSON_GET" stop <"$out")" context-full
run run "$demo" -p "Once upon a time there was a king who had a daughter" --context 8
expect_code "prompt longer than the context" 1
expect_text "prompt longer than the context: says so" "$err" "8"
# Old software drivers take a minute to compile one more set of shaders.
if [ "$level" = full ]; then
    FULGUR_CAPS=-fp16,-subgroup,shared=16384,workgroup=128,buffers=4 story --temp 0 --max-tokens 8 --precision f32
    expect_code "run on the weakest device" 0
    expect_same "run on the weakest device: same words" "$(cut -c 1-30 "$out" | head -n 1)" \
        "$(cut -c 1-30 "$scratch/first" | head -n 1)"
fi
story --profile --stats --max-tokens 3 --seed 1
expect_code "run --profile" 0
grep -q -e "op of the last step" -e "no timestamps" "$err"
report "run --profile lists ops" $?

# ---- Ctrl-C ----
# In a process group of its own, as a terminal does it.
set -m
on_driver "$FULGUR" run "$demo" -p "Once upon a time" --seed 4 --max-tokens 0 --context 100000 \
    >"$out" 2>"$err" </dev/null &
group=$!
set +m
last="run ... (Ctrl-C)"
waited=0
until [ "$(wc -c <"$out")" -gt 60 ] || [ $waited -gt 1200 ]; do
    sleep 0.05
    waited=$((waited + 1))
done
code=0
before=$(date +%s%N)
kill -INT -- "-$group"
wait "$group" || code=$?
after=$(date +%s%N)
expect_code "Ctrl-C" 130
expect_number "Ctrl-C: milliseconds until it ended" $(((after - before) / 1000000)) "<" 1000
expect_same "Ctrl-C: ends with a newline" "$(tail -c 1 "$out" | od -An -tx1 | tr -d ' ')" 0a
expect_text "Ctrl-C: what was printed stays" "$out" "Once upon a time"
expect_same "Ctrl-C: no complaint" "$(grep -v 'pipeline cache' "$err")" ""

# ---- chat ----
prefilled() {
    sed -n 's/^prefill *\([0-9]*\) tokens.*/\1/p' "$err"
}
printf 'Tell me a story about a cat.\n' >"$scratch/one"
printf 'Tell me a story about a cat.\n\nTell me a story about a cat.\n/quit\nnot read\n' >"$scratch/two"
run_from "$scratch/one" chat "$demo" --seed 5 --max-tokens 60 --stats
expect_code "chat" 0
expect_number "chat answers" "$(wc -c <"$out")" ">" 2
cp "$out" "$scratch/first"
one=$(prefilled)
run_from "$scratch/two" chat "$demo" --seed 5 --max-tokens 60 --stats --system "You tell stories."
expect_code "chat with a system message" 0
run_from "$scratch/two" chat "$demo" --seed 5 --max-tokens 60 --stats
expect_code "chat of two turns" 0
head -c "$(wc -c <"$scratch/first")" "$out" | cmp -s - "$scratch/first"
report "chat: the first answer is the same" $?
expect_number "chat: there is a second answer" "$(wc -c <"$out")" ">" "$(wc -c <"$scratch/first")"
# Without its begin token, with the end of the first answer and a token that was not fed yet.
expect_number "chat: the second turn feeds its own tokens only" "$(prefilled)" "<=" $((2 * one + 4))
run_from "$scratch/one" chat "$demo" --format m1
expect_code "chat in a format that the tokenizer has no marks for" 1
expect_text "chat: names the mark" "$err" "begin_of_document"

# ---- a device that is lost on the way ----
# Another word would have the kernels tested again.
if [ "$DRIVER" != cpu ]; then
    # WHAT FILE
    expect_reopened() {
        expect_same "$1: one warning" "$(grep -c 'reopening' "$2")" 1
        expect_text "$1: says what was lost" "$2" VK_ERROR_DEVICE_LOST "${name:0:6}"
    }
    for sampling in "--temp 0" "--seed 4"; do
        # shellcheck disable=SC2086 # two words
        run run "$demo" -p "Once upon a time" -n 24 $sampling
        cp "$out" "$scratch/whole"
        # shellcheck disable=SC2086
        FULGUR_FAULT=lost:12 run run "$demo" -p "Once upon a time" -n 24 $sampling
        expect_code "run with a lost device, $sampling" 0
        expect_reopened "run with a lost device, $sampling" "$err"
        cmp -s "$out" "$scratch/whole"
        report "run with a lost device, $sampling: the text is the same" $?
    done
    FULGUR_FAULT=lost:12,lost:20 run run "$demo" -p "Once upon a time" -n 24 --seed 4
    expect_code "run with a device lost twice" 1
    expect_reopened "run with a device lost twice" "$err"
    head -c "$(($(wc -c <"$out") - 1))" "$out" >"$scratch/part"
    head -c "$(wc -c <"$scratch/part")" "$scratch/whole" | cmp -s - "$scratch/part"
    report "run with a device lost twice: what it said before is right" $?
    run_from "$scratch/two" chat "$demo" --seed 5 --max-tokens 20
    cp "$out" "$scratch/whole"
    FULGUR_FAULT=lost:12 run_from "$scratch/two" chat "$demo" --seed 5 --max-tokens 20
    expect_code "chat with a lost device" 0
    expect_reopened "chat with a lost device" "$err"
    cmp -s "$out" "$scratch/whole"
    report "chat with a lost device: the answers are the same" $?
fi

# ---- perplexity ----
bytes=4000
[ "$level" = full ] && bytes=20000
LC_ALL=C awk -v most=$bytes '{ n += length($0) + 1; if (n > most) exit; print }' "$demo/valid.txt" >"$scratch/valid"
run perplexity "$demo" "$scratch/valid" --window 256 --json
expect_code "perplexity --json" 0
for key in nll_per_token perplexity bits_per_byte tokens bytes documents windows window bos seconds; do
    "$JSON_GET" "$key" <"$out" >"$scratch/$key"
    report "perplexity --json: $key" $?
done
expect_number "bits per byte" "$(cat "$scratch/bits_per_byte")" ">" 0.9
expect_number "bits per byte" "$(cat "$scratch/bits_per_byte")" "<" 1.7
expect_same "its window" "$(cat "$scratch/window")" 256
expect_number "documents" "$(cat "$scratch/documents")" ">" 2
whole_tokens=$(cat "$scratch/tokens") short=$(cat "$scratch/bits_per_byte")
run perplexity "$demo" "$scratch/valid"
expect_code "perplexity" 0
expect_text "perplexity says how it was measured" "$out" "bits a byte" "begin token" "$whole_tokens tokens scored"
long=$(sed -n 's/.*token   \([0-9.]*\) bits a byte.*/\1/p' "$out")
expect_number "whole documents are predicted no worse than windows of 256" "$long" "<=" "$(awk "BEGIN { print $short * 1.01 }")"
run perplexity "$demo" "$scratch/valid" --window 256 --no-bos --json
expect_number "without begin token a window scores one token less" "$("$JSON_GET" tokens <"$out")" "<" "$whole_tokens"
expect_same "without begin token" "$("$JSON_GET" bos <"$out")" -1
printf 'Once upon a time there was a king.' >"$scratch/text"
run perplexity "$demo" "$scratch/text" --json
expect_same "perplexity scores every token of a text" "$("$JSON_GET" tokens <"$out")" \
    "$(count_tokens "$(cat "$scratch/text")")"
expect_same "perplexity counts its bytes" "$("$JSON_GET" bytes <"$out")" "$(wc -c <"$scratch/text" | tr -d ' ')"

# Logits kept, and held against: themselves, other weights, another text.
run perplexity "$demo" "$scratch/text" --save-logits "$scratch/kept"
expect_code "perplexity --save-logits" 0
run perplexity "$demo" "$scratch/text" --kl "$scratch/kept" --json
expect_code "perplexity --kl" 0
expect_number "KL from itself" "$("$JSON_GET" kl <"$out")" "<" 1e-12
expect_same "top tokens of itself" "$("$JSON_GET" top1_agreement <"$out")" 1
run perplexity "$demo" "$scratch/text" --decay orig --kl "$scratch/kept" --json
expect_number "KL from another decay" "$("$JSON_GET" kl_max <"$out")" ">" 0
expect_number "KL from another decay" "$("$JSON_GET" kl_max <"$out")" "<" 1e-3
run perplexity "$demo" "$scratch/text" --save-logits "$scratch/kept"
expect_error "kept logits are not overwritten" 1 "$scratch/kept" "not overwritten"
run perplexity "$demo" "$scratch/text" --window 4 --kl "$scratch/kept"
expect_error "logits of other windows" 1 "$scratch/kept" "another text"
head -c 40000 "$scratch/kept" >"$scratch/cut"
run perplexity "$demo" "$scratch/text" --kl "$scratch/cut"
expect_error "logits cut off" 1 "$scratch/cut" "cut off"
run perplexity "$demo" "$scratch/text" --kl "$scratch/text"
expect_error "no logits" 1 "$scratch/text" "--save-logits"
expect_same "no part is left" "$(find "$scratch" -name '*.part' | wc -l | tr -d ' ')" 0

# ---- imatrix ----
run imatrix "$demo" "$scratch/valid" --out "$scratch/first.gguf" --window 128 --windows 3
expect_code "imatrix" 0
expect_text "imatrix ends after as many windows as asked for" "$out" "in 3 windows of at most 128"
run imatrix "$demo" "$scratch/text" --out "$scratch/both.gguf" --in "$scratch/first.gguf"
expect_code "imatrix adds to a file" 0
expect_text "imatrix says to what it adds" "$out" "1 windows" "added to $scratch/first.gguf"
run quantize "$demo" "$scratch/weighted.gguf" --type q4_0 --pure --imatrix "$scratch/both.gguf"
expect_text "an importance matrix reaches every tensor of blocks but the embedding" "$out" "50 of 51 tensors of blocks weighted"
run quantize "$demo" "$scratch/plain.gguf" --type q4_0 --pure
cmp -s "$scratch/weighted.gguf" "$scratch/plain.gguf"
expect_same "importance changes what is chosen" $? 1
run perplexity "$scratch/weighted.gguf" "$scratch/text" --kl "$scratch/kept" --json
expect_number "weighted q4_0 stays near the model" "$("$JSON_GET" kl <"$out")" "<" 0.3
run imatrix "$demo" "$scratch/text" --out "$scratch/both.gguf"
expect_error "imatrix does not overwrite" 1 "$scratch/both.gguf" "not overwritten"
run imatrix "$demo" "$scratch/text" --out "$scratch/x.gguf" --in "$scratch/plain.gguf"
expect_error "imatrix adds to no model" 1 "$scratch/plain.gguf" "no importance matrix"
run imatrix "$demo" "$scratch/text" --out "$scratch/x.gguf" --precision f16 --device cpu
expect_error "imatrix in f16" 1 "f16"
run imatrix "$demo" "$scratch/text"
expect_error "imatrix without a target" 2 "usage: fulgur imatrix"
expect_same "no file is left" "$(find "$scratch" -name 'x.gguf*' | wc -l | tr -d ' ')" 0
rm -f "$scratch"/*.gguf

# ---- logits ----
logits() { # NAME IDS [OPTION...]
    local name=$1 ids=$2
    shift 2
    run logits "$model" --tokens "$ids" --out "$scratch/$name.npy" --precision f32 "$@"
    expect_code "logits $*" 0
}
model=$demo
head -c 1500 "$scratch/valid" >"$scratch/text"
on_driver "$FULGUR" tokenize "$demo" -f "$scratch/text" | head -n 150 >"$scratch/ids"
n=$(wc -l <"$scratch/ids" | tr -d ' ')
logits all "$scratch/ids"
expect_same "logits: a row for every token" "$("$NPY_COMPARE" shape "$scratch/all.npy")" "$n 4096"
expect_same "logits: size of the file" "$(wc -c <"$scratch/all.npy" | tr -d ' ')" $((128 + n * 4096 * 4))
expect_same "logits prints nothing" "$(cat "$out")" ""
logits part "$scratch/ids" --prefill 100
expect_number "logits: prefill 100 against all" "$("$NPY_COMPARE" files "$scratch/part.npy" "$scratch/all.npy")" "<=" 1e-4
if [ "$level" = full ]; then
    logits chunk "$scratch/ids" --chunk 32
    expect_number "logits: chunks of 32 against all" "$("$NPY_COMPARE" files "$scratch/chunk.npy" "$scratch/all.npy")" "<=" 1e-4
fi
head -n 20 "$scratch/ids" >"$scratch/ids20"
logits all20 "$scratch/ids20" --prefill 500
logits none20 "$scratch/ids20" --prefill 0
expect_number "logits: prefill 0 against all" "$("$NPY_COMPARE" files "$scratch/none20.npy" "$scratch/all20.npy")" "<=" 1e-4
logits hf "$scratch/ids" --decay hf
cmp -s "$scratch/hf.npy" "$scratch/all.npy"
report "the demo model's decay rule is hf" $?
logits orig "$scratch/ids" --decay orig
! cmp -s "$scratch/orig.npy" "$scratch/all.npy"
report "--decay orig changes the logits" $?
expect_number "--decay orig changes them little" "$("$NPY_COMPARE" files "$scratch/orig.npy" "$scratch/all.npy")" "<=" 1e-2
printf '5\n4096\n' >"$scratch/bad"
run logits "$demo" --tokens "$scratch/bad" --out "$scratch/bad.npy"
expect_error "logits of a token outside the vocabulary" 1 "4096"
[ ! -e "$scratch/bad.npy" ]
report "half a file is removed" $?
run logits "$demo" --tokens "$scratch/ids20" --out "$scratch/none/x.npy"
expect_error "logits into a missing folder" 1 "$scratch/none/x.npy" "No such file"

model=$golden_model
lengths="17 257"
[ "$level" = full ] && lengths="1 17 65 257"
for tokens in $lengths; do
    "$NPY_COMPARE" ids "$model" $tokens >"$scratch/ids"
    logits golden "$scratch/ids" --decay hf
    expect_number "golden of $tokens tokens" "$("$NPY_COMPARE" golden "$model" $tokens "$scratch/golden.npy")" "<=" 1e-5
done
logits golden "$scratch/ids" --decay hf --prefill 200
expect_number "golden of $tokens tokens, the last ones one by one" \
    "$("$NPY_COMPARE" golden "$model" $tokens "$scratch/golden.npy")" "<=" 1e-5

if python3 -c 'import numpy' 2>/dev/null; then
    python3 - "$scratch/golden.npy" "$model" <<'PYTHON'
import sys, numpy
a = numpy.load(sys.argv[1], allow_pickle=False)
assert a.dtype == numpy.float32 and a.shape == (257, 512) and a.flags["C_CONTIGUOUS"], (a.dtype, a.shape)
assert numpy.isfinite(a).all()
PYTHON
    report "NumPy reads the file" $?
else
    printf 'skipped: NumPy reads the file: python3 has no numpy\n'
fi

# ---- bench ----
run bench model --preset tiny --layers 2 --softmax-every 2 -p 8,40 -n 3 --depth 0,16 -r 2 --profile
expect_code "bench model" 0
expect_text "bench model's table" "$out" "2 layers (1 softmax)" "f16 weights" "pp40" "tg3" " 16 " \
    "same" "weights" "moe up" "TFLOP/s"
run bench model --preset tiny --layers 2 -p 8 -n 2 -r 2 --type f32 --json
expect_code "bench model --json" 0
"$JSON_GET" <"$out" >"$scratch/n"
report "bench model --json is JSON" $?
expect_same "bench model --json names the type" "$("$JSON_GET" weights <"$out")" f32
expect_same "bench model --json has both tests" "$("$JSON_GET" tests <"$out")" 2
expect_number "bench model plans its memory" "$("$JSON_GET" total_bytes <"$out")" "<=" \
    "$("$JSON_GET" available_bytes <"$out")"
f32_bytes=$("$JSON_GET" weight_bytes <"$out")
run bench model --preset tiny --layers 2 -p 8 -n 2 -r 1 --type q4_k --json
expect_code "bench model of blocks" 0
expect_same "bench model of blocks: names the type" "$("$JSON_GET" weights <"$out")" q4_k
expect_number "bench model of blocks: their bytes" "$(($("$JSON_GET" weight_bytes <"$out") * 6))" "<=" "$f32_bytes"
run bench model --model "$demo" -p 8 -n 2 -r 1 --csv
expect_code "bench model --csv" 0
expect_same "bench model --csv has a line a test" "$(wc -l <"$out")" 3
run bench model --preset tiny --layers 2 --first-token both -p 8
expect_code "bench model --first-token" 0
expect_text "bench model --first-token" "$out" "cold pipeline cache: first token" "warm" "session"
run bench model --preset full80 -n 1
expect_error "bench model of a model that does not fit" 1 "912" "free"
run bench model --preset tiny --hidden 100
expect_error "bench model of impossible dimensions" 1 hidden_size 100 "multiple of 8"
run bench model --preset tiny -n 1,x
expect_error "bench model with a list that is none" 2 "--decode" "1,x"
run bench lengths --preset tiny --from 64 --to 256 --softmax 128 -r 2 --chunk 64 --svg "$scratch/plot.svg"
expect_code "bench lengths" 0
expect_text "bench lengths' table" "$out" "lightning" "softmax" "finite, same" "       256 "
expect_text "bench lengths' plot" "$scratch/plot.svg" "<svg " "softmax attention" "tokens" "</svg>"
last="bench lengths --svg"
! grep -qiE 'nan|inf[^a-z]' "$scratch/plot.svg"
report "bench lengths' plot has numbers" $?
run bench lengths --preset tiny --from 64 --to 128 --softmax 0 -r 1 --json
expect_code "bench lengths --json" 0
expect_same "bench lengths --json" "$("$JSON_GET" chunk_tokens <"$out")" 128
run bench lengths --preset tiny --from 9 --to 8
expect_error "bench lengths of nothing" 2 "--from"
run bench model
expect_error "bench model of nothing" 2 "--preset"
run bench device
expect_code "bench device" 0
expect_text "bench device" "$out" "copy" "read" "GB/s" "multiply-add" "TFLOP/s" "dispatch after dispatch" "submission"
run bench device --json
expect_code "bench device --json" 0
expect_number "bench device --json has rates" "$("$JSON_GET" rates <"$out")" ">=" 6
run bench device --csv
expect_number "bench device --csv has rates" "$(wc -l <"$out")" ">=" 7
run bench ops --shape tiny --rows 1,64 --reps 2
expect_code "bench ops" 0
expect_text "bench ops" "$out" "lightning prefill" "lightning decode" "attention prefill" "attention decode" \
    "moe" "matmul" "matvec" "gated norm" "route" "sample" "used" "of copy" "error"
last="bench ops (results)"
! grep -q FAILED "$out"
report "every op of the table is right" $?
run bench ops --shape tiny --filter matmul --rows 64 --reps 2 --type f32 --precision f32 --caps=-subgroup,-fp16 --json
expect_code "bench ops --json" 0
expect_number "bench ops --json has results" "$("$JSON_GET" results <"$out")" ">=" 1
expect_same "bench ops --json names the type" "$("$JSON_GET" weights <"$out")" f32
run bench ops --shape tiny --filter "lightning prefill" --rows 40,64 --reps 2 --csv
expect_code "bench ops --csv" 0
expect_same "bench ops --csv has a line a case" "$(wc -l <"$out")" 3
run bench ops --shape tiny --filter "matvec out" --rows 1 --reps 2 --type q8_0,q4_k,bf16 --json
expect_code "bench ops of three types" 0
expect_same "bench ops of three types: names them" "$("$JSON_GET" weights <"$out")" q8_0,q4_k,bf16
expect_same "bench ops of three types: a case each" "$("$JSON_GET" results <"$out")" 3
expect_text "bench ops of three types: says which" "$out" '"weights": "q4_k"' read_bytes_per_s
run bench ops --shape tiny --filter embed --rows 3 --reps 1 --type all --csv
expect_code "bench ops of all types" 0
expect_same "bench ops of all types: a line each" "$(wc -l <"$out")" 16
expect_same "bench ops of all types: all right" "$(grep -c ',right$' "$out")" 15
run bench ops --type q4_k,q9
expect_error "bench ops of an unknown type" 2 "--type takes" "q5_k" "mxfp4, some of them" "q4_k,q9"
run bench model --preset tiny --type q4_k,q8_0
expect_error "bench model of two types" 2 "--type takes" "q4_k,q8_0"
# A wrong result may not show a figure.
for op in "lightning prefill" moe "gated norm" sample embed; do
    FULGUR_BENCH_SPOIL=$op run bench ops --shape tiny --filter "$op" --rows 1 --reps 2
    expect_code "bench ops of a spoilt $op" 1
    expect_text "bench ops of a spoilt $op: says so" "$out" "FAILED"
    last="bench ops of a spoilt $op"
    ! grep "^$op  .*1 .*[0-9] \.\. [0-9]" "$out"
    report "bench ops of a spoilt $op: no figure" $?
done
run bench ops --rows 0
expect_error "bench ops of no rows" 2 "--rows"
at() {
    "$REPORT_CHECK" --at "$scratch/report.json" "$1"
}
# Old software drivers take a minute to compile for it, and it is the same program on all of them.
if [ "$level" = full ]; then
    mkdir -p "$scratch/sys/devices/system/cpu/cpu0/cpufreq"
    echo 2100000 >"$scratch/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
    FULGUR_BENCH_SYSFS=$scratch/sys run bench report --quick --seconds 3 --model "$demo" --out "$scratch/report.html" \
        --json "$scratch/report.json"
    expect_code "bench report" 0
    "$REPORT_CHECK" "$scratch/report.html" "$scratch/report.json" >"$scratch/why"
    report "bench report: the page shows the JSON's numbers" $? "$(cat "$scratch/why")"
    expect_same "bench report: the device" "$(at /device/name)" "\"$name\""
    expect_same "bench report: right" "$(at /correctness/ok)" true
    expect_number "bench report: ops were checked" "$(at /correctness/ops_checked)" ">=" 1
    expect_number "bench report: a model ran" "$(at /model/tests/0/tokens_per_s)" ">" 0
    expect_number "bench report: a second's tokens" "$(at /sustained/samples/0/tokens_per_s)" ">" 0
    expect_same "bench report: a second's clock" "$(at /sustained/samples/0/cpu_clock_mhz)" 2100
    expect_number "bench report: first token" "$(at /first_token/warm/process_ms)" ">" 0
    case $(at /correctness/greedy/text) in
    \"[!\"]*) report "bench report: greedy text" 0 ;;
    *) report "bench report: greedy text" 1 ;;
    esac
    FULGUR_BENCH_SPOIL="lightning prefill" run bench report --quick --seconds 3 --preset tiny --json "$scratch/report.json"
    expect_code "bench report of a spoilt op" 1
    expect_same "bench report of a spoilt op: says so" "$(at /correctness/ok)" false
    expect_text "bench report of a spoilt op: no figure" "$scratch/report.json" '"ok": false, "failed": "wrong"}'
fi
run bench nothing
expect_error "bench of nothing" 2 "nothing"

# ---- tune ----
run tune
expect_code "tune" 0
expect_text "tune names the device" "$out" "${name:0:6}"
grep -q -e "kept for this device" -e "nothing to choose" "$out"
report "tune says what it did" $?
last="tune (results of its candidates)"
! grep -q FAILED "$out"
report "every candidate of tune computes the same" $?
run tune --only "attention decode" --json
expect_code "tune --json" 0
"$JSON_GET" <"$out" >/dev/null
report "tune --json is JSON" $?
run tune --show --json
expect_code "tune --show" 0
expect_number "tune --show lists the choices" "$("$JSON_GET" trials <"$out")" ">=" 10
run tune --forget
expect_code "tune --forget" 0
run tune --show
last="tune --show (after --forget)"
! grep -q '^  \*' "$out"
report "tune --forget goes back to the defaults" $?
run tune --show --forget
expect_code "tune --show --forget" 2

# ---- selftest ----
run selftest --only attention
expect_code "selftest" 0
expect_text "selftest names the device and the kernels" "$out" "${name:0:6}" "attention_f16" "passed"
run selftest --only embedding --json
expect_code "selftest --json" 0
expect_text "selftest --json has the verdict" "$out" '"variant": "embed_f16"' '"verdict": "passed"'
"$JSON_GET" <"$out" >/dev/null
report "selftest --json is JSON" $?
if [ "$DRIVER" != cpu ]; then
    FULGUR_FAULT=selftest:embed run selftest --only embedding --json
    expect_code "selftest with a fault" 1
    expect_text "selftest with a fault" "$out" '"verdict": "wrong"' '"usable": false'
    FULGUR_FAULT=selftest:moe_route_up_*,selftest:matvec_norm* run run "$demo" -p "Once" -n 8 --temp 0
    expect_code "run with kernels in quarantine" 0
    expect_text "run with kernels in quarantine says so" "$err" "not used from now on"
    cp "$out" "$scratch/quarantined"
fi
run run "$demo" -p "Once" -n 8 --temp 0
[ "$DRIVER" != cpu ] || cp "$out" "$scratch/quarantined"
cmp -s "$out" "$scratch/quarantined"
report "kernels in quarantine leave the text as it is" $?
FULGUR_FAULT=selftest:embed run run "$demo" -p "Once" -n 8 --temp 0
expect_code "run without any kernel for an op" 0
cmp -s "$out" "$scratch/quarantined"
report "the processor is the last resort for an op, with the same text" $?
FULGUR_CAPS=unified=0 FULGUR_FAULT=selftest:embed run run "$demo" -p "Once" -n 8 --temp 0
expect_code "run without any kernel for an op, nor its memory in reach" 0
cmp -s "$out" "$scratch/quarantined"
report "the built-in device is the last resort, with the same text" $?
if [ "$DRIVER" != cpu ]; then
    expect_text "run without any kernel for an op says so" "$err" "embed_" "wrong result" "processor"
    FULGUR_CAPS=unified=0 FULGUR_FAULT=selftest:embed run run "$demo" -p "Once" -n 8 --device "$name"
    expect_code "run on such a device by name" 1
fi
FULGUR_FAULT=nonsense run run "$demo" -p x
expect_error "FULGUR_FAULT with a word it does not know" 1 FULGUR_FAULT nonsense
run selftest extra
expect_code "selftest extra" 2

# ---- the samples of one page ----
sample() {
    last="sample $*"
    code=0
    on_driver "$SAMPLES/$1" "${@:2}" >"$out" 2>"$err" </dev/null || code=$?
}
sample devices
expect_code "sample devices" 0
expect_text "sample devices" "$out" "0: " "${name:0:6}" "MiB"
sample generate "$demo" "Once upon a time"
expect_code "sample generate" 0
expect_text "sample generate" "$out" "Once upon a time"
expect_number "sample generate tells a story" "$(wc -c <"$out")" ">" 200
sample generate "$scratch/none" x
expect_code "sample generate without a model" 1
expect_text "sample generate without a model" "$err" "FUL_ERR_IO" "$scratch/none"
sample embed_in_app "$demo"
expect_code "sample embed_in_app" 0
expect_text "sample embed_in_app" "$out" "needs " "MiB are free"
expect_number "sample embed_in_app tells a story" "$(wc -w <"$out")" ">" 20
finish
