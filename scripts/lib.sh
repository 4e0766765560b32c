# shellcheck shell=bash
# What the scripts share: messages, and the set-up of a fresh Debian or Ubuntu machine. Sourced, never run.
#
# setup demo|test makes, inside the repository only:
#   .tools   a Python environment that holds uv, pinned by requirements/uv.txt
#   .venv    the Python environment, synced to requirements/<set>.txt; test holds everything that demo holds
# and asks apt for what is missing, as root or through sudo. A stamp in .venv makes the second run fast.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
STAMP=$ROOT/.venv/.setup
PYTHONS=(python3.13 python3.12 python3.11 python3 python3.14)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() { # MESSAGE [HINT]
  say "$1"
  [ -z "${2:-}" ] || say "  $2"
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

can_install() { have apt-get && { [ "$(id -u)" = 0 ] || have sudo; }; }

# Ends this script in a program. As process 1 of a container the shell stays instead: it reaps the orphans that tests
# make, and a program that counts its children does not find strangers among them.
end_in() { # PROGRAM [ARGUMENT ...]
  [ $$ = 1 ] || exec "$@"
  "$@"
}

# --- the distribution's packages -------------------------------------------------------------------------------------

APT_UPDATED=''

# Services of freshly installed packages stay down: the demo and the tests start their own, on ports of their own.
apt_install() { # PACKAGE ...
  local policy=/usr/sbin/policy-rc.d rc=0 said
  say "installing with apt: $*"
  [ -n "$APT_UPDATED" ] || as_root apt-get update -qq || say "apt-get update failed; trying with the lists that are here"
  APT_UPDATED=yes
  if [ ! -e "$policy" ]; then
    as_root sh -c "printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy"
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  said=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" 2>&1) || rc=$?
  [ "$rc" = 0 ] || printf '%s\n' "$said" | tail -n 20 >&2
  if [ -n "$(trap -p EXIT)" ]; then
    as_root rm -f "$policy"
    trap - EXIT
  fi
  return "$rc"
}

# The packages of those PACKAGE:PROGRAM pairs whose program is not here.
missing_packages() {
  local pair
  for pair in "$@"; do have "${pair#*:}" || printf '%s\n' "${pair%%:*}"; done
}

# PACKAGE:PROGRAM ... without which there is nothing to run
need_programs() {
  local packages
  mapfile -t packages < <(missing_packages "$@")
  [ ${#packages[@]} -gt 0 ] || return 0
  can_install || die "missing: ${packages[*]}" "install them, or run this as root or as a user with sudo"
  apt_install "${packages[@]}" || die "apt could not install: ${packages[*]}" "see the messages above"
  case " ${packages[*]} " in *" mosquitto "*) keep_broker_off ;; esac
}

# PACKAGE:PROGRAM ... that only some tests use: those are then skipped by name (and fail in CI)
want_programs() {
  local packages
  mapfile -t packages < <(missing_packages "$@")
  [ ${#packages[@]} -gt 0 ] || return 0
  if can_install && apt_install "${packages[@]}"; then
    case " ${packages[*]} " in *" mosquitto "*) keep_broker_off ;; esac
  else
    say "going on without: ${packages[*]}"
  fi
}

keep_broker_off() { # the distribution would start it at the next boot
  if [ -d /run/systemd/system ]; then
    as_root systemctl disable --quiet mosquitto.service || say "mosquitto.service stays enabled"
  fi
}

# --- Python ----------------------------------------------------------------------------------------------------------

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1; }

first_python() { # prints the first interpreter that fits
  local name
  for name in "${PYTHONS[@]}"; do
    if fits "$name"; then
      command -v "$name"
      return
    fi
  done
  return 1
}

# Sets PYTHON to an interpreter of 3.11 to 3.14 that can make environments.
find_python() {
  local version
  if ! PYTHON=$(first_python); then
    install_python || true
    PYTHON=$(first_python) || die "no Python from 3.11 to 3.14 here" \
      "Debian 12, Ubuntu 22.04 and newer have one: apt install python3.11 python3.11-venv (or python3 on newer releases)"
  fi
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null && return
  version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  can_install || die "$PYTHON cannot make environments" "install the package python$version-venv"
  apt_install "python$version-venv" || die "apt could not install python$version-venv" "see the messages above"
}

install_python() { # Ubuntu 22.04: its python3 is too old, its package archive has a newer one
  local version
  can_install || return 1
  as_root apt-get update -qq || return 1
  for version in 3.13 3.12 3.11; do
    if apt-cache show "python$version-venv" >/dev/null 2>&1; then
      apt_install "python$version" "python$version-venv"
      return
    fi
  done
  return 1
}

ensure_uv() {
  local wanted
  wanted=$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' "$ROOT/requirements/uv.txt")
  UV=$ROOT/.tools/bin/uv
  case "$("$UV" --version 2>/dev/null || true)" in "uv $wanted"*) return ;; esac
  say "installing uv $wanted into .tools"
  "$PYTHON" -m venv --clear "$ROOT/.tools"
  "$ROOT/.tools/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
    --require-hashes --only-binary :all: -r "$ROOT/requirements/uv.txt" ||
    die "uv could not be installed" "the set-up needs the package index once; the run afterwards does not"
}

sync_environment() { # SET
  local python=$ROOT/.venv/bin/python
  local build=(--build-constraints "$ROOT/requirements/build.txt" --require-build-hashes)
  if ! fits "$python"; then
    say "making .venv with $("$PYTHON" --version)"
    "$UV" venv --quiet --clear --python "$PYTHON" "$ROOT/.venv"
  fi
  say "syncing .venv to requirements/$1.txt"
  local take=(install -r)
  [ "$1" != test ] || take=(sync) # exactly this; the demo, whose set is smaller, only adds
  "$UV" pip "${take[0]}" --quiet --python "$python" --require-hashes --compile-bytecode \
    "${take[@]:1}" "$ROOT/requirements/$1.txt" ||
    die "the Python packages could not be installed" "the set-up needs the package index once"
  "$UV" pip install --quiet --python "$python" --no-deps "${build[@]}" --editable "$ROOT" ||
    die "edged itself could not be installed"
  "$UV" pip install --quiet --python "$python" --require-hashes --no-deps "${build[@]}" \
    -r "$ROOT/requirements/systemd.txt" 2>/dev/null ||
    say "going on without systemd-python: it is compiled, and needs gcc, pkg-config, libsystemd-dev and Python's headers"
}

# --- the whole -------------------------------------------------------------------------------------------------------

fingerprint() { # SET: changes when anything does that the environment was made from
  local locks=("$ROOT"/requirements/{"$1",systemd,build,uv}.txt)
  {
    printf '%s\n' "$ROOT"
    sed '/^\[tool\.ruff/,$d' "$ROOT/pyproject.toml" # without the settings of linters and tests
    cat "${locks[@]}" "$ROOT/scripts/lib.sh"
  } | sha256sum
}

is_set_up() { # SET [SET]: .venv was made for one of these
  local set line
  [ -x "$ROOT/.venv/bin/python" ] && read -r line 2>/dev/null <"$STAMP" || return 1
  for set in "$@"; do
    [ "$line" != "$set $(fingerprint "$set")" ] || return 0
  done
  return 1
}

setup_programs() { # SET
  case $1 in
    demo) need_programs mosquitto:mosquitto ;;
    test)
      want_programs git:git mosquitto:mosquitto mosquitto-clients:mosquitto_sub jq:jq strace:strace
      [ "$(uname -m)" = x86_64 ] || want_programs shellcheck:shellcheck # elsewhere it comes from the lock file
      has_browser || want_browser
      want_programs gcc:gcc pkg-config:pkg-config udev:udevadm umockdev:umockdev-run
      has_rtsp_server || { can_install && apt_install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-{base,good}; } ||
        say "going on without an RTSP server"
      has_systemd_headers || { can_install && apt_install libsystemd-dev python3-dev; } || say "going on without libsystemd-dev"
      ;;
  esac
}

