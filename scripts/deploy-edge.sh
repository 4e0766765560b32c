#!/usr/bin/env bash
# Brings edged to this device, or takes it away again. Running it again changes nothing; after a cut, run it again.
#   deploy-edge.sh DEVICE_TYPE MODEL_SIZE HARDWARE_TARGET [OPTION ...]
#     DEVICE_TYPE      jetson, nuc, arm, generic           (scripts/profiles/device)
#     MODEL_SIZE       small, base                         (scripts/profiles/model)
#     HARDWARE_TARGET  cpu, event, tensorrt, loihi2        (scripts/profiles/target)
#     --prepare FOLDER   fill a folder from which a device without a network is deployed; nothing is installed here
#     --from FOLDER      deploy from such a folder; needs no network (a folder's own deploy-edge.sh implies it)
#     --lava PYTHON      the device's Python 3.10, for loihi2 (docs/install.md)
#     --container        build the container image instead, for docker-compose.edge.yml
#     --dry-run          say what would be done, and do nothing
#   deploy-edge.sh --uninstall [--discard-results] [--dry-run]
#     removes packages, models, configuration and results; refused while there are results, unless they may go
# docs/deploy.md describes all of it.
set -euo pipefail

HERE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
PROFILES=$HERE/profiles
MEMORY=/var/lib/edged-deploy # what was here before, and what we made: for the next run and for --uninstall
CONFIG=/etc/edged/edged.toml
MODELS=/usr/local/share/edged/models
TEMPLATE=/usr/share/edged/edged.toml # from which the package makes a first configuration

say() { printf 'deploy-edge: %s\n' "$*" >&2; }

die() { # MESSAGE [HINT]
  say "$1"
  [ -z "${2:-}" ] || say "  $2"
  exit 1
}

act() { # COMMAND ...: the one way in which anything is changed
  if [ -n "$DRY" ]; then
    printf 'would run: %s\n' "$*"
  else
    "$@"
  fi
}

# --- what is wanted --------------------------------------------------------------------------------------------------

value() { # FILE NAME: the value of a line NAME=value
  sed -n "s/^$2=//p" "$1" | tail -n 1
}

profile() { # KIND NAME: prints the file of a profile, or refuses the name
  local file=$PROFILES/$1/$2.conf known
  known=$(find "$PROFILES/$1" -name '*.conf' -printf '%f\n' | sed 's/\.conf$//' | LC_ALL=C sort | tr '\n' ' ')
  case $2 in
    '' | *[!a-z0-9_-]*) die "$(kind_name "$1") '$2' is not known" "known: $known" ;;
  esac
  [ -f "$file" ] || die "$(kind_name "$1") '$2' is not known" "known: $known"
  printf '%s\n' "$file"
}

kind_name() {
  case $1 in device) echo DEVICE_TYPE ;; model) echo MODEL_SIZE ;; *) echo HARDWARE_TARGET ;; esac
}

known_engines() { # of this release
  if [ -n "$FROM" ]; then
    value "$FROM/deploy.conf" ENGINES
  else
    sed -n '/^EngineName = Literal\[/,/\]/p' "$ROOT/edged/config.py" | grep -o '"[^"]*"' | tr -d '"' | paste -s -d ' '
  fi
}

holds() { # LIST WORD
  case " $1 " in *" $2 "*) return 0 ;; esac
  return 1
}

read_profiles() { # DEVICE_TYPE MODEL_SIZE HARDWARE_TARGET: refuses by name what cannot be
  local device model target engine engines
  device=$(profile device "$1")
  model=$(profile model "$2")
  target=$(profile target "$3")
  holds "$(value "$device" TARGETS)" "$3" ||
    die "$1 has no HARDWARE_TARGET '$3'" "$1 takes: $(value "$device" TARGETS)"
  ENGINES=$(value "$target" ENGINES)
  engines=$(known_engines)
  for engine in $ENGINES; do
    holds "$engines" "$engine" ||
      die "HARDWARE_TARGET '$3' is not there yet: this release has no engine '$engine'" "it has: $engines"
  done
  ARCHES=$(value "$device" ARCH) SOCKETS=$(value "$target" SOCKETS) PACKAGES=$(value "$target" PACKAGES)
  CAP_MB=$(value "$device" CAP_MB) SEGMENT_MB=$(value "$device" SEGMENT_MB)
  MODEL=$(value "$model" MODEL) PIPELINE=$(value "$model" PIPELINE)
  WANTED="$1 $2 $3"
  if holds "$PACKAGES" edged-lava && [ -z "$FROM" ] && [ -z "$LAVA" ]; then
    die "HARDWARE_TARGET '$3' needs Python 3.10 for Lava" "name it with --lava /usr/bin/python3.10 (docs/install.md)"
  fi
}

