#!/bin/sh
# Builds every target of core/fuzz with coverage counters, with the stable toolchain, and runs each for a while, as many at
# once as there are processors:
#
#   testdata/fuzz.sh SECONDS [TARGET...]
#
# Seeds: core/fuzz/seeds/TARGET. What a run finds interesting is kept in target/fuzz/corpus/TARGET; an input that crashes
# a target lands in target/fuzz/artifacts/TARGET and this script fails.
set -eu
cd "$(dirname "$0")/.."
seconds=$1
shift
[ $# -gt 0 ] || set -- $(cd core/fuzz/fuzz_targets && ls | sed -n 's/\.rs$//p')
[ $# -gt 0 ] || { echo 'fuzz: there is no target'; exit 0; }
host=$(rustc -vV | sed -n 's/^host: //p')

# What cargo-fuzz sets, except for the sanitizer, which needs a nightly toolchain; with --target it reaches no build script.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --release --manifest-path core/fuzz/Cargo.toml --target "$host" --target-dir target/fuzz
# Those that run side by side say what they have to say in one piece.
fuzz='corpus=target/fuzz/corpus/$2 artifacts=target/fuzz/artifacts/$2 status=0
mkdir -p "$corpus" "$artifacts" "core/fuzz/seeds/$2"
said=$("$0/$2" -seed=1 -max_total_time="$1" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 \
    -artifact_prefix="$artifacts/" "$corpus" "core/fuzz/seeds/$2" 2>&1) || status=$?
printf "fuzz: %s for %s s\n%s\n" "$2" "$1" "$said" | grep -E "^fuzz:|stat::|ERROR|SUMMARY|panicked|Test unit written"
if [ "$status" != 0 ] || [ -n "$(ls "$artifacts")" ]; then
    echo "fuzz: $2 failed with status $status on $(ls "$artifacts")" >&2
    exit 1
fi'
printf '%s\n' "$@" | xargs -P "$(nproc)" -n 1 sh -euc "$fuzz" "target/fuzz/$host/release" "$seconds"
