# shellcheck shell=bash
# A unit and what it serves, for the lab's tests. Sourced in a guest; `bash site.bash FUNCTION ARGUMENT...` calls one function.
#
# Everything that must outlive a power cut but is no checkpoint lies in SITE (/lab/site): certificates, configuration, pid,
# log, and the witness's receipts. The control service is at port 7400, data at 7401.

SITE=${SITE:-/lab/site}
export PMU_HOME=$SITE/manager

site_fail() {
	echo "site: $*" >&2
	exit 1
}

# Where the unit is: on the lab's network if SITE_HOST says so, else on the guest's own.
site_address() { printf '%s\n' "${SITE_HOST:-$PMU_LAB_ADDR0}"; }

site_certificates() {
	local name
	rm -rf "$SITE"
	mkdir -p "$SITE"
	pmm ca init >"$SITE/pmm.log"
	pmm ca issue manager --role manager --out "$PMU_HOME/identity" >>"$SITE/pmm.log"
	pmm ca issue unit-1 --role unit --host "$PMU_LAB_ADDR0" --host "$PMU_LAB_ADDR1" --host 127.0.0.1 --out "$SITE/unit-1" >>"$SITE/pmm.log"
	for name in primary backup; do
		pmm ca issue "$name" --role client --out "$SITE/$name" >>"$SITE/pmm.log"
	done
	pmm unit add unit-1 "$(site_address):7400" >>"$SITE/pmm.log"
}

# MEDIUM is one of pmu-server's; further lines go into the pool's section.
site_configure() { # PROVIDER MEDIUM PATH [LINE]...
	local provider=$1 medium=$2 path=$3 address
	shift 3
	address=$(site_address)
	{
		printf '[unit]\nname = "unit-1"\nidentity = "%s/unit-1"\n' "$SITE"
		printf '[control]\nlisten = "%s:7400"\n' "$address"
		printf '[[data]]\nprovider = "%s"\nlisten = "%s:7401"\n' "$provider" "$address"
		printf '[[pool]]\nname = "main"\nmedium = "%s"\npath = "%s"\n' "$medium" "$path"
		printf '%s\n' "$@"
	} >"$SITE/unit.toml"
}

# Makes the pool anew.
site_pool() { # MEDIUM PATH [SIZE]
	pmu-server init --pool "$2" --medium "$1" ${3:+--size "$3"} --force >>"$SITE/pmm.log"
}

site_regions() { # NEED LOG_BYTES CAPACITY_BYTES SETS
	pmm region create log --mode append --size "$2" --need "$1" \
		--grant primary:read,append,clear --grant backup:read,append,clear,manage >>"$SITE/pmm.log"
	pmm region create sets --mode overwrite --capacity "$3" --sets "$4" --need "$1" \
		--grant primary:read,write --grant backup:read,write,manage >>"$SITE/pmm.log"
}

# Starts the unit, and unlocks it as the manager.
site_start() {
	local tries=300
	# The first start of a guest reads the program from the host.
	setsid pmu-server run --config "$SITE/unit.toml" </dev/null >>"$SITE/unit.log" 2>&1 &
	echo $! >"$SITE/unit.pid"
	until (exec 3<>"/dev/tcp/$(site_address)/7400") 2>/dev/null; do
		kill -0 "$(<"$SITE/unit.pid")" 2>/dev/null || site_fail "the unit ended: $(tail -n 5 "$SITE/unit.log")"
		((tries-- > 0)) || site_fail "the unit does not listen: $(tail -n 5 "$SITE/unit.log")"
		sleep 0.1
	done
	pmm --timeout 60s unit unlock unit-1 >>"$SITE/pmm.log"
}

site_stop() {
	local pid tries=150
	pid=$(<"$SITE/unit.pid")
	kill -TERM "$pid"
	while [[ -e /proc/$pid/stat ]]; do
		((tries-- > 0)) || site_fail "the unit does not stop"
		sleep 0.1
	done
}

# A new site: certificates, pool, unit, regions.
site_make() { # PROVIDER MEDIUM PATH SIZE NEED [LINE]...
	local provider=$1 medium=$2 path=$3 size=$4 need=$5
	shift 5
	[[ -e $SITE/primary ]] || site_certificates
	site_configure "$provider" "$medium" "$path" "$@"
	pmm unit add --replace unit-1 "$(site_address):7400" >>"$SITE/pmm.log"
	site_pool "$medium" "$path" "$size"
	site_start
	site_regions "$need" "${SITE_LOG_BYTES:-4MiB}" "${SITE_CAPACITY_BYTES:-1MiB}" 3
}

# The witness, with all that it needs to know. COMMAND comes first.
site_witness() { # PRINCIPAL COMMAND [ARGUMENT]...
	local principal=$1 command=$2
	shift 2
	# In the background the process must be the witness itself, to be signalled.
	${SITE_EXEC:-} pmu-witness "$command" --unit "$(site_address):7400" --identity "$SITE/$principal" --log log --sets sets \
		--seed "${SITE_SEED:-1}" "$@"
}

if [[ ${BASH_SOURCE[0]} = "$0" ]]; then
	set -euo pipefail
	"$@"
fi
