#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Each tests/core/*.c is a driver program: it includes only ztunnel/csrc/zt.h, runs the engine through real sockets and
# exits 0. This builds every driver with the engine three ways and runs it: ASan+UBSan (leaks too), TSan, valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."
limit_s=${SANITIZE_LIMIT_S:-300}
shopt -s nullglob
drivers=(tests/core/*.c)
engine=(ztunnel/csrc/*.c)
if [ ${#drivers[@]} = 0 ] || [ ${#engine[@]} = 0 ]; then
	echo "sanitize: no driver in tests/core/*.c yet"
	exit 0
fi
flags=(-std=gnu11 -g -D_GNU_SOURCE= -fno-omit-frame-pointer -Wall -Wextra -Iztunnel/csrc -Ibpf/include)
libraries=(-lssl -lcrypto -lnghttp2 -lpthread)
failed=()

build() { # <kind> <flags...>: prints nothing, fails loudly; objects in parallel
	local kind=$1
	shift
	mkdir -p "build/sanitize/$kind"
	printf '%s\0' "${engine[@]}" | xargs -0 -P "$(nproc)" -I{} sh -c \
		'out="$1/$(basename "$2" .c).o"; shift 2; exec "$@" -c "$0" -o "$out"' {} "build/sanitize/$kind" {} gcc "${flags[@]}" "$@"
	local driver
	for driver in "${drivers[@]}"; do
		gcc "${flags[@]}" "$@" "$driver" "build/sanitize/$kind"/*.o "${libraries[@]}" -o "build/sanitize/$kind/$(basename "$driver" .c)"
	done
}

run() { # <kind> <command prefix...>
	local kind=$1 driver name
	shift
	for driver in "${drivers[@]}"; do
		name=$(basename "$driver" .c)
		echo "-- $kind: $name"
		if ! timeout -k 10 "$limit_s" "$@" "build/sanitize/$kind/$name" >"build/sanitize/$kind/$name.log" 2>&1; then
			failed+=("$kind/$name")
			tail -60 "build/sanitize/$kind/$name.log"
		fi
	done
}

build asan -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined
build tsan -O1 -fsanitize=thread
build valgrind -O1
export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
run asan
# TSan's fixed shadow addresses clash with high-entropy address randomisation on new kernels.
run tsan setarch "$(uname -m)" -R
if command -v valgrind >/dev/null; then
	# QANAT_SMALL: drivers run fewer rounds, valgrind is 20 to 50 times slower.
	QANAT_SMALL=1 run valgrind valgrind --quiet --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite --fair-sched=yes
else
	echo "-- valgrind: not installed, left out"
fi
if [ ${#failed[@]} -gt 0 ]; then
	echo "sanitize: FAILED: ${failed[*]}"
	exit 1
fi
echo "sanitize: ${#drivers[@]} driver(s) clean under ASan+UBSan, TSan and valgrind"
