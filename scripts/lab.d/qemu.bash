# shellcheck shell=bash
# shellcheck disable=SC2054,SC2154 # commas are QEMU's; the names are set by the callers
# The virtual machine: how QEMU is told what a guest is. Sourced, never run.

readonly GUEST_MEMORY=3G
readonly PMEM_SIZE=${PMU_LAB_PMEM_SIZE:-512M}

# Fills the array qemu_command for the guest in folder $1, from its config.
make_qemu_command() { # STATE ACCEL
	local state=$1 accel=$2 number root
	root=$cache_dir/root-$(root_key)
	qemu_command=(
		qemu-system-x86_64 -nodefaults -display none -no-reboot -bios qboot.rom
		-machine q35,nvdimm=on -smp 2 -m "$GUEST_MEMORY,slots=$guest_memories,maxmem=16G"
		-kernel "$root/vmlinux" -initrd "$cache_dir/initramfs-$(initramfs_key).cpio"
		-append "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable nokaslr no_timer_check rcupdate.rcu_expedited=1 random.trust_cpu=on lsm=capability audit=0 hugepages=$guest_hugepages ${PMU_LAB_KERNEL_ARGS:-}"
		-drive "file=$root/root.erofs,format=raw,if=virtio,readonly=on"
		-serial "file:$state/boot/console.log"
		-device virtio-serial -chardev "pipe,id=requests,path=$state/boot/requests"
		-device virtserialport,chardev=requests,name=lab.requests
		-device virtio-rng-pci
	)
	case $accel in
	kvm) qemu_command+=(-accel kvm -cpu host) ;;
	tcg) qemu_command+=(-accel tcg,thread=multi -cpu max) ;;
	esac
	for ((number = 0; number < guest_memories; number++)); do
		qemu_command+=(
			-object "memory-backend-file,id=mem$number,share=on,mem-path=$state/mem$number.img,size=$PMEM_SIZE"
			-device "nvdimm,id=nvdimm$number,memdev=mem$number,unarmed=off"
		)
	done
	add_network_cards
	add_share lab "$state/lab" off
	add_share repo "$repo_dir" on
	add_share bin "$state/bin" on
	[[ ! -d $registry_dir ]] || add_share registry "$registry_dir" on
}

add_share() { # TAG FOLDER READONLY
	qemu_command+=(-virtfs "local,path=$2,mount_tag=$1,security_model=none,readonly=$3,multidevs=remap")
}

# eth0 leads nowhere; eth1 leads to the other hosts, where there are any. The
# socket's path is relative to the network's folder: such paths may not be long.
add_network_cards() {
	local host
	printf -v host '%02x' "$guest_index"
	qemu_command+=(
		-netdev hubport,id=net0,hubid=0
		-device "virtio-net-pci,netdev=net0,mac=52:54:00:4c:00:$host,romfile="
	)
	if [[ -n $guest_network ]]; then
		qemu_command+=(-netdev "stream,id=net1,server=off,addr.type=unix,addr.path=port$guest_index,reconnect-ms=200")
	else
		qemu_command+=(-netdev hubport,id=net1,hubid=1)
	fi
	qemu_command+=(-device "virtio-net-pci,netdev=net1,mac=52:54:00:4c:01:$host,romfile=")
}
