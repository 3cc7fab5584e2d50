# shellcheck shell=bash
# D8 over verbs: a set and records go through a distributor in a unit and through a process of its own, and the normal reader has them with a
# unit down. Runs in a guest with three memories, as a step of scripts/lab test.
set -euo pipefail

work=$(mktemp -d)
export PMU_HOME=$work/manager
readonly UNITS=(unit-1 unit-2 unit-3)
pids=()
trap clean_up EXIT

# shellcheck disable=SC2317 # called by the trap
clean_up() {
	local status=$?
	((status == 0)) || tail -n 5 "$work"/*.log >&2
	kill -KILL "${pids[@]}" 2>/dev/null || true
	rm -rf "$work"
}

fail() {
	echo "distributor: $*" >&2
	exit 1
}

control() { echo "$PMU_LAB_ADDR0:$((7400 + $1))"; }

certificates() {
	local name
	pmm ca init
	pmm ca issue manager --role manager --out "$PMU_HOME/identity"
	for name in "${UNITS[@]}" spreader; do
		pmm ca issue "$name" --role unit --host "$PMU_LAB_ADDR0" --out "$work/$name"
	done
	for name in app distributor; do
		pmm ca issue "$name" --role client --out "$work/$name"
	done
}

# Each listens with verbs alone: nothing can go another way. The last process has no pool, and is number 4.
configure() { # NAME NUMBER
	printf '[unit]\nname = "%s"\nidentity = "%s"\n' "$1" "$work/$1"
	printf '[control]\nlisten = "%s"\n' "$(control "$2")"
	printf '[[data]]\nprovider = "verbs"\nlisten = "%s:%d"\n' "$PMU_LAB_ADDR0" $((7410 + $2))
	printf '[distributor]\nidentity = "%s"\nstaging = "1MiB"\n' "$work/distributor"
}

start() { # NAME NUMBER COMMAND
	setsid pmu-server "$3" --config "$work/$1.toml" </dev/null >"$work/$1.log" 2>&1 &
	pids+=($!)
	# Its end is no news.
	disown
}

await() { # NAME NUMBER
	local tries=300
	until (exec 3<>"/dev/tcp/$PMU_LAB_ADDR0/$((7400 + $2))") 2>/dev/null; do
		((tries-- > 0)) || fail "$1 does not listen"
		sleep 0.1
	done
}

start_units() {
	local number=0 name dax
	for name in "${UNITS[@]}"; do
		number=$((number + 1))
		dax=PMU_LAB_DAX$((number - 1))
		{
			configure "$name" "$number"
			printf '[[pool]]\nname = "main"\nmedium = "devdax"\npath = "%s"\n' "${!dax}"
		} >"$work/$name.toml"
		pmu-server init --pool "${!dax}" --medium devdax --force
		start "$name" "$number" run
	done
	{
		configure spreader 4
		printf 'units = ["%s", "%s"]\n' "$(control 1)" "$(control 2)"
		printf '[[distributor.region]]\nname = "%s"\nprincipals = ["app"]\n' state log
	} >"$work/spreader.toml"
	start spreader 4 distribute
	# All of them first: emulated processors that are starting programs are late with a handshake.
	for number in 1 2 3 4; do await "number $number" "$number"; done
	for number in 1 2 3; do
		pmm unit add "unit-$number" "$(control "$number")"
		pmm --timeout 60s unit unlock "unit-$number"
	done
}

regions() {
	local units=unit-1,unit-2,unit-3
	pmm region create state --layout parity:2+1 --units $units --mode overwrite --capacity 1MiB --sets 3 \
		--grant app:read,write --grant distributor:read,write
	pmm region create log --layout parity:2+1 --units $units --mode append --size 1MiB \
		--grant app:read,append,clear --grant distributor:read,append
}

client() { # ARGUMENT...
	PMU_UNIT=$(control 1),$(control 2),$(control 3) PMU_IDENTITY=$work/app pmu --timeout 60s "$@"
}

expect() { # FILE WORDS...
	local file=$1 words
	shift
	for words; do grep -q -F -e "$words" "$file" || fail "not '$words' in: $(cat "$file")"; done
}

# By way of the distributor over verbs, and the receipt is the units' own.
through() { # PLACE NAME COMMAND...
	local place=$1 name=$2 said=$work/$2-$3
	shift 2
	client --provider verbs --verbose --json "$@" --distributor "$place" >"$said" 2>"$said.remarks" || fail "$(cat "$said.remarks")"
	cat "$said"
	expect "$said.remarks" 'over verbs'
	expect "$said" '"provider":"verbs"' '"persistence":"native-flush"' '"durable":true' "\"distributor\":\"$name\"" '"units_of":3' '"missing":[]'
}

# A set by way of one of both places and records by way of the other, at once: emulated processors take their time for each connection.
both() { # SET RECORDS PLACE NAME OTHER_PLACE OTHER_NAME
	local set=$1 records=$2 putting
	through "$3" "$4" put state "$set" &
	putting=$!
	through "$5" "$6" append log "$records"
	wait "$putting"
}

main() {
	local process
	process=process:$(control 4)
	certificates >"$work/pmm.log" 2>&1
	start_units >>"$work/pmm.log" 2>&1
	regions >>"$work/pmm.log" 2>&1
	head -c 700001 /dev/urandom >"$work/set-1"
	head -c 900001 /dev/urandom >"$work/set-2"
	seq -f 'record %06g by way of a process' 300 >"$work/records-1"
	seq -f 'record %06g by way of a unit' 300 >"$work/records-2"
	both "$work/set-1" "$work/records-1" unit:unit-2 unit-2 "$process" spreader
	both "$work/set-2" "$work/records-2" "$process" spreader unit:unit-2 unit-2
	# Both distributors die, one of them with its unit.
	kill -KILL "${pids[1]}" "${pids[3]}"
	client get state --output "$work/got" --json >"$work/read" || fail "the set can't be read"
	cmp "$work/got" "$work/set-2"
	expect "$work/read" '"reconstructed":true' '"unit":"unit-2"'
	client get state --set 1 --output "$work/got" 2>/dev/null
	cmp "$work/got" "$work/set-1"
	client tail log >"$work/got" 2>/dev/null
	cat "$work/records-1" "$work/records-2" | cmp - "$work/got"
	echo "two sets and 600 records, without unit-2 and the process that distributed them"
}

main
