#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs every linter, says which failed; one finding does not hide another.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
failed=()
step() { # <name> <command...>
	local name=$1
	shift
	printf -- '-- %s\n' "$name"
	"$@" || failed+=("$name")
}
# Top-level packages that exist, tests and tools.
python_paths() { for path in mesh nodeagent ztunnel controlplane daemonset perf tests tools cffi_build.py; do [ -e "$path" ] && printf '%s ' "$path"; done; }
clang_format() { # the files, not every line of them: `make format` mends all
	local file found=0
	while IFS= read -r file; do
		clang-format --dry-run --Werror "$file" 2>/dev/null || {
			echo "$file: not in the project's format (make format)"
			found=1
		}
	done < <(git ls-files --cached -- '*.c' '*.h')
	return $found
}
types() {
	local -a paths
	read -ra paths <<<"$(python_paths)"
	$bin/mypy "${paths[@]}"
}
doors() { # import-linter sees no extension modules: the C engine and libbpf have one door each
	local strays
	strays=$(git grep -nE '(import|from) .*\b(_zt|_libbpf)\b' -- '*.py' ':!ztunnel/dataplane/_native.py' ':!nodeagent/bpf/libbpf.py' ':!tests') || return 0
	printf '%s\n' "$strays" "only ztunnel/dataplane/_native.py and nodeagent/bpf/libbpf.py may import these"
	return 1
}
generated() { # the messages in git are those of the .proto files
	local out
	out=$(mktemp -d)
	$bin/python -m grpc_tools.protoc -I. --python_out="$out" --pyi_out="$out" mesh/protocol/*.proto &&
		for file in "$out"/mesh/protocol/*; do
			cmp -s "$file" "mesh/protocol/${file##*/}" || {
				echo "mesh/protocol/${file##*/} is older than its .proto: make proto"
				rm -r "$out"
				return 1
			}
		done
	rm -r "$out"
}

step ruff $bin/ruff check --quiet .
step "ruff format" $bin/ruff format --check --quiet .
step mypy types
step "import contracts" $bin/lint-imports
step "one door to C" doors
step "generated messages" generated
if command -v clang-format >/dev/null; then
	step clang-format clang_format
else
	echo "-- clang-format: not installed, left out"
fi
if [ ${#failed[@]} -gt 0 ]; then
	printf 'lint: FAILED in: %s\n' "${failed[*]}"
	exit 1
fi
echo "lint: clean"
