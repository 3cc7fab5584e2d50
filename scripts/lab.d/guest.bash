# shellcheck shell=bash
# shellcheck disable=SC2154 # the folders are set by common.bash, which comes first
# A guest's life, from outside: start, wait, execute, cut, stop. Sourced.
#
# A guest is a folder STATE:
#   config          its options, written by the first start
#   mem0.img mem1.img   its persistent memory: all that outlives a power cut
#   lab/            the guest's /lab; lab/.agent/ carries requests and output
#   lock            held by QEMU for as long as it runs
#   boot/           what belongs to one boot: pid, console.log, requests.{in,out}, qemu.log
#   bin/            stripped copies of the project's binaries

# shellcheck source=scripts/lab.d/qemu.bash
. "$lab_dir/qemu.bash"

readonly BOOT_TIMEOUT_S=${PMU_LAB_BOOT_TIMEOUT_S:-120}

state_of() { # NAME
	[[ $1 =~ ^[a-z][a-z0-9-]{0,30}$ ]] || usage_error "'$1' is no name for a guest: use a-z, 0-9 and -"
	printf '%s\n' "$state_base/$1"
}

# QEMU keeps the lock: this cannot be fooled by a reused process number.
guest_runs() { # STATE
	[[ -e $1/lock ]] && ! flock -n "$1/lock" true
}

guest_alive() { # STATE: cheaper, for loops after guest_runs said yes
	process_alive "$(<"$1/boot/pid")"
}

check_memory_count() { # COUNT
	[[ $1 =~ ^([2-9]|10)$ ]] || usage_error "--memories: 2 to 10, not $1"
}

write_config() { # STATE NAME INDEX FSDAX HUGEPAGES NETWORK MEMORIES
	mkdir -p "$1"
	printf 'guest_name=%q\nguest_index=%q\nguest_fsdax=%q\nguest_hugepages=%q\nguest_network=%q\nguest_memories=%q\n' "${@:2}" >"$1/config"
}

# Copies are stripped: a guest under emulation reads a large binary slowly.
# They are this boot's own: the guest may cache them, a later build cannot hurt.
stage_binaries() { # STATE
	local file kept="$cache_dir/stripped/${bin_dir//\//,}" target
	rm -rf "${1:?}/bin"
	mkdir -p "$1/bin" "$kept"
	for file in "$bin_dir"/* "$bin_dir"/lab-tests/*; do
		[[ -f $file && -x $file && $(head -c 4 "$file" | tail -c 3) = ELF && $file != *.so ]] || continue
		target=$kept/${file##*/}
		if [[ ! $target -nt $file ]]; then
			strip -o "$target.$$" "$file" || die "strip $file"
			mv "$target.$$" "$target"
		fi
		cp "$target" "$1/bin/"
	done
}

# What a memory holds, by the info block of its name space: new, devdax or fsdax.
memory_format() { # FILE
	local signature
	[[ -e $1 ]] || { echo new; return; }
	signature=$(dd if="$1" bs=4096 skip=1 count=1 status=none | head -c 15 | tr -d '\0')
	case $signature in
	NVDIMM_DAX_INFO) echo devdax ;;
	NVDIMM_PFN_INFO) echo fsdax ;;
	'') echo new ;;
	*) die "$1 holds something that the lab did not make" ;;
	esac
}

# Fills memories; refuses to turn one kind into another, since that loses data.
check_memories() { # STATE
	local number wanted found
	memories=()
	for ((number = 0; number < guest_memories; number++)); do
		wanted=devdax
		((guest_fsdax == 0 || number != 1)) || wanted=fsdax
		found=$(memory_format "$1/mem$number.img") || exit "$LAB_FAILED"
		[[ $found = new || $found = "$wanted" ]] ||
			die "$1/mem$number.img is $found and not $wanted: --fresh would remove it"
		memories+=("$found")
	done
}

write_guest_env() { # STATE
	local registry=
	[[ ! -d $registry_dir ]] || registry=$registry_dir
	printf 'LAB_NAME=%q\nLAB_INDEX=%q\nLAB_FSDAX=%q\nLAB_HUGEPAGES=%q\nLAB_REPO=%q\nLAB_REGISTRY=%q\nLAB_MEMORIES=%q\nLAB_HOSTS=%q\n' \
		"$guest_name" "$guest_index" "$guest_fsdax" "$guest_hugepages" "$repo_dir" "$registry" "${memories[*]}" \
		"$([[ -z $guest_network ]] || cat "$guest_network/hosts")" >"$1/lab/.agent/guest.env"
}

# Starts QEMU and returns. With --tied the guest dies with this process.
start_guest() { # STATE [--tied]
	local state=$1 accel wrap=(setsid)
	[[ ${2:-} != --tied ]] || wrap+=(setpriv --pdeathsig KILL)
	local guest_name guest_index guest_fsdax guest_hugepages guest_network guest_memories=2 memories
	# shellcheck source=/dev/null
	. "$state/config"
	exec {lock}>"$state/lock"
	flock -w 2 "$lock" || die "guest $guest_name runs already ($state)"
	rm -rf "${state:?}/boot" "$state/lab/.agent"
	mkdir -p "$state/boot" "$state/lab/.agent"
	mkfifo "$state/boot/requests.in" "$state/boot/requests.out"
	stage_binaries "$state"
	check_memories "$state"
	write_guest_env "$state"
	accel=$("$lab_dir/choose-accel") || exit "$LAB_FAILED"
	make_qemu_command "$state" "$accel"
	printf '%q ' "${qemu_command[@]}" >"$state/boot/command"
	uptime_ms >"$state/boot/started_ms"
	printf '%s\n' "$accel" >"$state/boot/accel"
	(
		cd "${guest_network:-$state}" || exit 1
		exec "${wrap[@]}" "${qemu_command[@]}" </dev/null >"$state/boot/qemu.log" 2>&1
	) &
	printf '%d\n' $! >"$state/boot/pid"
	disown
	exec {lock}>&-
}

