#!/bin/bash
# What the fulgur program does without a device: help, options, inspect, tokenize, bad input.
. "$(dirname "$0")/common.sh"

# ---- help and usage ----
options_run="--prompt --file --seed --temp --top-k --top-p --min-p --max-tokens --no-bos --device
    --precision --decay --context --chunk --stats --profile --json --verbose --help"
options_chat="--system --format --seed --temp --top-k --top-p --min-p --max-tokens --no-bos --device
    --stats --help"
options_devices="--json --verbose --help"
options_inspect="--json --tensors --check --help"
options_tokenize="--prompt --file --added --decode --count --json --help"
options_perplexity="--window --mark --no-bos --save-logits --kl --device --json --help"
options_convert="--type --help"
options_quantize="--type --pure --imatrix --threads --verbose --help"
options_imatrix="--out --in --window --windows --mark --no-bos --device --help"
options_logits="--tokens --prefill --out --decay --device --help"

run --help
expect_code "help" 0
expect_text "help lists the commands" "$out" "  run " "  chat " "  devices " "  inspect " \
    "  tokenize " "  perplexity " "  logits " "  convert " "  quantize " "  imatrix "
for command in run chat devices inspect tokenize perplexity logits convert quantize imatrix; do
    run "$command" --help
    expect_code "$command --help" 0
    name=options_$command
    # shellcheck disable=SC2086
    expect_text "$command --help names its options" "$out" ${!name}
    cp "$out" "$scratch/help"
    run help "$command"
    cmp -s "$out" "$scratch/help"
    report "help $command says the same" $?
    run "$command" --no-such-option
    expect_error "$command --no-such-option" 2 "fulgur $command" "no-such-option"
done
run
expect_error "no command" 2 "usage: fulgur COMMAND"
run dance
expect_error "unknown command" 2 "'dance'" "usage: fulgur COMMAND"
run --version
expect_text "version" "$out" "fulgur "
for command in run chat inspect tokenize perplexity logits convert quantize imatrix; do
    run "$command"
    expect_error "$command without a model" 2 "usage: fulgur $command MODEL"
done
run devices extra
expect_error "devices takes no argument" 2 "usage: fulgur devices"
run logits "$demo" --tokens "$demo/config.json"
expect_error "logits without --out" 2 "--out FILE.npy"
run perplexity "$demo" "$demo/valid.txt" --window 1
expect_error "perplexity with a window of 1" 2 "--window"

# ---- values of options ----
bad_value() {
    run run "$demo" "$1" "$2"
    expect_error "run $1 '$2'" 2 "$1" "'$2'"
}
bad_value --temp -1
bad_value --temp nan
bad_value --temp 1x
bad_value --temp ""
bad_value --top-p 1.5
bad_value --min-p -0.1
bad_value --top-k -3
bad_value --top-k 4294967296
bad_value --seed 1.5
bad_value --max-tokens many
bad_value --precision f8
bad_value --decay both
bad_value --context -5
run chat "$demo" --format gpt
expect_error "chat --format gpt" 2 "text-01|m1" "'gpt'"
run run "$demo" --seed
expect_error "an option without its value" 2 "seed"
run run "$demo" -p a -f b
expect_error "prompt and file" 2 "usage"
run run --seed 18446744073709551615 "$demo" --temp=0.5 -n5 --help
expect_code "options before and after the model, --name=value, -n5" 0

