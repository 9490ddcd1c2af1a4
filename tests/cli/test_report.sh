#!/bin/bash
# fulgur bench report and bench compare without a device: pages from a report's JSON, files that are
# none, what the system tells about clocks.
. "$(dirname "$0")/common.sh"
: "${REPORT_CHECK:?}" "${SENSORS_PRINT:?}"
fixture=$SOURCE_DIR/tests/cli/report.json
page=$scratch/page.html

# ---- a page shows what the JSON holds ----
run bench report --from "$fixture" --out "$page" --json "$scratch/again.json"
expect_code "report --from" 0
expect_text "report --from names its files" "$out" "$page" "$scratch/again.json"
cmp -s "$fixture" "$scratch/again.json"
report "the JSON comes out as it went in" $?
checked=$("$REPORT_CHECK" "$page" "$fixture")
report "the page's numbers, dots and curves are the JSON's" $? "$checked"
expect_same "how much of the page was checked" "$checked" "258 numbers, 20 dots, 62 points"
expect_same "one script ends, the JSON's" "$(grep -c '</script>' "$page")" 1
expect_text "the device's name is text, not markup" "$page" \
    '<h1>Test &lt;b&gt;device&lt;/b&gt; &amp; &quot;friends&quot; &lt;/script&gt;'
expect_text "the page says what is wrong" "$page" "WRONG RESULTS" "FAILED: wrong" "-coopmat" \
    "left out: no kernel here takes halves" "not available on this system" "prefers-color-scheme"
# The check itself: one figure, one dot, one point of a curve, the JSON.
spoil() { # WHAT SED
    sed "$2" "$page" >"$scratch/spoilt.html"
    ! cmp -s "$page" "$scratch/spoilt.html" && ! "$REPORT_CHECK" "$scratch/spoilt.html" "$fixture" >"$scratch/why"
    report "a spoilt page is noticed: $1" $?
}
spoil "a figure" 's/\(data-at="\/ops\/results\/0\/us">\)1206.5/\11206.4/'
spoil "a dot" '0,/<circle class="f0" cx="/s//&1/'
spoil "a curve" 's/d="M\([0-9.]*\) /d="M1\1 /'
spoil "the JSON" 's/"t_s": 1\./"t_s": 1.5/'
spoil "something to fetch" 's/<main>/<main><img src="x.png">/'

# A report without most of its parts is still a page.
cat >"$scratch/bare.json" <<'JSON'
{"format": "fulgur bench report", "format_version": 1, "device": {"name": "D", "driver": "E", "rates": [{}, 5]},
 "ops": {"results": [{}, null, {"op": 3, "flop_per_byte": -1, "tflop_per_s": "x"}]}, "model": {"tests": [[]]},
 "sustained": {"samples": [{"t_s": 0, "tokens_per_s": 0}]}, "correctness": {}, "versions": {}}
JSON
run bench report --from "$scratch/bare.json" --out "$page"
expect_code "a report without most of its parts" 0
"$REPORT_CHECK" "$page" "$scratch/bare.json" >"$scratch/why"
report "its page" $?
last="bench report --from bare.json"
! sed '/<script/,$d' "$page" | grep -qiE '[^a-z](nan|inf)[^a-z]'
report "its page has no numbers that are none" $?

# ---- files that are no reports ----
bad_report() { # WHAT TEXT...: $scratch/bad.json is refused and named
    local what=$1
    shift
    run bench report --from "$scratch/bad.json" --out "$scratch/none.html"
    expect_error "report from $what" 1 "$scratch/bad.json" "$@"
    [ ! -e "$scratch/none.html" ] && [ ! -e "$scratch/none.html.part" ]
    report "report from $what: no page" $?
    run bench compare "$fixture" "$scratch/bad.json"
    expect_error "compare with $what" 1 "$scratch/bad.json" "$@"
}
head -c 3000 "$fixture" >"$scratch/bad.json"
bad_report "half a file" "no JSON"
: >"$scratch/bad.json"
bad_report "an empty file" "no JSON"
printf '[1, 2]' >"$scratch/bad.json"
bad_report "a list" "no object"
printf '{"a": 1, "a": 2}' >"$scratch/bad.json"
bad_report "a key twice" "duplicate"
sed 's/"format_version": 1/"format_version": 2/' "$fixture" >"$scratch/bad.json"
bad_report "a newer report" "format_version" "2"
sed 's/"fulgur bench report"/"another"/' "$fixture" >"$scratch/bad.json"
bad_report "another program's JSON" "'format'"
sed 's/"results": \[/"others": [/' "$fixture" >"$scratch/bad.json"
bad_report "no results" "/ops/results"
sed 's/"rates": \[/"rates": 7, "x": [/' "$fixture" >"$scratch/bad.json"
bad_report "rates that are no list" "/device/rates"
rm "$scratch/bad.json"
bad_report "a missing file" "No such file"