explain_failure() { # STATE REASON
	cp "$1/boot/console.log" "$state_base/last-failure.log" 2>/dev/null || true
	log "$2; its console is in $state_base/last-failure.log, the last lines of that and of QEMU:"
	tail -n 15 "$1/boot/console.log" "$1/boot/qemu.log" >&2 2>/dev/null || true
	[[ ! -e $1/lab/.agent/failed ]] || sed 's/^/lab: guest: /' "$1/lab/.agent/failed" >&2
}

# Waits until the guest takes requests; else prints why it does not, and fails:
# with 2 where it hangs, with 1 where it ended.
await_ready() { # STATE
	local state=$1 deadline=$((SECONDS + BOOT_TIMEOUT_S))
	until [[ -e $state/lab/.agent/ready ]]; do
		if [[ -e $state/lab/.agent/failed ]]; then
			sleep 1
			echo "the guest could not be set up"
			return 1
		elif ! guest_alive "$state"; then
			echo "QEMU ended before the guest was up"
			return 1
		elif ((SECONDS > deadline)); then
			echo "the guest was not up after $BOOT_TIMEOUT_S s"
			return 2
		elif grep -qsa 'rcu: INFO: .* detected stalls' "$state/boot/console.log"; then
			echo "the guest's kernel stalled"
			return 2
		fi
		sleep 0.1
	done
}

# Under emulation about one boot in fifty loses a timer interrupt and hangs, on
# a busy machine: nothing has run in it yet, so it is started once more.
wait_for_guest() { # STATE [--tied]
	local reason status=0
	reason=$(await_ready "$1") || status=$?
	if ((status == 2)); then
		log "$reason: starting it once more"
		cut_guest "$1"
		start_guest "$@"
		status=0
		reason=$(await_ready "$1") || status=$?
	fi
	if ((status != 0)); then
		explain_failure "$1" "$reason"
		cut_guest "$1"
		return "$LAB_FAILED"
	fi
	printf '%d\n' $(($(uptime_ms) - $(<"$1/boot/started_ms"))) >"$1/boot/boot_ms"
}

# Opened for both directions, so that this never waits for a reader.
send_request() { # STATE WORD...
	local state=$1
	shift
	printf '%s\n' "$*" 1<>"$state/boot/requests.in"
}

# Runs a command in the guest with its output streamed, and returns its status:
# 124 after the timeout, 125 where the guest went away.
exec_in_guest() { # STATE TIMEOUT_S ENV_ARRAY_NAME COMMAND...
	local state=$1 timeout_s=$2 folder id gate status=0 tails
	local -n environment=$3
	shift 3
	folder=$(mktemp -d "$state/lab/.agent/XXXXXXXX")
	id=${folder##*/}
	printf '%s\0' "$@" >"$folder/argv"
	touch "$folder"/{env,stdout,stderr}
	((${#environment[@]} == 0)) || printf '%s\0' "${environment[@]}" >"$folder/env"
	# The tails end, having read everything, once the process "gate" is gone.
	sleep infinity &
	gate=$!
	tail -c +1 -f -s 0.1 --pid="$gate" "$folder/stdout" &
	tails=$!
	tail -c +1 -f -s 0.1 --pid="$gate" "$folder/stderr" >&2 &
	tails+=" $!"
	# shellcheck disable=SC2064 # the values of now are meant
	trap "end_command '$state' '$id' $gate; trap - INT; kill -INT $BASHPID" INT
	# shellcheck disable=SC2064
	trap "end_command '$state' '$id' $gate; trap - TERM; kill -TERM $BASHPID" TERM HUP
	send_request "$state" exec "$id"
	wait_for_status "$state" "$folder" "$timeout_s" || status=$?
	case $status in
	0) status=$(<"$folder/status") ;;
	124)
		end_command "$state" "$id" "$gate"
		log "timeout: the command was killed after $timeout_s s"
		;;
	*) log "the guest went away while the command ran" ;;
	esac
	kill "$gate" 2>/dev/null || true
	wait "$gate" 2>/dev/null || true
	# shellcheck disable=SC2086 # two process numbers
	wait $tails || true
	trap - INT TERM HUP
	rm -rf "$folder"
	return "$status"
}

wait_for_status() { # STATE FOLDER TIMEOUT_S
	local deadline=$((SECONDS + $3))
	until [[ -e $2/status ]]; do
		guest_alive "$1" || return "$LAB_FAILED"
		(($3 == 0 || SECONDS < deadline)) || return 124
		sleep 0.05
	done
}

end_command() { # STATE ID GATE
	! guest_alive "$1" || send_request "$1" signal "$2" KILL
	kill "$3" 2>/dev/null || true
}

# A power cut: nothing in the guest gets the chance to write anything more.
cut_guest() { # STATE
	local pid
	[[ -e $1/boot/pid ]] || return 0
	guest_runs "$1" || return 0
	pid=$(<"$1/boot/pid")
	kill -KILL "$pid" 2>/dev/null || true
	# Its memory files are free for the next boot only when the lock is.
	flock -w 20 "$1/lock" true || die "QEMU (process $pid) does not go away"
}

stop_guest() { # STATE
	guest_runs "$1" || return 0
	send_request "$1" poweroff
	flock -w 15 "$1/lock" true || { log "the guest did not power off in 15 s: cutting it"; cut_guest "$1"; }
}
