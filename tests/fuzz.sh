#!/usr/bin/env bash
# Fuzzes the parsers of tests/fuzz with libFuzzer.
#
#   fuzz.sh MINUTES [TARGET…]   all targets, or these; each gets an equal share of the time on one core
#
# cargo-fuzz is compiled once into the cache. What libFuzzer has learned stays in target/fuzz/corpus, and the next run
# goes on from there. An input that fails is left in target/fuzz/failed/TARGET, and its bytes are printed: it belongs
# into a test of the parser.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.13.2
tools=${XDG_CACHE_HOME:-$HOME/.cache}/hearth/tools
cargo=${CARGO:-cargo}
directory=$PWD/target/fuzz
# The longest input in bytes, and the longest time for one in seconds: a parser that needs more is wrong.
bytes_max=65536
seconds_max=5

fail() {
    echo "fuzz: $*" >&2
    exit 2
}

case ${1:-} in
'' | *[!0-9]* | 0) fail "say for how many minutes: make fuzz MINUTES=10" ;;
esac
minutes=$1
shift
[ -x "$tools/bin/cargo-fuzz" ] || "$cargo" install --quiet --locked --root "$tools" "cargo-fuzz@$version"
known=$("$cargo" run --quiet --release --locked -p hearth-fuzz --example seeds -- "$directory/corpus")
[ $# -gt 0 ] || set -- $known
for target in "$@"; do
    grep -qxF -- "$target" <<<"$known" || fail "there is no target $target; there are: ${known//$'\n'/, }"
done
# Parsers without `unsafe` need no address sanitizer, and without one the stable compiler does.
options=(--fuzz-dir tests/fuzz --target-dir "$directory/build" --sanitizer none --release --features libfuzzer)
PATH=$tools/bin:$PATH "$cargo" fuzz build "${options[@]}"
seconds=$((minutes * 60 / $#))
failed=0
for target in "$@"; do
    mkdir -p "$directory/failed/$target"
    echo "fuzz: $target for $seconds seconds"
    program=$(find "$directory/build" -path "*/release/$target" -type f | head -1)
    if ! "$program" -max_total_time="$seconds" -max_len="$bytes_max" -timeout="$seconds_max" -print_final_stats=1 \
        -verbosity=0 -artifact_prefix="$directory/failed/$target/" "$directory/corpus/$target" \
        >"$directory/$target.log" 2>&1; then
        failed=1
        echo "fuzz: $target FAILED: $directory/$target.log" >&2
        tail -30 "$directory/$target.log" >&2
    fi
    sed -n 's/^stat::number_of_executed_units: */fuzz: executed: /p; s/^stat::peak_rss_mb: */fuzz: most memory, MiB: /p' \
        "$directory/$target.log"
    echo "fuzz: inputs that reach more code: $(find "$directory/corpus/$target" -type f | wc -l)"
done
exit $failed
