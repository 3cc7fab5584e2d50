#!/usr/bin/env bash
# Has a C compiler check the bindings' sizes, offsets and constants against real
# headers: the Rust test `layouts_for_the_cross_check` says them as C
# expressions, and each becomes a static assertion.
#
# usage: cross-check.sh [HEADERS]
#   HEADERS  a folder that fetch-headers.sh made; without it, one is made in a
#            temporary folder from Debian trixie (rdma-core 56.1)
# With the headers of an older suite, what differs is listed and the status is 1;
# for bookworm (44) that must be what grew at the end, and nothing else.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
headers=${1:-}
if [[ -z $headers ]]; then
	headers=$work/headers
	"$here/fetch-headers.sh" "$headers" trixie
fi
headers=$(cd "$headers" && pwd)

cd "$here/.."
cargo test --quiet -p pmu-verbs --lib layouts_for_the_cross_check -- --nocapture |
	sed -n 's/^.*layout: //p' >"$work/lines"
count=$(wc -l <"$work/lines")
((count > 200)) || {
	echo "cross-check: the test said only $count lines" >&2
	exit 2
}
{
	printf '#include <stddef.h>\n#include <sys/socket.h>\n'
	printf '#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n'
	while IFS= read -r line; do
		printf '_Static_assert(%s, "%s");\n' "$line" "$line"
	done <"$work/lines"
} >"$work/check.c"
include=$headers/root/usr/include
if ! "${CC:-cc}" -std=gnu11 -fmax-errors=0 -fsyntax-only -I"$include" \
	-I"$include/x86_64-linux-gnu" "$work/check.c" 2>"$work/errors"; then
	sed -n 's/^.*error: //p' "$work/errors" >&2
	echo "cross-check: the bindings and rdma-core $(cat "$headers/version") differ" >&2
	exit 1
fi
echo "cross-check: $count layouts and values agree with rdma-core $(cat "$headers/version")"