# ---- convert ----
run convert "$demo" "$scratch/demo.gguf"
expect_code "convert" 0
expect_text "convert says what it wrote" "$out" "demo.gguf: " " MiB, 83 tensors, 17.160 M parameters" "bf16"
run convert "$demo" "$scratch/demo.gguf"
expect_error "convert does not overwrite" 1 "demo.gguf" "exists"
run convert "$golden/many-experts" "$scratch/half.gguf" --type f16
expect_code "convert --type f16" 0
run convert "$golden/many-experts" "$scratch/other.gguf" --type q8_0
expect_error "convert --type q8_0" 2 "--type" "'q8_0'"
run convert "$golden/absent" "$scratch/other.gguf"
expect_error "convert without a model" 1 "absent"
run convert "$demo" "$scratch/no/such/folder.gguf"
expect_error "convert into no folder" 1 "no/such/folder.gguf"
run convert "$demo"
expect_error "convert without an output" 2 "usage: fulgur convert MODEL OUT.gguf"
expect_same "convert leaves nothing else" "$(cd "$scratch" && echo *.gguf*)" "demo.gguf half.gguf"
run inspect "$scratch/half.gguf" --json --tensors --check
expect_code "inspect a GGUF" 0
for pair in architecture=minimax-01 weight_type=f16 tensor_count=43 expert_count=32; do
    expect_same "inspect a GGUF: ${pair%=*}" "$("$JSON_GET" "${pair%=*}" <"$out")" "${pair#*=}"
done
expect_text "inspect a GGUF: types in JSON" "$out" '"types": {"F' '"F16": {"tensors": 27, '
run inspect "$scratch/demo.gguf" --tensors
expect_text "inspect a GGUF: chat" "$out" "chat          format text-01"
expect_text "inspect a GGUF: types and tensors" "$out" "types         BF16: " "F32: " \
    "blk.7.ffn_down_exps.weight" "8 x 256 x 256" "17.160 M, 6.675 M active"
printf 'A <end_of_sentence> caf\303\251, once upon a time.\n' >"$scratch/sentence"
run tokenize "$demo" --file "$scratch/sentence" --added
cp "$out" "$scratch/tokens"
run tokenize "$scratch/demo.gguf" --file "$scratch/sentence" --added
expect_code "tokenize with a GGUF" 0
cmp -s "$out" "$scratch/tokens"
report "tokenize: the same tokens from a GGUF" $?
run run "$demo" -p "Once upon a time" -n 8 --temp 0 --device cpu
cp "$out" "$scratch/story"
run run "$scratch/demo.gguf" -p "Once upon a time" -n 8 --temp 0 --device cpu
expect_code "run a GGUF" 0
cmp -s "$out" "$scratch/story" && [ -s "$scratch/story" ]
report "run: the same story from a GGUF" $?
run tokenize "$scratch/half.gguf" -p "a"
expect_error "tokenize with a GGUF without a tokenizer" 1 "half.gguf" "no tokenizer"
# ---- quantize ----
room=$scratch/quantized
mkdir "$room"
run quantize "$demo" "$room/q8.gguf" --type q8_0
expect_code "quantize" 0
expect_text "quantize sums up" "$out" "q8.gguf: 17.58 MiB of 32.79" "8.53 bits a weight" \
    "  f32       32 tensors " "  q8_0      51 tensors "
