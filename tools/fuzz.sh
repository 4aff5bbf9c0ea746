#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tools/fuzz.sh [seconds]: builds every tests/fuzz/fuzz_*.c with the engine under libFuzzer, ASan and UBSan, and runs
# each for that long; then the targets of tests/fuzz/objects.py. Seeds: tests/fuzz/corpus/<name>/. Findings:
# build/fuzz/<name>/crash-*, output: build/fuzz/<name>.log.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-20}
shopt -s nullglob
fuzzers=(tests/fuzz/fuzz_*.c)
engine=(ztunnel/csrc/*.c)
if ! echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n); int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { (void)d; (void)n; return 0; }' |
	clang -x c -fsanitize=fuzzer,address - -o /dev/null 2>/dev/null; then
	echo "fuzz: clang has no libFuzzer here (package libclang-rt-<version>-dev): C is left out"
	fuzzers=() engine=()
fi
mkdir -p build/fuzz/objects
flags=(-std=gnu11 -O1 -g -D_GNU_SOURCE= -fno-omit-frame-pointer -Iztunnel/csrc -Ibpf/include)
flags+=(-fsanitize=address,undefined -fno-sanitize-recover=undefined)
for source in "${engine[@]}"; do # the engine once, for all fuzzers
	object=build/fuzz/objects/$(basename "$source" .c).o
	[ "$object" -nt "$source" ] && [ -z "$(find ztunnel/csrc bpf/include -name '*.h' -newer "$object" -print -quit)" ] ||
		clang "${flags[@]}" -fsanitize=fuzzer-no-link -c "$source" -o "$object"
done
failed=0
report() { # <name> <state of its run>
	if [ "$2" != 0 ]; then
		failed=$((failed + 1))
		tail -40 "build/fuzz/$1.log"
	else
		grep -E 'stat::(number_of_executed_units|peak_rss_mb)' "build/fuzz/$1.log" || true
	fi
}
for source in "${fuzzers[@]}"; do
	name=$(basename "$source" .c)
	mkdir -p "build/fuzz/$name"
	seeds="tests/fuzz/corpus/${name#fuzz_}"
	clang "${flags[@]}" -fsanitize=fuzzer "$source" build/fuzz/objects/*.o -lssl -lcrypto -lnghttp2 -lpthread -o "build/fuzz/$name/$name"
	echo "-- $name for $seconds s"
	state=0
	timeout -k 10 $((seconds + 60)) "build/fuzz/$name/$name" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 \
		-print_final_stats=1 -artifact_prefix="build/fuzz/$name/" "build/fuzz/$name" $([ -d "$seeds" ] && echo "$seeds") \
		>"build/fuzz/$name.log" 2>&1 || state=$?
	report "$name" "$state"
done
objects=(engine egress text)
for name in "${objects[@]}"; do
	mkdir -p "build/fuzz/$name"
	echo "-- objects: $name for $seconds s"
	state=0
	timeout -k 10 $((seconds + 60)) .venv/bin/python -m tests.fuzz.objects "$name" "$seconds" "build/fuzz/$name" \
		>"build/fuzz/$name.log" 2>&1 || state=$?
	report "$name" "$state"
done
count=$((${#fuzzers[@]} + ${#objects[@]}))
[ "$failed" = 0 ] || { echo "fuzz: $failed of $count FAILED"; exit 1; }
echo "fuzz: $count fuzzers, no finding"
