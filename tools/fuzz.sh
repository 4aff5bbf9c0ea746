#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tools/fuzz.sh [seconds]: builds every tests/fuzz/fuzz_*.c with the engine under libFuzzer, ASan and UBSan, and runs
# each for that long. Seeds: tests/fuzz/corpus/<name>/. Findings: build/fuzz/<name>/crash-*.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-20}
shopt -s nullglob
fuzzers=(tests/fuzz/fuzz_*.c)
engine=(ztunnel/csrc/*.c)
if ! echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n); int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { (void)d; (void)n; return 0; }' |
	clang -x c -fsanitize=fuzzer,address - -o /dev/null 2>/dev/null; then
	echo "fuzz: clang has no libFuzzer here (package libclang-rt-<version>-dev): left out"
	exit 0
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
for source in "${fuzzers[@]}"; do
	name=$(basename "$source" .c)
	mkdir -p "build/fuzz/$name"
	seeds="tests/fuzz/corpus/${name#fuzz_}"
	clang "${flags[@]}" -fsanitize=fuzzer "$source" build/fuzz/objects/*.o -lssl -lcrypto -lnghttp2 -lpthread -o "build/fuzz/$name/$name"
	echo "-- $name for $seconds s"
	if ! timeout -k 10 $((seconds + 60)) "build/fuzz/$name/$name" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 \
		-print_final_stats=1 -artifact_prefix="build/fuzz/$name/" "build/fuzz/$name" $([ -d "$seeds" ] && echo "$seeds") \
		>"build/fuzz/$name.log" 2>&1; then
		failed=$((failed + 1))
		tail -40 "build/fuzz/$name.log"
	else
		grep -E 'stat::(number_of_executed_units|peak_rss_mb)' "build/fuzz/$name.log" || true
	fi
done
[ "$failed" = 0 ] || { echo "fuzz: $failed of ${#fuzzers[@]} FAILED"; exit 1; }
echo "fuzz: ${#fuzzers[@]} fuzzers, no finding"