run quantize "$scratch/demo.gguf" "$room/mix.gguf" --type Q4_K_M --threads 2 --verbose
expect_code "quantize a GGUF to a mix" 0
expect_text "a mix has several types" "$out" "  q4_k      42 tensors" "  q6_k       9 tensors"
expect_text "quantize --verbose names tensors" "$err" "blk.3.ffn_down_exps.weight"
run quantize "$room/mix.gguf" "$room/pure.gguf" --type q4_0 --pure
expect_code "quantize blocks" 0
expect_text "--pure" "$out" "  q4_0      51 tensors"
run inspect "$room/pure.gguf" --check
expect_text "what was quantised is finite" "$out" "every weight is finite"
run convert "$room/pure.gguf" "$room/wide.gguf" --type f32
expect_code "convert blocks to f32" 0
run quantize "$golden/many-experts" "$room/small.gguf" --type q4_k
expect_text "quantize names rows that are too short" "$out" "smaller blocks" "token_embd.weight, q5_0 for q4_k"
run run "$room/q8.gguf" -p "Once upon a time" -n 8 --temp 0 --device cpu
expect_code "run what was quantised" 0
run quantize "$demo" "$room/q8.gguf" --type q8_0
expect_error "quantize does not overwrite" 1 "q8.gguf" "exists"
run quantize "$demo" "$room/x.gguf" --type q9_0
expect_error "quantize to an unknown type" 2 "'q9_0'" "q4_k_m" "q5_k"
run quantize "$demo" "$room/x.gguf" --type q4_k_m --pure
expect_error "a mix is no pure type" 2 "'q4_k_m'" "q4_k"
run quantize "$demo" "$room/x.gguf"
expect_error "quantize without a type" 2 "usage: fulgur quantize MODEL OUT.gguf --type NAME"
run quantize "$demo" "$room/no/such/folder.gguf" --type q8_0
expect_error "quantize into no folder" 1 "no/such/folder.gguf"
run quantize "$demo" "$room/x.gguf" --type q8_0 --imatrix "$room/absent.gguf"
expect_error "quantize with an importance matrix that is not there" 1 "absent.gguf"
run quantize "$demo" "$room/x.gguf" --type q8_0 --imatrix "$scratch/demo.gguf"
expect_error "quantize with a model as importance matrix" 1 "demo.gguf" "importance"
# A file may not grow beyond 2 MiB: as a full disk.
last="quantize on a full disk"
code=0
(trap '' XFSZ && ulimit -f 2048 && exec "$FULGUR" quantize "$demo" "$room/x.gguf" --type q8_0) \
    >"$out" 2>"$err" || code=$?
expect_error "$last" 1 "x.gguf" "cannot write"
expect_same "failures leave nothing" "$(cd "$room" && echo x.gguf*)" "x.gguf*"
# Stopped when it has begun to write: SIGNAL.
stop_quantize() {
    "$FULGUR" quantize "$demo" "$room/killed.gguf" --type q2_k --pure --threads 1 \
        >"$out" 2>"$err" </dev/null &
    local process=$! waited=0
    until [ -n "$(find "$room" -name 'killed.gguf*' -size +8k)" ] || [ $waited -ge 600 ]; do
        sleep 0.05
        waited=$((waited + 1))
    done
    kill "-$1" $process
    code=0
    wait $process || code=$?
}
stop_quantize INT
expect_same "Ctrl-C ends quantize" "$code" 130
expect_same "Ctrl-C leaves nothing" "$(cd "$room" && echo killed*)" "killed*"
stop_quantize KILL 2>"$scratch/killed"
expect_same "quantize is killed" "$code" 137
[ ! -e "$room/killed.gguf" ]
report "a killed process leaves nothing under the final name" $?
[ -n "$(find "$room" -name 'killed.gguf.*.tmp')" ]
report "but what it had under another" $?
run quantize "$demo" "$room/killed.gguf" --type q8_0
expect_code "which is in nobody's way" 0
expect_text "but is named" "$err" "warning" "killed.gguf." ".tmp: left by a process"
cmp -s "$room/killed.gguf" "$room/q8.gguf"
report "the file is the same as if nothing had happened" $?
if script --version >/dev/null 2>&1; then
    last="quantize on a terminal"
    script -qec "'$FULGUR' quantize '$demo' '$room/bar.gguf' --type q4_0 --threads 1" /dev/null >"$out" 2>&1 </dev/null
    expect_text "a terminal is told how far it is and how long it takes" "$out" "quantising [" " s left"
fi
rm -r "$room"

head -c 100000 "$scratch/demo.gguf" >"$scratch/cut.gguf"
run inspect "$scratch/cut.gguf"
expect_error "inspect half a GGUF" 1 "cut.gguf"

# ---- inspect ----
run inspect "$demo"
expect_code "inspect" 0
expect_text "inspect describes the demo model" "$out" "8 layers: 7 lightning, 1 softmax" \
    "17.160 M" "vocabulary 4096" "begin 4093, end 4094" "bf16" "decay rule hf"
