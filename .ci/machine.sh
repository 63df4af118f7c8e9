# shellcheck shell=bash
#
# What a machine must have: for examples/quickstart.sh, tests/run.sh and .ci/run, which source it.
#
# What is missing is installed with apt where that can be done (root, and apt-get is there), and nothing else is touched.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
	say "$@"
	exit 1
}

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# install_packages PACKAGE…
install_packages() {
	say "installing $*"
	DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2 &&
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

# good_python PROGRAM: is it Python 3.10 or newer, and does its venv module work?
good_python() {
	"$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

# Prints the newest Python that will do.
find_python() {
	local candidate
	for candidate in python3.14 python3.13 python3.12 python3.11 python3.10 python3 /usr/bin/python3; do
		if good_python "$candidate"; then
			echo "$candidate"
			return
		fi
	done
	return 1
}

# Sets PYTHON, the Python to make virtual environments with, unless it is set; installs one if need be.
require_python() {
	if [ -n "${PYTHON:-}" ]; then
		good_python "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.10 or newer whose venv module works"
		return
	fi
	if ! PYTHON=$(find_python); then
		can_install ||
			die "there is no Python 3.10 or newer with a working venv module: apt-get install python3 python3-venv," \
				"or name one with PYTHON=/path/to/python3"
		install_packages python3 python3-venv || die "apt could not install python3 and python3-venv: see above"
		PYTHON=$(find_python) ||
			die "this system's $(python3 --version) is too old: install Python 3.10 or newer, with its venv module," \
				"and name it with PYTHON=/path/to/python3"
	fi
}

has_libbpf() { "$PYTHON" -c 'import ctypes; ctypes.CDLL("libbpf.so.1")' 2>/dev/null; }

# Installs libbpf 1 if need be; fails, with the remedy, where the distribution does not have it. Needs PYTHON.
require_libbpf() {
	if has_libbpf; then
		return
	fi
	if can_install; then
		install_packages libbpf1 || true
		if has_libbpf; then
			return
		fi
	fi
	say "libbpf.so.1 (libbpf 1.0 or newer) is missing. Debian 12 and Ubuntu 24.04: apt-get install libbpf1." \
		"Ubuntu 22.04 has only libbpf0, which is too old; build libbpf 1 beside it, as root:"
	cat >&2 <<-'END'
		    apt-get install -y git make gcc libc6-dev pkg-config libelf-dev zlib1g-dev
		    git clone --depth 1 --branch v1.4.7 https://github.com/libbpf/libbpf
		    make -C libbpf/src install LIBDIR=/usr/local/lib && ldconfig
	END
	return 1
}

# Python's headers, which compiling needs (PROCMON_COMPILE=1). Needs PYTHON.
require_headers() {
	local header
	header=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
	if [ ! -e "$header" ]; then
		can_install || die "$header is missing: apt-get install python3-dev"
		install_packages python3-dev || die "apt could not install python3-dev: see above"
	fi
}

# A virtual environment that works: its Python starts and has pip.
good_venv() { "$1/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

# make_venv DIRECTORY: make it unless it works already. Needs PYTHON.
make_venv() {
	if good_venv "$1"; then
		return
	fi
	if [ -e "$1" ] && [ ! -e "$1/pyvenv.cfg" ]; then
		die "$1 is in the way, and is not a virtual environment: move it"
	fi
	say "making the virtual environment $1 with $("$PYTHON" --version) ($PYTHON)"
	"$PYTHON" -m venv --clear "$1" || die "$PYTHON could not make the virtual environment $1: see above"
}

# Installs the packages of the files that are missing, of lines "FILE PACKAGE" on standard input; fails, with the remedy,
# where that cannot be done.
require_files() {
	local missing=() file package
	while read -r file package; do
		[ -e "$file" ] || missing+=("$package")
	done
	[ ${#missing[@]} = 0 ] && return
	can_install || { say "missing: apt-get install ${missing[*]}" && return 1; }
	install_packages "${missing[@]}" || { say "apt could not install ${missing[*]}: see above" && return 1; }
}

# What a real Kubernetes node of tests/system/bed is made of, by a program or file of each package.
require_bed_packages() {
	require_files <<-'END'
		/usr/bin/buildah buildah
		/usr/bin/containerd containerd
		/usr/lib/cni/bridge containernetworking-plugins
		/usr/bin/curl curl
		/usr/sbin/debootstrap debootstrap
		/usr/bin/etcd etcd-server
		/usr/bin/gcc gcc
		/usr/bin/ip iproute2
		/usr/sbin/iptables iptables
		/usr/include/stdio.h libc6-dev
		/usr/bin/make make
		/usr/bin/openssl openssl
		/usr/sbin/runc runc
		/usr/bin/busybox busybox-static
		/usr/bin/systemd-analyze systemd
	END
}

# What boots other kernels (tests/kernel/boot), and the other loader, by a program or file of each package.
require_boot_packages() {
	require_files <<-'END'
		/usr/bin/qemu-system-x86_64 qemu-system-x86
		/usr/share/seabios/bios-256k.bin seabios
		/usr/lib/ipxe/qemu/efi-virtio.rom ipxe-qemu
		/usr/bin/busybox busybox-static
		/usr/bin/cpio cpio
		/usr/sbin/depmod kmod
		/usr/sbin/mke2fs e2fsprogs
		/usr/lib/python3/dist-packages/bcc/__init__.py python3-bpfcc
		/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
	END
}

# build_wheel ROOT PYTHON DIRECTORY [CONSTRAINTS]: the package at ROOT as a wheel in DIRECTORY, built with the versions
# that the file CONSTRAINTS names, by default .ci/constraints.txt. From a copy: setuptools would leave its build
# directory, which is root's then and whose old files get into the next wheel. With PROCMON_COMPILE=1 in the environment
# it has compiled modules (setup.py).
build_wheel() {
	local copy status
	copy=$(mktemp -d)
	mkdir "$copy/bpf"
	cp -R "$1"/{otel_procmon,pyproject.toml,setup.py,build_backend.py,requirements-compile.txt,README.md,LICENSE} "$copy"
	cp "$1"/bpf/{LICENSE.*,*.[ch]} "$copy/bpf"
	# Pip has no other way to its build's environment; older versions know the first of the two variables only. Both are
	# lists divided by spaces, of which the copy's name has none.
	cp "${4:-$1/.ci/constraints.txt}" "$copy/constraints.txt"
	PIP_CONSTRAINT=$copy/constraints.txt PIP_BUILD_CONSTRAINT=$copy/constraints.txt \
		"$2" -m pip wheel -q --no-deps -w "$3" "$copy"
	status=$?
	rm -rf "$copy"
	return $status
}