check_machine() {
  ARCH=$(dpkg --print-architecture 2>/dev/null) || die "this is neither Debian nor Ubuntu" "there is no dpkg"
  holds "$ARCHES" "$ARCH" || die "this machine is $ARCH, and ${WANTED%% *} is for $ARCHES" "name its DEVICE_TYPE"
}

# --- packages --------------------------------------------------------------------------------------------------------

installed() { # [PACKAGE ...]: names of installed packages, sorted
  dpkg-query -W -f '${db:Status-Abbrev}\t${Package}\n' "$@" 2>/dev/null | sed -n 's/^.i.\t//p' | LC_ALL=C sort -u
}

has_package() { [ -n "$(installed "$1")" ]; }

remember() { # what was here before the first run
  act mkdir -p "$MEMORY"
  [ -e "$MEMORY/before" ] && return
  if [ -n "$DRY" ]; then
    printf 'would remember the packages that are here\n'
  else
    installed >"$MEMORY/before.new"
    mv "$MEMORY/before.new" "$MEMORY/before"
  fi
}

note_what_came() {
  [ -z "$DRY" ] || return 0
  installed | LC_ALL=C comm -13 "$MEMORY/before" - | grep -vx 'edged\(-lava\)\?' >"$MEMORY/came.new" || true
  mv "$MEMORY/came.new" "$MEMORY/came"
}