run inspect "$demo" --check
expect_code "inspect --check" 0
expect_text "inspect --check says so" "$out" "every weight is finite"
run inspect "$demo" --json --check --tensors
expect_code "inspect --json" 0
for pair in block_count=8 vocab_size=4096 head_dim=64 rotary_dim=32 parameter_count=17160192 \
    bos_token_id=4093 architecture=minimax decay=hf finite=true tensors=251 tied_head=false; do
    expect_same "inspect --json: ${pair%=*}" "$("$JSON_GET" "${pair%=*}" <"$out")" "${pair#*=}"
done
run inspect "$demo" --tensors
expect_same "inspect --tensors lists all" "$(grep -c '^model\.\|^lm_head' "$out")" 251
expect_text "inspect --tensors: name, type, shape, bytes" "$out" \
    "model.embed_tokens.weight                                        BF16  4096 x 256                2097152"
for name in hybrid-7to1 many-experts mixed-factors; do
    run inspect "$golden/$name" --check --json
    expect_code "inspect $name" 0
    expect_same "inspect $name: architecture" "$("$JSON_GET" architecture <"$out")" minimax_text_01
    expect_same "inspect $name: decay rule" "$("$JSON_GET" decay <"$out")" orig
done
expect_same "inspect of mixed layers" "$("$JSON_GET" softmax_block_count <"$out")" 2

# ---- bad folders ----
run inspect "$scratch/none"
expect_error "missing folder" 1 "$scratch/none" "No such file"
run run "$scratch/none" -p x
expect_error "run with a missing folder" 1 "$scratch/none" "No such file"
mkdir "$scratch/empty"
run inspect "$scratch/empty"
expect_error "empty folder" 1 "$scratch/empty"
run tokenize "$scratch/empty" -p x
expect_error "folder without tokenizer" 1 "$scratch/empty/tokenizer.json"

copy_golden() {
    rm -rf "$scratch/model"
    cp -R "$golden/mixed-factors" "$scratch/model"
    chmod -R u+w "$scratch/model"
}
shard=model-00001-of-00002.safetensors
copy_golden
head -c 700000 "$golden/mixed-factors/$shard" >"$scratch/model/$shard"
run inspect "$scratch/model"
expect_error "truncated safetensors" 1 "$shard" "tensor" "693536 bytes"
copy_golden
rm "$scratch/model/$shard"
run inspect "$scratch/model"
expect_error "missing shard" 1 "$shard"
copy_golden
sed 's/"hidden_size": 96/"hidden_size": 98/' "$golden/mixed-factors/config.json" >"$scratch/model/config.json"
run inspect "$scratch/model"
expect_error "config against tensors" 1 "98" "$scratch/model"
copy_golden
sed 's/"minimax_text_01"/"llama"/' "$golden/mixed-factors/config.json" >"$scratch/model/config.json"
run inspect "$scratch/model"
expect_error "unknown architecture" 1 "llama" "config.json"
copy_golden
printf '{"model_type": ' >"$scratch/model/config.json"
run inspect "$scratch/model"
expect_error "broken config" 1 "config.json"
copy_golden
# The last four bytes of a file are part of its last tensor: 0x7fff is a NaN in every float type.
size=$(wc -c <"$scratch/model/$shard")
printf '\377\177\377\177' | dd of="$scratch/model/$shard" bs=1 seek=$((size - 4)) conv=notrunc 2>/dev/null
run inspect "$scratch/model"
expect_code "inspect reads no weights" 0
run inspect "$scratch/model" --check
expect_error "inspect --check finds a NaN" 1 "$shard" "model.norm.weight" "not finite"
run inspect "$scratch/model" --check --json
expect_error "inspect --check --json finds a NaN" 1 "$shard" "model.norm.weight" "not finite"

# ---- tokenize ----
tokenize() {
    run tokenize "$demo" "$@"
}
tokenize -p "Once upon a time"
expect_code "tokenize" 0
cp "$out" "$scratch/ids"
lines=$(wc -l <"$scratch/ids")
tokenize -p "Once upon a time" --count
expect_same "tokenize --count" "$(cat "$out")" "$((lines))"
tokenize -p "Once upon a time" --json
expect_same "tokenize --json" "$("$JSON_GET" <"$out")" "$((lines))"
tokenize --decode -f "$scratch/ids"
expect_same "tokenize --decode" "$(cat "$out")" "Once upon a time"
expect_same "tokenize --decode adds no newline" "$(wc -c <"$out" | tr -d ' ')" 16
tokenize --decode -p "[79, 110]"
expect_same "tokenize --decode of a list" "$(cat "$out")" "On"

