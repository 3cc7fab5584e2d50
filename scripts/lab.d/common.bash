# shellcheck shell=bash
# What every part of the lab shares: where things live, and how it speaks.
# Sourced, never run.

# Nothing of the lab started: the exit status that says so.
readonly LAB_FAILED=125

lab_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
repo_dir=$(cd "$lab_dir/../.." && pwd -P)
cache_dir=${PMU_LAB_CACHE:-$HOME/.cache/pmu-lab}
state_base=${PMU_LAB_STATE:-$HOME/.local/state/pmu-lab}
bin_dir=${PMU_BIN_DIR:-${CARGO_TARGET_DIR:-$repo_dir/target}/release}
registry_dir=${CARGO_HOME:-$HOME/.cargo}/registry/src
[[ $bin_dir = /* ]] || bin_dir=$PWD/$bin_dir
export lab_dir repo_dir cache_dir state_base bin_dir registry_dir

log() { printf 'lab: %s\n' "$*" >&2; }

die() {
	printf 'lab: %s\n' "$*" >&2
	exit "$LAB_FAILED"
}

usage_error() {
	printf 'lab: %s (see scripts/lab --help)\n' "$*" >&2
	exit "$LAB_FAILED"
}

# The argument of an option, or a usage error where it is missing.
need_value() { # OPTION REMAINING_COUNT
	(($2 >= 2)) || usage_error "$1 needs a value"
}

# Seconds with milliseconds since the machine started: for timing only.
uptime_ms() {
	local up
	read -r up _ </proc/uptime
	printf '%d\n' "$((10#${up/./} * 10))"
}

# What the guest is made from, as a key: see build.
root_key() {
	cat "$lab_dir"/{build-root,fetch-kernel,extract-vmlinux,guest-packages,guest-modules} | sha256sum | cut -c1-16
}

initramfs_key() {
	{ root_key && cat "$lab_dir"/build-initramfs "$lab_dir"/guest/*; } | sha256sum | cut -c1-16
}

# Also where nobody reaps: a process that has ended but was not waited for is dead.
process_alive() { # PID
	local state
	read -r _ _ state _ 2>/dev/null <"/proc/$1/stat" && [[ $state != Z ]]
}

check_number() { # OPTION VALUE
	[[ $2 =~ ^[0-9]{1,18}$ ]] || usage_error "$1 takes a whole number, not '$2'"
}

check_variables() { # K=V...
	local variable
	for variable; do
		[[ $variable =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || usage_error "--env takes NAME=VALUE, not '$variable'"
	done
}
