# shellcheck shell=bash
# Steps of scripts/lab test that run in one guest: `bash guest-steps.bash STEP`. Each makes its own unit.
set -euo pipefail
# shellcheck source=scripts/lab.d/site.bash
. "$(dirname "${BASH_SOURCE[0]}")/site.bash"

# Whatever a step leaves running must not disturb the next.
trap '[[ ! -e $SITE/unit.pid ]] || kill -KILL "$(<"$SITE/unit.pid")" 2>/dev/null || true' EXIT

expect_refusal() { # WORDS COMMAND...
	local words=$1 said
	shift
	if said=$("$@" 2>&1); then
		echo "not refused: $*" >&2
		return 1
	fi
	[[ $said == *"$words"* ]] || { printf 'refused, but not with "%s": %s\n' "$words" "$said" >&2; return 1; }
	echo "refused: $said"
}

few() { echo --steps 12 --commits 4; }

# Writes a little with one method, and compares with what is recovered.
write_and_check() { # METHOD
	# shellcheck disable=SC2046 # several words
	site_witness primary write --provider verbs --persistence "$1" $(few) >"$SITE/$1.jsonl"
	if grep '"method"' "$SITE/$1.jsonl" | grep -v "\"method\":\"$1\""; then
		echo "another method than $1" >&2
		return 1
	fi
	written+=("$SITE/$1.jsonl")
	site_witness backup check --receipts "${written[@]}"
}

# B1: each method, forced, on a unit that has them all.
step_methods() {
	local method written=()
	site_make verbs devdax "$PMU_LAB_DAX0" "" durable "inbound_writes_reach_medium = true"
	for method in native-flush server-persist read-after-write; do write_and_check "$method"; done
}

# B1: what can't hold its promise is refused, by name.
step_refusals() {
	local write=(site_witness primary write --steps 1 --commits 1 --patience-s 15) written=()
	site_make verbs devdax "$PMU_LAB_DAX0" "" durable
	echo "read-after-write without attestation:"
	expect_refusal read-after-write "${write[@]}" --provider verbs --persistence read-after-write
	echo "volatile on a region that needs durable:"
	expect_refusal volatile "${write[@]}" --provider verbs --persistence volatile
	site_stop
	echo "a volatile pool: its region must allow it, and gets volatile"
	site_configure verbs hugetlbfs /dev/hugepages/pool
	site_pool hugetlbfs /dev/hugepages/pool 64MiB
	site_start
	expect_refusal durab site_regions durable 4MiB 1MiB 3
	site_regions volatile 4MiB 1MiB 3
	echo "native-flush on volatile memory:"
	expect_refusal native-flush "${write[@]}" --provider verbs --persistence native-flush
	write_and_check volatile
	site_stop
	echo "verbs on a pool in a file:"
	# The guest's only disk is its second memory: for a while without DAX.
	umount "$PMU_LAB_FSDAX1"
	mkdir -p /tmp/disk
	mount -t ext4 -o dax=never /dev/pmem1 /tmp/disk
	site_configure verbs file /tmp/disk/pool
	site_pool file /tmp/disk/pool 64MiB
	if (site_start) 2>"$SITE/file.err"; then
		site_regions durable 4MiB 1MiB 3
		expect_refusal verbs "${write[@]}" --provider verbs
		site_stop
	else
		grep -q -i -e verbs -e file "$SITE/file.err" "$SITE/unit.log"
		echo "refused: $(tail -n 2 "$SITE/file.err")"
	fi
	rm -f /dev/hugepages/pool /tmp/disk/pool
	umount /tmp/disk
	mount -t ext4 -o dax=always /dev/pmem1 "$PMU_LAB_FSDAX1"
}

# P1: four work requests and one completion for a durable append, and no unit's processor.
step_one_sided() {
	site_make verbs devdax "$PMU_LAB_DAX0" "" durable
	site_witness primary prove-one-sided --provider verbs --persistence native-flush --unit-pid "$(<"$SITE/unit.pid")"
}

wait_for_receipts() { # FILE
	local tries=300
	until (($(grep -c '"kind":"set"' "$1") >= 3 && $(grep -c '"kind":"log"' "$1") >= 3)); do
		((tries-- > 0)) || { echo "no receipts" >&2; return 1; }
		sleep 0.2
	done
}

# B3, P4, P14: a primary that was thought dead wakes up after the takeover, and not one byte of it lands.
step_zombie() {
	local zombie status=0
	site_make verbs devdax "$PMU_LAB_DAX0" "" durable
	: >"$SITE/zombie.jsonl"
	SITE_EXEC='exec' site_witness primary write --provider verbs >"$SITE/zombie.jsonl" 2>"$SITE/zombie.err" &
	zombie=$!
	wait_for_receipts "$SITE/zombie.jsonl"
	kill -STOP "$zombie"
	site_witness backup take-over --provider verbs --receipts "$SITE/zombie.jsonl" --steps 10 --commits 3 >"$SITE/heir.jsonl"
	grep took-over "$SITE/heir.jsonl"
	kill -CONT "$zombie"
	wait "$zombie" || status=$?
	tail -n 1 "$SITE/zombie.err"
	((status == 4)) || { echo "the old primary ended with $status, not fenced (4)" >&2; return 1; }
	site_witness backup check --receipts "$SITE/zombie.jsonl" "$SITE/heir.jsonl"
}

# P3: this host has the unit, another one the primary.
step_host_unit() {
	site_make verbs devdax "$PMU_LAB_DAX0" "" durable
	trap - EXIT
}

step_host_backup() {
	trap - EXIT
	site_witness backup take-over --provider verbs --follow-until "$SITE/failed" --receipts "$SITE/primary.jsonl" --steps 10 --commits 3
}

step_host_stop() { site_stop; }

step_host_check() {
	trap - EXIT
	site_witness backup check --receipts "$SITE/primary.jsonl" "$SITE/heir.jsonl"
}

"step_$1"