setup_packages() { # what tries the Debian packages, on both architectures, and the container image
  want_programs mmdebstrap:mmdebstrap buildah:buildah qemu-user-static:qemu-aarch64-static
  know_arm64 || say "going on without programs of arm64: the kernel would not take qemu-aarch64 for them"
}

# Where systemd is not process 1, nobody has told the kernel who runs programs of arm64.
know_arm64() {
  local kernel=/proc/sys/fs/binfmt_misc
  [ -e "$kernel/register" ] || as_root mount -t binfmt_misc binfmt_misc "$kernel" || return
  [ -e "$kernel/qemu-aarch64" ] || as_root sh -c "cat /usr/lib/binfmt.d/qemu-aarch64.conf >$kernel/register"
}

setup_machines() { # what builds and runs the tests' virtual machines
  want_programs qemu-system-x86:qemu-system-x86_64 qemu-utils:qemu-img mmdebstrap:mmdebstrap e2fsprogs:mke2fs
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || { can_install && apt_install debian-archive-keyring; } ||
    say "going on without debian-archive-keyring"
}

has_browser() { have chromium || have chromium-browser || have google-chrome || have google-chrome-stable; }

want_browser() {
  if grep -qx 'ID=debian' /etc/os-release; then
    want_programs chromium:chromium
  else
    say "going on without Chromium: only Debian has it as a package (elsewhere install google-chrome or a snap)"
  fi
}

has_rtsp_server() { /usr/bin/python3 -c 'import gi; gi.require_version("GstRtspServer", "1.0")' 2>/dev/null; }

has_systemd_headers() { pkg-config --exists libsystemd 2>/dev/null; }

setup() { # demo|test
  local enough=("$1")
  [ "$1" != demo ] || enough=(test demo)
  setup_programs "$1"
  is_set_up "${enough[@]}" && return
  exec 9>"$ROOT/.setup.lock"
  flock 9 # two at once wait for each other
  if ! is_set_up "${enough[@]}"; then
    find_python
    ensure_uv
    rm -f "$STAMP"
    sync_environment "$1"
    printf '%s %s\n' "$1" "$(fingerprint "$1")" >"$STAMP"
    say "set up; the next run starts at once"
  fi
  exec 9>&-
}
