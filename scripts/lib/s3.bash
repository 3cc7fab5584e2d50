# shellcheck shell=bash
# What the tests of global storage need: OpenStack Swift, which speaks S3. Sourced, never run.

# Installs what scripts/lib/s3-server runs. Does nothing where it is there.
prepare_s3_server() {
	/usr/bin/python3 -c 'import swift.cli.ringbuilder' 2>/dev/null && return
	install_packages python3-swift
	/usr/bin/python3 -c 'import swift.cli.ringbuilder' || die "the package python3-swift does not work"
}
