#!/usr/bin/env bash
# Unpacks the headers of one Debian suite's rdma-core into a folder, and changes
# nothing on the machine: the suite's package lists live in a private apt folder.
# usage: fetch-headers.sh FOLDER [SUITE]        (SUITE is trixie unless told)
# The mirror is the one this machine's apt already uses; RDMA_DEBIAN_MIRROR=URL
# names another.
set -euo pipefail

out=${1:?usage: fetch-headers.sh FOLDER [SUITE]}
suite=${2:-trixie}
mkdir -p "$out"
out=$(cd "$out" && pwd)

mirror=${RDMA_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' |
	sed -n '/debian\/*$/p' | sort -u | head -n 1)}
[[ -n $mirror ]] || {
	echo "fetch-headers: no Debian mirror in apt's sources; set RDMA_DEBIAN_MIRROR" >&2
	exit 1
}

apt=$out/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/etc"
printf 'deb %s %s main\n' "$mirror" "$suite" >"$apt/etc/sources.list"
: >"$apt/status"
private=(
	-o "Dir::Etc::SourceList=$apt/etc/sources.list" -o Dir::Etc::SourceParts=-
	-o Dir::Etc::PreferencesParts=- -o "Dir::State=$apt" -o "Dir::State::Lists=$apt/lists"
	-o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=
	-o APT::Update::Pre-Invoke::= -o APT::Update::Post-Invoke-Success::=
)
apt-get "${private[@]}" -qq update
(cd "$apt" && apt-get "${private[@]}" -qq download libibverbs-dev librdmacm-dev linux-libc-dev)
for package in "$apt"/*.deb; do
	dpkg-deb -x "$package" "$out/root"
done
dpkg-deb -f "$apt"/libibverbs-dev_*.deb Version >"$out/version"
