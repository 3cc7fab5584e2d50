# shellcheck shell=bash
# Steps of scripts/lab test with an unmodified redis-server: `bash criu.bash STEP`, the unit and the restart on one host, redis on another.
set -euo pipefail
# shellcheck source=scripts/lab.d/site.bash
. "$(dirname "${BASH_SOURCE[0]}")/site.bash"

readonly PORT=6400 KEYS=100000
# A number that no process of the other host has: a process comes back with its own.
readonly LAST_PID=20000
readonly MODULES=(nf_tables tun unix_diag inet_diag tcp_diag udp_diag netlink_diag af_packet_diag)

redis() { redis-cli -p "$PORT" "$@"; }

client() { # PRINCIPAL ARGUMENT...
	local principal=$1
	shift
	PMU_UNIT=$(site_address):7400 PMU_IDENTITY=$SITE/$principal pmu --timeout 60s --provider verbs --json "$@"
}

expect() { # WANTED FOUND
	[[ $2 = "$1" ]] || { echo "criu: expected '$1', and there is '$2'" >&2; exit 1; }
}

field() { jq -r "$2" <<<"$1"; }

step_unit() {
	SITE_CAPACITY_BYTES=64MiB site_make verbs devdax "$PMU_LAB_DAX0" "" durable
}

start_redis() {
	local tries=300
	modprobe -a "${MODULES[@]}"
	echo "$LAST_PID" >/proc/sys/kernel/ns_last_pid
	(cd / && exec setsid redis-server --port "$PORT" --save '' --appendonly no --dir / </dev/null >/dev/null 2>&1) &
	until redis PING 2>/dev/null | grep -q PONG; do
		((tries-- > 0)) || { echo "redis-server does not answer" >&2; exit 1; }
		sleep 0.1
	done
	seq 0 $((KEYS - 1)) | sed 's/.*/SET key:& value-of-&\r/' | redis --pipe >/dev/null
	expect "$KEYS" "$(redis DBSIZE)"
}

checkpoint() { # ARGUMENT...
	client primary checkpoint --pid "$(pgrep -x redis-server)" --region sets "$@"
}

# Three states of the series: a whole one, what changed since, and one more with a round of memory taken before.
step_checkpoint() {
	local whole changed last
	start_redis
	whole=$(checkpoint --leave-running --track-mem)
	echo "$whole"
	expect null "$(field "$whole" .parent)"
	expect native-flush "$(field "$whole" '.units[0].persistence')"
	redis SET key:5 changed
	changed=$(checkpoint --leave-running --track-mem)
	echo "$changed"
	expect 1 "$(field "$changed" .parent)"
	(($(field "$changed" .image_bytes) * 2 < $(field "$whole" .image_bytes))) || { echo "not only what changed" >&2; exit 1; }
	redis SET key:6 changed-too
	last=$(checkpoint --leave-running --track-mem --pre-dump 1)
	echo "$last"
	expect 2 "$(field "$last" .parent)"
	# Lost with the process.
	redis SET key:7 lost
	kill -KILL "$(pgrep -x redis-server)"
}

restart() { # SETS_READ ARGUMENT...
	local said sets_read=$1
	shift
	said=$(client backup restart --region sets "$@")
	echo "$said"
	expect "$sets_read" "$(field "$said" .sets_read)"
	expect $((LAST_PID + 1)) "$(field "$said" .pid)"
	expect "$KEYS" "$(redis DBSIZE)"
	expect value-of-77777 "$(redis GET key:77777)"
	expect value-of-7 "$(redis GET key:7)"
}

end_redis() {
	redis SHUTDOWN NOSAVE || true
	while [[ -e /proc/$((LAST_PID + 1))/stat ]]; do sleep 0.1; done
}

# On the host of the unit, where no redis ever ran.
step_restart() {
	modprobe -a "${MODULES[@]}"
	restart 3
	expect changed "$(redis GET key:5)"
	expect changed-too "$(redis GET key:6)"
	expect OK "$(redis SET key:8 "it goes on")"
	end_redis
	# S8: an older state.
	restart 1 --set 1
	expect value-of-5 "$(redis GET key:5)"
	end_redis
	site_stop
}

"step_$1"