run bench report --from "$fixture" --out "$scratch/none/page.html"
expect_error "a page in a missing folder" 1 "$scratch/none/page.html" "No such file"
mkdir "$scratch/folder"
run bench report --from "$fixture" --out "$scratch/folder"
expect_error "a page in a folder's place" 1 "$scratch/folder" "directory"
[ ! -e "$scratch/folder.part" ]
report "nothing is left beside it" $?
run bench report --out "$scratch/none/page.html"
expect_error "a page in a missing folder is found before anything is measured" 1 "$scratch/none/page.html"
last="bench report (into a missing folder)"
! grep -q measuring "$err"
report "nothing was measured for it" $?
run bench report --from "$fixture" --preset tiny
expect_error "report from a file and of a model" 2 "usage: fulgur bench report"
run bench report extra
expect_error "report takes no argument" 2 "usage: fulgur bench report"
run bench report --seconds many
expect_error "report for a time that is none" 2 "--seconds"

# ---- compare ----
ratio() { # WHAT: the last column of its line
    grep -F "$1" "$out" | awk '{ print $NF }'
}
sed -e 's/"driver": "llvmpipe Mesa 26[^"]*"/"driver": "another driver"/' -e 's/"shape": "tiny"/"shape": "mid"/' \
    -e '0,/"us": 1206.5/s//"us": 603.25/' -e '0,/"tokens_per_s": 782.27/s//"tokens_per_s": 1564.54/' \
    -e '0,/"process_ms": 752.95/s//"process_ms": 1505.9/' "$fixture" >"$scratch/other.json"
run bench compare "$fixture" "$scratch/other.json" --html "$scratch/compare.html" --json "$scratch/compare.json"
expect_code "compare" 0
expect_text "compare says what differs" "$out" "differs: driver: A llvmpipe" "B another driver" \
    "differs: shape of ops: A tiny; B mid" "wrong result, no figure: A: sample, 1 rows, of 1024"
expect_same "half the time is twice as fast" "$(ratio "lightning prefill, 64 rows")" 2.000x
expect_same "twice the rate is twice as fast" "$(ratio "prefill of 128 at depth 0")" 2.000x
expect_same "twice the time is half as fast" "$(ratio "first token, filled pipeline cache")" 0.500x
expect_same "what is the same" "$(ratio "lightning decode, 1 rows")" 1.000x
last="compare (differences)"
! grep -q "differs: device" "$out"
report "compare does not say more than differs" $?
"$REPORT_CHECK" "$scratch/compare.html" "$scratch/compare.json" >"$scratch/why"
report "the page of compare shows its JSON" $? "$(cat "$scratch/why")"
run bench compare "$fixture" "$fixture" "$scratch/other.json"
expect_code "compare of three" 0
expect_text "compare of three" "$out" "B to A" "C to A" "C  $scratch/other.json"
run bench compare "$fixture" "$fixture"
last="compare with itself"
! grep -q differs "$out"
report "a file does not differ from itself" $?
expect_text "compare with itself: means" "$out" "ops (10) 1;"

cat >"$scratch/ops.json" <<'JSON'
{"device": "D", "driver": "E", "shape": "tiny", "weights": "f16", "arithmetic": "f32", "results": [
  {"op": "lightning prefill", "size": "8 heads of 64", "rows": 64, "us": 402.166, "least": 1, "most": 2, "gb_per_s": 1.00, "tflop_per_s": 0.01, "error": 1e-07, "limit": 1e-05},
  {"op": "moe", "size": "x", "rows": 64, "failed": "wrong"}]}
JSON
printf '%s\n' '{"device": "D", "driver": "E", "model": "some/folder/demo", "weights": "f16", "tests": [' \
    '{"kind": "prefill", "tokens": 128, "depth": 0, "ok": true, "tokens_per_s": 391.135}]}' >"$scratch/model.json"
