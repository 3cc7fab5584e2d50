# shellcheck shell=bash
# What a fresh Debian 12 with Rust lacks for building and running this project. Sourced, never run.
# Every function does nothing where everything is there, and says what it does otherwise.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
	say "$*"
	exit 1
}

# Runs apt-get as root, with or without sudo, without questions, and with nothing of it in our own output.
apt_get() {
	local -a become=()
	((EUID == 0)) || become=(sudo)
	"${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 "$@" >&2
}

# Installs packages of Debian.
install_packages() { # PACKAGE...
	(($#)) || return 0
	command -v apt-get >/dev/null || die "install the equivalent of these Debian packages first: $*"
	((EUID == 0)) || command -v sudo >/dev/null || die "as root, install these packages first: $*"
	say "installing $*"
	# Fresh images come without package lists.
	apt_get install -y --no-install-recommends "$@" 2>/dev/null || {
		apt_get update && apt_get install -y --no-install-recommends "$@"
	} || die "apt-get could not install $*"
}

# Rust as rust-toolchain.toml wants it: rustup fetches the version by itself.
prepare_rust() {
	command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
	command -v cargo >/dev/null || die "there is no cargo: install Rust first (https://rustup.rs)"
}

# A C compiler and linker, and what cargo needs to fetch crates.
prepare_build_tools() {
	local -a missing=()
	command -v cc >/dev/null || missing+=(gcc)
	[[ -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)
	[[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)
	install_packages "${missing[@]}"
	prepare_rust
}

# Builds programs of the workspace, with optimisation, and sets bin_dir to where they are.
# Where PMU_BIN_DIR has all of them, nothing is built.
prepare_binaries() { # REPOSITORY PACKAGE=PROGRAM...
	local repository=$1 pair program complete=${PMU_BIN_DIR:+1}
	local -a packages=()
	shift
	for pair; do
		program=${PMU_BIN_DIR:-}/${pair#*=}
		[[ -x $program ]] || complete=
		packages+=(-p "${pair%%=*}")
	done
	if [[ -n $complete ]]; then
		bin_dir=$PMU_BIN_DIR
		return
	fi
	[[ -z ${PMU_BIN_DIR:-} ]] || say "PMU_BIN_DIR ($PMU_BIN_DIR) lacks programs: building them"
	prepare_build_tools
	say "building (the first time takes some minutes)"
	(cd "$repository" && cargo build --release --locked "${packages[@]}" >&2) || die "the build failed"
	bin_dir=${CARGO_TARGET_DIR:-$repository/target}/release
	# Cargo takes a relative folder as relative to where it runs.
	[[ $bin_dir = /* ]] || bin_dir=$repository/$bin_dir
}
