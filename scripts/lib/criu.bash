# shellcheck shell=bash
# CRIU 4.2, which needs newer libraries than Debian 12 has: fetched with its own and kept outside the tree. Sourced, never run; needs prepare.bash.

criu_is_new_enough() { # PROGRAM
	local version
	version=$("$1" --version 2>/dev/null | sed -n 's/^Version: \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
	# 4.1 can't take TCP sockets on Linux 6.16 and newer.
	((${version% *}0 * 100 + ${version#* }0 >= 4020))
}

# The mirror of Debian that this machine uses already.
criu_mirror() {
	local uri
	# shellcheck disable=SC2016 # the dollars in apt-get's formats are not the shell's
	uri=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
		awk '$2 == "bookworm" { print $1; exit }')
	printf '%s\n' "${uri:-http://deb.debian.org/debian}"
}

# Downloads CRIU of Debian 14 with all that it needs, checked against Debian's keys, into a folder; nothing of it is installed.
criu_download() { # FOLDER
	local folder=$1 package
	mkdir -p "$folder"/{lists/partial,cache/archives/partial}
	: >"$folder/status"
	printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s forky main\n' "$(criu_mirror)" >"$folder/sources.list"
	local -a options=(
		-o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null
		-o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::Lists="$folder/lists" -o Dir::State::status="$folder/status"
		-o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root -o Debug::NoLocking=1
	)
	apt-get -q -q "${options[@]}" update >&2 &&
		apt-get -q -q -y "${options[@]}" --no-install-recommends --download-only install criu >&2 || return
	for package in "$folder"/cache/archives/*.deb; do
		dpkg-deb -x "$package" "$folder/root" || return
	done
}

# Sets PMU_CRIU to a CRIU that is new enough. Does nothing where it names one, or PATH has one.
prepare_criu() {
	local root=${XDG_CACHE_HOME:-$HOME/.cache}/pmu/criu-4.2
	if [[ -n ${PMU_CRIU:-} ]]; then
		criu_is_new_enough "$PMU_CRIU" || die "PMU_CRIU ($PMU_CRIU) is no CRIU 4.2"
	elif criu_is_new_enough criu; then
		PMU_CRIU=$(command -v criu)
	else
		PMU_CRIU=$root/criu
	fi
	export PMU_CRIU
	[[ ! -x $PMU_CRIU ]] || return 0
	[[ $(. /etc/os-release && echo "${VERSION_CODENAME:-}") = bookworm ]] || { die "install CRIU 4.2 first (package criu of Debian 14), or name it with PMU_CRIU"; }
	say "fetching CRIU of Debian 14 with its libraries (once)"
	rm -rf "$root.new"
	criu_download "$root.new" || die "CRIU can't be fetched"
	# Its own loader and libraries: those of Debian 12 are too old.
	cat >"$root.new/criu" <<-'END'
		#!/bin/sh
		root=$(dirname "$(realpath "$0")")/root
		libraries=$root/usr/lib/x86_64-linux-gnu
		exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$root/usr/sbin/criu" "$@"
	END
	chmod +x "$root.new/criu"
	rm -rf "$root.new"/{lists,cache,status}
	rm -rf "$root"
	mv "$root.new" "$root"
	criu_is_new_enough "$PMU_CRIU" || die "the CRIU that was fetched doesn't run"
}