# Text with everything that shells, JSON and tokenizers stumble over, in NFC.
printf 'q"uote \\ back/slash\ttab\r\n\001 \303\251\342\230\203 \360\237\221\251\342\200\215\360\237\232\200 \346\227\245\346\234\254 \340\244\250\340\244\256 $HOME %%s\n' \
    >"$scratch/text"
run_from "$scratch/text" tokenize "$demo"
expect_code "tokenize standard input" 0
cp "$out" "$scratch/ids"
run_from "$scratch/ids" tokenize "$demo" --decode
cmp -s "$out" "$scratch/text"
report "decode(encode(text)) is the text" $?
run_from "$scratch/ids" tokenize "$demo" --decode --json
"$JSON_GET" <"$out" >"$scratch/back"
cmp -s "$scratch/back" "$scratch/text"
report "the same through a JSON string" $?
run tokenize "$demo" -f "$scratch/text" --json
expect_same "tokenize --json of that text" "$("$JSON_GET" <"$out")" "$(wc -l <"$scratch/ids" | tr -d ' ')"
printf 'e\314\201' >"$scratch/decomposed"
run tokenize "$demo" -f "$scratch/decomposed"
cp "$out" "$scratch/ids"
run tokenize "$demo" --decode -f "$scratch/ids"
expect_same "text is brought to NFC" "$(od -An -tx1 "$out" | tr -d ' \n')" c3a9

tokenize -p "a<end_of_sentence>" --added
expect_same "tokenize --added" "$(tail -n 1 "$out")" 4094
tokenize -p "a<end_of_sentence>" --count
expect_number "marks are plain text otherwise" "$(cat "$out")" ">" 3
tokenize -p "" --count
expect_same "no text, no token" "$(cat "$out")" 0
tokenize -p "" --json
expect_same "no text, no token, as JSON" "$(cat "$out")" "[]"

printf 'ab\303\251\377cd' >"$scratch/bad"
run tokenize "$demo" -f "$scratch/bad"
expect_error "invalid UTF-8" 1 "byte 4" "0xFF"
printf 'ab\355\240\200' >"$scratch/bad"
run tokenize "$demo" -f "$scratch/bad"
expect_error "a surrogate" 1 "byte 2"
for text in x 12x -5 1.5 99999999999; do
    tokenize --decode -p "7 $text"
    expect_error "decoding '$text'" 1 "'$text'"
done
tokenize --decode -p "4096"
expect_error "decoding an id without token" 1 "4096"
tokenize -f "$scratch/none"
expect_error "missing text" 1 "$scratch/none" "No such file"
tokenize -f "$scratch"
expect_error "a folder for a text" 1 "$scratch"

# ---- inputs that fail before a device is needed ----
run perplexity "$demo" "$scratch/none"
expect_error "perplexity of a missing file" 1 "$scratch/none"
: >"$scratch/nothing"
run perplexity "$demo" "$scratch/nothing"
expect_error "perplexity of an empty file" 1 "$scratch/nothing" "no text"
run perplexity "$demo" "$scratch/bad"
expect_error "perplexity of invalid UTF-8" 1 "byte 2" "document that begins at byte 0"
run logits "$demo" --tokens "$scratch/nothing" --out "$scratch/x.npy"
expect_error "logits of no tokens" 1 "$scratch/nothing"
printf '5\n6x\n' >"$scratch/bad"
run logits "$demo" --tokens "$scratch/bad" --out "$scratch/x.npy"
expect_error "logits of something else" 1 "$scratch/bad:2" "'6x'"
[ ! -e "$scratch/x.npy" ]
report "no file is left behind" $?
if [ -c /dev/full ]; then
    last="inspect > /dev/full"
    code=0
    "$FULGUR" inspect "$demo" >/dev/full 2>"$err" || code=$?
    : >"$out"
    expect_error "a full disk" 1 "standard output" "No space left"
