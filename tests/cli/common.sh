# Sourced by the tests of the fulgur program. From the environment: FULGUR (the program), JSON_GET,
# NPY_COMPARE (programs), SOURCE_DIR; optional: DRIVER (see tools/with-driver; default env).
set -u
: "${FULGUR:?}" "${JSON_GET:?}" "${SOURCE_DIR:?}"
DRIVER=${DRIVER:-env}
demo=$SOURCE_DIR/samples/demo-model
golden=$SOURCE_DIR/tests/golden
scratch=$(mktemp -d "${TMPDIR:-/tmp}/fulgur-cli.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
out=$scratch/out err=$scratch/err
checks=0 failures=0

# The tests share nothing with the user's pipeline cache.
export XDG_CACHE_HOME=$scratch/cache
mkdir -p "$XDG_CACHE_HOME"
ran_file=${FULGUR_TEST_RAN:-}
unset FULGUR_TEST_RAN FULGUR_CAPS FULGUR_FAULT

on_driver() {
    "$SOURCE_DIR/tools/with-driver" "$DRIVER" "$@"
}

# WHAT STATUS [WHY]: notes one check.
report() {
    checks=$((checks + 1))
    if [ "$2" = 0 ]; then
        printf 'ok   %s\n' "$1"
    else
        failures=$((failures + 1))
        printf 'FAIL %s%s\n' "$1" "${3:+: $3}"
        printf '  last command: fulgur %s\n' "${last:-}"
        [ -s "$err" ] && sed 's/^/  stderr: /' "$err" | head -n 5
    fi
}

# Runs the program with standard output in $out, standard error in $err, its exit status in $code.
run() {
    last="$*"
    code=0
    on_driver "$FULGUR" "$@" >"$out" 2>"$err" </dev/null || code=$?
}

# The same with standard input from a file.
run_from() {
    local input=$1
    shift
    last="$* <$input"
    code=0
    on_driver "$FULGUR" "$@" >"$out" 2>"$err" <"$input" || code=$?
}

# WHAT CODE
expect_code() {
    [ "$code" = "$2" ]
    report "$1" $? "exit status $code instead of $2"
}

# WHAT FILE TEXT...: the file holds each of the texts.
expect_text() {
    local what=$1 file=$2 text missing=""
    shift 2
    for text in "$@"; do
        grep -qF -e "$text" "$file" || missing="$missing '$text'"
    done
    [ -z "$missing" ]
    report "$what" $? "without$missing"
}

# WHAT A B: two words are the same.
expect_same() {
    [ "$2" = "$3" ]
    report "$1" $? "'$2' instead of '$3'"
}

# WHAT CODE TEXT...: the last command failed with CODE, wrote nothing to standard output and named
# each TEXT on standard error.
expect_error() {
    local what=$1 wanted=$2
    shift 2
    expect_code "$what" "$wanted"
    [ ! -s "$out" ]
    report "$what: nothing on standard output" $?
    expect_text "$what: says what is wrong" "$err" "$@"
}

# WHAT A OPERATOR B: compares numbers, exponents allowed.
expect_number() {
    awk -v a="$2" -v b="$4" "BEGIN { exit !(a + 0 == a && a + 0 $3 b + 0) }"
    report "$1 ($2)" $? "not $3 $4"
}

finish() {
    printf '%d checks, %d failed\n' "$checks" "$failures"
    [ -z "$ran_file" ] || [ -z "${RAN_AS:-}" ] || printf '%s %s\n' "$DRIVER" "$RAN_AS" >>"$ran_file"
    [ "$failures" = 0 ] && [ "$checks" -gt 0 ]
    exit $?
}
