# shellcheck shell=bash
# cargo-deny, built once and kept outside the tree. Sourced, never run; needs prepare.bash.

cargo_deny_version=0.18.5

# Sets cargo_deny to the program.
prepare_cargo_deny() {
	local root=${XDG_CACHE_HOME:-$HOME/.cache}/pmu/cargo-deny-$cargo_deny_version
	cargo_deny=$root/bin/cargo-deny
	[[ -x $cargo_deny ]] && return
	prepare_build_tools
	say "building cargo-deny $cargo_deny_version (once, some minutes)"
	# Unoptimised: it runs for a second, and takes minutes less to build.
	CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=$root/target \
		cargo install cargo-deny --version "$cargo_deny_version" --locked --debug --root "$root" >&2 ||
		die "cargo-deny can't be built"
	rm -rf "$root/target"
}