fi

# ---- what the README and the scripts say ----
readme=$SOURCE_DIR/README.md
count=0
while IFS= read -r line; do
    line=${line#\$ build/fulgur }
    line=${line//MODEL/$demo}
    # The shell's own quoting, as a reader would paste it.
    eval "words=($line)"
    # shellcheck disable=SC2154
    run "${words[@]}" --help
    expect_code "README: fulgur ${line%% *} accepts its options" 0
    expect_text "README: fulgur ${line%% *} is a command" "$out" "usage: fulgur ${words[0]} "
    count=$((count + 1))
done < <(grep '^\$ build/fulgur ' "$readme")
expect_same "README shows every command" "$count" 21
story=$(sed -n '/^exec .*fulgur" run /,$p' "$SOURCE_DIR/tools/story" | tr '\\\n' '  ' | grep -oE -- '--[a-z-]+ [0-9.]+' | tr '\n' ' ')
# shellcheck disable=SC2086
run run "$demo" -p x $story --help
expect_code "tools/story: the program accepts ${story:-NOTHING}" 0
[ -n "$story" ]
report "tools/story sets options" $?

# Every call of the README's example is one that samples/generate.c, which the build compiles, makes.
calls=$(sed -n '/^```c$/,/^```$/p' "$readme" | grep -oE 'ful_[a-z_]+\(' | sort -u)
[ "$(printf '%s\n' "$calls" | wc -l)" -ge 7 ]
report "README has an example in C" $?
for call in $calls; do
    expect_text "samples/generate.c calls $call)" "$SOURCE_DIR/samples/generate.c" "$call"
done
# ---- without a driver ----
# Whatever is missing of Vulkan, the processor takes its place and says so once; asked for, it is
# silent.
# Drivers of this machine are listed all the same, and what they leave behind is theirs.
LSAN_OPTIONS=${LSAN_OPTIONS:-}:detect_leaks=0 run run "$demo" -p "Once upon a time" -n 8 --temp 0 --device cpu
expect_code "--device cpu" 0
cp "$out" "$scratch/text"
# WHAT WARNINGS VARIABLE=VALUE...
without_driver() {
    local what=$1 warnings=$2
    shift 2
    last="run with $*"
    code=0
    on_driver env "$@" "$FULGUR" run "$demo" -p "Once upon a time" -n 8 --temp 0 \
        >"$out" 2>"$err" </dev/null || code=$?
    expect_code "$what" 0
    cmp -s "$out" "$scratch/text"
    report "$what: the same text" $?
    expect_same "$what: warnings" "$(grep -c 'warning: .*running on the processor' "$err")" "$warnings"
}
nowhere=$scratch/nowhere.json
mkdir "$scratch/broken"
printf '{"file_format_version": "1.0.0", "ICD": {"library_path": "%s", "api_version": "1.3.0"}}\n' \
    "$scratch/broken/libvulkan_none.so" >"$scratch/broken.json"
without_driver "no driver" 1 VK_DRIVER_FILES="$nowhere" VK_ICD_FILENAMES="$nowhere" \
    VK_ADD_DRIVER_FILES="$nowhere"
without_driver "a driver without its library" 1 VK_DRIVER_FILES="$scratch/broken.json" \
    VK_ICD_FILENAMES="$scratch/broken.json" VK_ADD_DRIVER_FILES="$scratch/broken.json"
without_driver "FULGUR_DEVICE=cpu" 0 FULGUR_DEVICE=cpu
if [ "$(uname)" = Linux ]; then
    : >"$scratch/broken/libvulkan.so.1"
    : >"$scratch/broken/libvulkan.so"
    without_driver "no loader" 1 LD_LIBRARY_PATH="$scratch/broken"
    expect_text "no loader: says so" "$err" "no Vulkan driver"
fi

finish
