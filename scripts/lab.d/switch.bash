# shellcheck shell=bash
# shellcheck disable=SC2054,SC2154 # commas are QEMU's; state_base is set by common.bash
# The network between hosts: a QEMU without a machine, whose hub joins one Unix
# socket for each host. It belongs to no host, so cutting one leaves the others
# connected; a host that comes back connects again. Sourced, never run.
#
# A network is a folder:
#   hosts     one line each, as in /etc/hosts; host N has port N
#   lock      held by the switch for as long as it runs
#   portN     the sockets

switch_runs() { # NETWORK
	[[ -e $1/lock ]] && ! flock -n "$1/lock" true
}

start_switch() { # NETWORK
	local network=$1 number=0 command=(qemu-system-x86_64 -machine none -nodefaults -display none)
	switch_runs "$network" && return
	while read -r _; do
		number=$((number + 1))
		command+=(
			-netdev "stream,id=port$number,server=on,addr.type=unix,addr.path=port$number"
			-netdev "hubport,id=hub$number,hubid=0,netdev=port$number"
		)
	done <"$network/hosts"
	rm -f "$network"/port*
	exec {lock}>"$network/lock"
	flock -n "$lock" || die "the network $network is being started by somebody else"
	(
		cd "$network" || exit 1
		exec setsid "${command[@]}" </dev/null >"$network/switch.log" 2>&1
	) &
	printf '%d\n' $! >"$network/pid"
	disown
	exec {lock}>&-
	local tries=100
	until [[ -S $network/port$number ]]; do
		((tries-- > 0)) || die "the network's switch does not start: $(<"$network/switch.log")"
		sleep 0.05
	done
}

# The switch goes with the last of its hosts.
stop_idle_switch() { # NETWORK
	local host
	switch_runs "$1" || return 0
	while read -r _ host; do
		! guest_runs "$state_base/$host" || return 0
	done <"$1/hosts"
	kill "$(<"$1/pid")"
	flock -w 10 "$1/lock" true || die "the network's switch does not end"
}
