#!/bin/sh
# nginx with the given configuration and a prefix of its own, removed when it ends.
set -eu
conf=$(realpath "$1")
prefix=$(mktemp -d "${TMPDIR:-/tmp}/qanat-nginx.XXXXXX")
mkdir "$prefix/tmp"
nginx -p "$prefix" -e stderr -c "$conf" &
child=$!
trap 'kill "$child" 2>/dev/null || true' INT TERM
status=0
wait "$child" || status=$?
# A trapped signal ends the first wait early.
wait "$child" 2>/dev/null || true
rm -rf "$prefix"
exit "$status"