install_packages() { # DEB ...
  local deb name wanted=()
  [ -z "$(dpkg --audit 2>/dev/null)" ] || act dpkg --configure -a # a run that was cut
  for deb in "$@"; do
    name=$(basename "$deb")
    name=${name%%_*}
    if ! has_package "$name" || ! grep -qsx "$(sha256sum <"$deb")" "$MEMORY/$name.sum"; then wanted+=("$deb"); fi
  done
  [ ${#wanted[@]} -gt 0 ] || return 0
  CHANGED=yes
  if [ -n "$FROM" ]; then
    install_missing "${wanted[@]}"
  else
    act apt-get update -qq || say "apt-get update failed; going on with the lists that are here"
    act apt-get install -qq -y --no-install-recommends --reinstall --allow-downgrades "${wanted[@]}" \
      libusb-1.0-0 libudev1 >/dev/null || die "apt could not install edged" "without a network: --prepare, then --from"
  fi
  note_what_came
  [ -n "$DRY" ] || for deb in "$@"; do
    name=$(basename "$deb")
    sha256sum <"$deb" >"$MEMORY/${name%%_*}.sum"
  done
}

install_missing() { # DEB ...: with what the folder holds of the packages that are not here, and no network
  local deb name missing=()
  for deb in "$FROM"/depends/*.deb; do
    [ -e "$deb" ] || continue
    name=$(basename "$deb")
    has_package "${name%%_*}" || missing+=("$deb")
  done
  act apt-get install -qq -y --no-install-recommends --reinstall --allow-downgrades "$@" "${missing[@]}" >/dev/null ||
    die "apt could not install what is in $FROM" "was it prepared on the same release of the distribution?"
}

# --- the steps -------------------------------------------------------------------------------------------------------

configuration() { # as TOML
  local name engines model=/usr/share/edged/models/digits
  name=$(hostname 2>/dev/null || cat /etc/hostname 2>/dev/null || echo device)
  name=$(printf '%s' "$name" | tr -c 'A-Za-z0-9._-' '-' | sed 's/^[^A-Za-z0-9]*//' | cut -c1-64)
  # shellcheck disable=SC2086 # a list of words
  engines=$(printf '"%s", ' $ENGINES)
  [ "$MODEL" = digits ] || model=$MODELS/$MODEL
  cat <<END
# Made by deploy-edge.sh for $WANTED. It is yours: once you changed it, deploy-edge.sh leaves it alone.
# Check a change with \`edged check\`, then \`systemctl restart edged\`.
[device]
id = "${name:-device}"

[buffer]
cap_mb = $CAP_MB
segment_mb = $SEGMENT_MB

[[pipeline]]
name = "$PIPELINE"
model = "$model"
engines = [${engines%, }]

[[pipeline.source]]
type = "spool"
name = "spool"
path = "/var/lib/edged/spool"

[[pipeline.source]]
type = "http"
name = "http"

# Where results go. Then: systemctl enable --now edged-sync
# [sync]
# broker = "mqtts://broker.example"
# fleet = "default"
END
}

is_ours() { # whether the configuration that is here is one that we, or the package, wrote
  local name
  grep -qsx "$(sha256sum <"$CONFIG")" "$MEMORY/configurations" && return
  name=$(sed -n 's/^id = "\(.*\)"$/\1/p' "$CONFIG" | head -n 1)
  [ -e "$TEMPLATE" ] && sed "s/@DEVICE@/$name/" "$TEMPLATE" | cmp -s - "$CONFIG"
}

install_configuration() {
  local wanted
  wanted=$(configuration)
  if [ -e "$CONFIG" ] && [ "$wanted" = "$(cat "$CONFIG")" ]; then return; fi
  if [ -e "$CONFIG" ] && ! is_ours; then
    say "$CONFIG was changed by hand and stays; what $WANTED would have is in $CONFIG.deploy"
    [ -n "$DRY" ] || printf '%s\n' "$wanted" >"$CONFIG.deploy"
    return
  fi
  CHANGED=yes
  if [ -n "$DRY" ]; then
    printf 'would write %s:\n%s\n' "$CONFIG" "$wanted"
    return
  fi
  mkdir -p "${CONFIG%/*}"
  printf '%s\n' "$wanted" | sha256sum >>"$MEMORY/configurations" # first: then it is ours whatever happens
  printf '%s\n' "$wanted" >"$CONFIG.new"
  chmod 644 "$CONFIG.new"
  mv "$CONFIG.new" "$CONFIG"
}

install_model() {
  local source=$ROOT/models/$MODEL/bundle
  [ "$MODEL" != digits ] || return 0 # the package has it
  [ -z "$FROM" ] || source=$FROM/models/$MODEL
  if diff -rq "$source" "$MODELS/$MODEL" >/dev/null 2>&1; then return; fi
  CHANGED=yes
  act mkdir -p "$MODELS"
  act rm -rf "$MODELS/.$MODEL.new"
  act cp -r "$source" "$MODELS/.$MODEL.new"
  act chmod -R u=rwX,go=rX "$MODELS/.$MODEL.new"
  act rm -rf "${MODELS:?}/$MODEL"
  act mv "$MODELS/.$MODEL.new" "$MODELS/$MODEL"
}

enable_units() {
  local unit
  for unit in $SOCKETS edged.socket edged.service; do
    [ "$(systemctl is-enabled "$unit" 2>/dev/null)" = enabled ] || act systemctl enable --quiet "$unit"
  done
}

start() {
  if [ ! -d /run/systemd/system ]; then
    say "systemd does not run here: edged starts with the next boot"
    return
  fi
  act systemctl daemon-reload
  # shellcheck disable=SC2086 # a list of units
  act systemctl start $SOCKETS edged.socket
  if [ -n "$CHANGED" ]; then act systemctl restart edged.service; else act systemctl start edged.service; fi
}

verify() {
  [ -z "$DRY" ] || return 0
  edged check --config "$CONFIG" >&2 || die "edged check found a problem" "see above, then run this again"
  [ ! -d /run/systemd/system ] || edged doctor --quick --config "$CONFIG" >&2 || say "edged doctor has something to say"
}

deploy() {
  local folder debs
  need_root
  check_machine
  remember
  if [ -n "$FROM" ]; then
    (cd "$FROM" && sha256sum --quiet --check SHA256SUMS) || die "$FROM is damaged" "prepare it again"
    [ "$(value "$FROM/deploy.conf" ARCH)" = "$ARCH" ] || die "$FROM is not for $ARCH" "prepare it on a machine like this one"
    folder=$FROM/packages
  else
    folder=$ROOT/dist
    if [ -n "$DRY" ]; then
      printf 'would build: %s\n' "$PACKAGES"
    else
      ensure_built "$folder"
    fi
  fi
  install_configuration # first: the package starts the services
  install_model
  mapfile -t debs < <(for name in $PACKAGES; do package "$folder" "$name"; done)
  if [ -n "$DRY" ] && [ ${#debs[@]} = 0 ]; then
    printf 'would install: %s\n' "$PACKAGES"
  else
    [ ${#debs[@]} -gt 0 ] || die "there is no package of edged in $folder"
    install_packages "${debs[@]}"
  fi
  enable_units
  start
  verify
  if [ -n "$DRY" ]; then
    say "$WANTED: nothing was done"
  elif [ -n "$CHANGED" ]; then
    say "$WANTED: deployed"
  else
    say "$WANTED: there was nothing to do"
  fi
}

package() { # FOLDER NAME: prints its file
  find "$1" -maxdepth 1 -name "$2_*_$ARCH.deb" 2>/dev/null | LC_ALL=C sort -V | tail -n 1
}

need_root() { [ -n "$DRY" ] || [ "$(id -u)" = 0 ] || die "this changes the system" "run it as root, or with --dry-run"; }

# --- taking it away --------------------------------------------------------------------------------------------------

uninstall() {
  local came=() removed
  need_root
  if [ -z "$DISCARD" ] && has_results; then
    die "this device holds results" "edged backup FOLDER saves them; --uninstall --discard-results goes on without"
  fi
  [ -z "$(dpkg --audit 2>/dev/null)" ] || act dpkg --configure -a || true
  if [ -n "$(installed edged edged-lava)" ] || [ -d /var/lib/edged ]; then
    act dpkg --purge --force-remove-reinstreq edged-lava edged >/dev/null 2>&1
  fi
  [ -e "$MEMORY/came" ] || [ ! -e "$MEMORY/before" ] || note_what_came # a run that was cut
  if [ -e "$MEMORY/came" ]; then
    mapfile -t came < <(comm -12 "$MEMORY/came" <(installed))
    if [ ${#came[@]} -gt 0 ]; then
      removed=$(apt-get purge -qq --simulate "${came[@]}" | sed -n 's/^Purg \([^ ]*\) .*/\1/p' | LC_ALL=C sort -u)
      if [ -z "$(comm -13 "$MEMORY/came" <(printf '%s\n' "$removed"))" ]; then
        act apt-get purge -qq -y "${came[@]}" >/dev/null
      else
        say "something else needs what came along; it stays: ${came[*]}"
      fi
    fi
  fi
  act rm -rf "${CONFIG%/*}" /var/lib/edged /run/edged /usr/local/share/edged "$MEMORY"
  act mkdir -p /opt # dpkg takes an empty one away
  say "edged is gone"
}

has_results() {
  command -v edged >/dev/null 2>&1 || return 1
  [ -e /var/lib/edged/buffer/ledger.json ] && [ -n "$(edged results --limit 1 --config "$CONFIG" 2>/dev/null)" ]
}

# --- the command line ------------------------------------------------------------------------------------------------

DRY='' FROM='' PREPARE='' LAVA='' UNINSTALL='' DISCARD='' CONTAINER='' CHANGED=''
words=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) DRY=yes ;;
    --uninstall) UNINSTALL=yes ;;
    --discard-results) DISCARD=yes ;;
    --container) CONTAINER=yes ;;
    --from | --prepare | --lava)
      [ -n "${2:-}" ] || die "$1 needs a value"
      case $1 in --from) FROM=$2 ;; --prepare) PREPARE=$2 ;; --lava) LAVA=$2 ;; esac
      shift
      ;;
    -h | --help)
      sed -n '2,/^set -euo/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'
      exit 0
      ;;
    -*) die "unknown option: $1" "see $0 --help" ;;
    *) words+=("$1") ;;
  esac
  shift
done

ROOT=$(dirname "$HERE")
[ ! -e "$HERE/deploy.conf" ] || FROM=${FROM:-$HERE}
if [ -e "$HERE/deploy-making.sh" ]; then
  # shellcheck source=scripts/deploy-making.sh
  . "$HERE/deploy-making.sh"
fi
if [ -n "$FROM" ]; then
  [ -e "$FROM/deploy.conf" ] || die "$FROM was not prepared for a deployment" "deploy-edge.sh ... --prepare FOLDER fills one"
  FROM=$(cd "$FROM" && pwd -P)
fi
if [ -n "$UNINSTALL" ]; then
  [ ${#words[@]} = 0 ] || die "--uninstall takes no profile" "see $0 --help"
  uninstall
  exit
fi
[ ${#words[@]} = 3 ] || die "three words are needed: DEVICE_TYPE MODEL_SIZE HARDWARE_TARGET" "see $0 --help"
read_profiles "${words[@]}"
[ -z "$PREPARE$CONTAINER" ] || [ -z "$FROM" ] || die "--prepare and --container need a checkout" "this is a prepared folder"
if [ -n "$PREPARE" ]; then
  prepare "$PREPARE"
elif [ -n "$CONTAINER" ]; then
  container
else
  deploy
fi