printf '%s\n' '{"device": "D", "driver": "E", "rates": [{"what": "copy", "unit": "bytes/s", "median": 2.5720e9}]}' >"$scratch/device.json"
run bench compare "$fixture" "$scratch/ops.json" "$scratch/model.json" "$scratch/device.json"
expect_code "compare with bench ops, bench model and bench device" 0
expect_text "compare with bench ops: what failed" "$out" "no figure: B: moe, 64 rows, x"
expect_number "bench ops: three times as fast" "$(grep -F "lightning prefill, 64 rows" "$out" | grep -oE '[0-9.]+x' | tr -d x)" "==" 3
expect_number "bench model: half as fast" "$(grep -F "prefill of 128 at depth 0" "$out" | grep -oE '[0-9.]+x' | tr -d x)" "==" 0.5
expect_number "bench device in other units" "$(grep -E '^copy ' "$out" | grep -oE '[0-9.]+x' | tr -d x)" "==" 2
bad_figure() { # WHAT JSON TEXT...
    local what=$1
    printf '%s' "$2" >"$scratch/bad.json"
    shift 2
    run bench compare "$fixture" "$scratch/bad.json"
    expect_error "compare with $what" 1 "$scratch/bad.json" "$@"
}
bad_figure "an object of something else" '{"x": 1}' "'results', 'tests' or 'rates'"
bad_figure "an op without a time" '{"results": [{"op": "a", "size": "b", "rows": 1}]}' "/results/0/us"
bad_figure "an op whose time is text" '{"results": [{"op": "a", "size": "b", "rows": 1, "us": "5"}]}' "/results/0/us"
bad_figure "a test without a rate" '{"tests": [{"kind": "decode", "tokens": 1, "depth": 0}]}' "/tests/0/tokens_per_s"
bad_figure "a rate without a unit" '{"rates": [{"what": "copy", "median": 1}]}' "/rates/0/unit"
bad_figure "a number for a rate" '{"rates": [3]}' "/rates/0/what"
run bench compare "$fixture"
expect_error "compare of one file" 2 "usage: fulgur bench compare"
run bench compare "$fixture" "$fixture" --html "$scratch/none/x.html"
expect_code "compare into a missing folder" 1
expect_text "compare into a missing folder: says so" "$err" "$scratch/none/x.html" "No such file"

# ---- clocks and temperatures ----
put() { # FILE TEXT
    mkdir -p "$(dirname "$scratch/sys/$1")"
    printf '%s\n' "$2" >"$scratch/sys/$1"
}
sensors() { # WHAT WANTED KIND [PCI]
    local what=$1 wanted=$2 got
    shift 2
    got=$(FULGUR_BENCH_SYSFS=$scratch/sys "$SENSORS_PRINT" "$@")
    expect_same "sensors: $what" "$got" "$wanted"
}
keys() {
    printf 'device_clock_mhz=%s device_temperature_c=%s cpu_clock_mhz=%s cpu_temperature_c=%s' "$@"
}
discrete=2 integrated=1 cpu=4
sensors "nothing there" "$(keys none none none none)" $discrete 0000:65:00.0
put devices/system/cpu/cpu0/cpufreq/scaling_cur_freq 3000000
put devices/system/cpu/cpu1/cpufreq/scaling_cur_freq 1000000
put devices/system/cpu/cpufreq/policy0/scaling_cur_freq 5
put class/thermal/thermal_zone0/temp 41000
put class/thermal/thermal_zone1/temp 52500
put class/thermal/thermal_zone2/temp -274000
put class/thermal/thermal_zone3/temp broken
sensors "a processor" "$(keys none none 2000 52.5)" $cpu
put bus/pci/devices/0000:65:00.0/hwmon/hwmon3/temp1_input 61000
put bus/pci/devices/0000:65:00.0/hwmon/hwmon3/freq1_input 2450000000
put bus/pci/devices/0000:66:00.0/hwmon/hwmon4/temp1_input 99000
sensors "an AMD card among others" "$(keys 2450 61 2000 52.5)" $discrete 0000:65:00.0
sensors "a card that the system does not know" "$(keys none none 2000 52.5)" $discrete 0000:01:00.0
put bus/pci/devices/0000:00:02.0/drm/card1/gt_act_freq_mhz 1150
sensors "Intel's i915" "$(keys 1150 none 2000 52.5)" $integrated 0000:00:02.0
put bus/pci/devices/0000:03:00.0/tile0/gt0/freq0/act_freq 2400
put bus/pci/devices/0000:03:00.0/hwmon/hwmon5/temp1_input 48000
sensors "Intel's xe" "$(keys 2400 48 2000 52.5)" $discrete 0000:03:00.0
put class/kgsl/kgsl-3d0/gpuclk 587000000
put class/kgsl/kgsl-3d0/temp 39000
sensors "a phone" "$(keys 587 39 2000 52.5)" $integrated
finish
