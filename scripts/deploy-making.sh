# shellcheck shell=bash
# What deploy-edge.sh makes from a checkout: packages, the folder for a device without a network, the container image.
# Sourced by it, never run. A prepared folder does not have this file.
set -euo pipefail

# --- packages --------------------------------------------------------------------------------------------------------

# The version of the device's Python 3 for which there is a package.
python_version() {
  local version
  for version in 3.11 3.12 3.13; do
    if [ -x "/usr/bin/python$version" ] || apt-cache show "python$version" >/dev/null 2>&1; then
      printf '%s\n' "$version"
      return
    fi
  done
  die "this system has no Python from 3.11 to 3.13" "docs/install.md names a source for Ubuntu 20.04 and 22.04 (JetPack)"
}

build() { # FOLDER: the packages of this checkout
  local python
  python=$(python_version)
  export UV_LINK_MODE=copy # hard links into its cache would let two builds at once change each other's files
  "$ROOT/scripts/build-deb" --arch "$ARCH" --python "$python" --out "$1" >/dev/null
  ! holds "$PACKAGES" edged-lava || "$ROOT/scripts/build-deb" --arch "$ARCH" --lava "$LAVA" --out "$1" >/dev/null
}

ensure_built() { # FOLDER: the packages of this very source
  local stamp=$1/.deploy-$ARCH
  [ "$(cat "$stamp" 2>/dev/null)" != "$PACKAGES $(source_sum)" ] || return 0
  mkdir -p "$1"
  build "$1"
  printf '%s\n' "$PACKAGES $(source_sum)" >"$stamp"
}

source_sum() {
  (cd "$ROOT" && find edged cloud_sync systemd udev debian requirements models/digits/bundle docs pyproject.toml scripts \
    -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1)
}

# --- the folder for a device without a network -----------------------------------------------------------------------

prepare() { # FOLDER
  local folder=$1 part source name
  check_machine
  part=$folder.part source=$(source_sum)
  if [ -n "$DRY" ]; then
    printf 'would fill %s: %s, what they depend on, models/%s, profiles\n' "$folder" "$PACKAGES" "$MODEL"
    return
  fi
  [ ! -e "$folder" ] || [ -e "$folder/deploy.conf" ] || die "$folder is there, and is not one of ours" "name another one"
  if [ "$(value "$folder/deploy.conf" SOURCE 2>/dev/null) $(value "$folder/deploy.conf" WANTED 2>/dev/null)" = "$source $WANTED" ] &&
    (cd "$folder" && sha256sum --quiet --check SHA256SUMS); then
    say "$folder is ready: nothing has changed"
    return
  fi
  rm -rf "$part"
  mkdir -p "$part/packages" "$part/depends" "$part/models"
  ensure_built "$ROOT/dist"
  for name in $PACKAGES; do cp "$(package "$ROOT/dist" "$name")" "$part/packages/"; done
  download "$part/depends" "$part"/packages/*.deb
  cp -r "$ROOT/models/$MODEL/bundle" "$part/models/$MODEL"
  cp -r "$HERE/deploy-edge.sh" "$PROFILES" "$part/"
  printf 'ARCH=%s\nENGINES=%s\nWANTED=%s\nSOURCE=%s\n' "$ARCH" "$(known_engines)" "$WANTED" "$source" >"$part/deploy.conf"
  (cd "$part" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) >"$folder.sums"
  mv "$folder.sums" "$part/SHA256SUMS"
  rm -rf "$folder"
  mv "$part" "$folder"
  say "$folder is ready: copy it to the device, then $folder/deploy-edge.sh $WANTED"
}

download() { # FOLDER DEB ...: everything that they need, beyond what every installation has
  local folder=$1 names
  shift
  names=$(dpkg-deb -f "$1" Depends | tr ',' '\n' | sed 's/(.*//; s/|.*//; s/ //g')
  apt-get update -qq || say "apt-get update failed; going on with the lists that are here"
  : >"$folder/status" # of a machine on which nothing is installed
  # shellcheck disable=SC2046,SC2086 # lists of words
  names=$(apt-get install -qq -y --no-install-recommends -o Dir::State::status="$folder/status" --simulate \
    $names libusb-1.0-0 libudev1 | sed -n 's/^Inst \([^ ]*\) .*/\1/p')
  rm "$folder/status"
  # shellcheck disable=SC2086
  names=$(apt-cache show $names | awk '/^Package:/ { p = $2; seen[p] } /^Essential: yes/ { base[p] }
    END { for (p in seen) if (!(p in base)) print p }')
  # shellcheck disable=SC2086
  (cd "$folder" && apt-get download -qq $names) || die "what edged depends on could not be downloaded" "is there a network?"
}

# --- the container image ---------------------------------------------------------------------------------------------

first_builder() { # that works: docker's client alone is none
  local builder
  for builder in docker podman buildah; do
    if command -v "$builder" >/dev/null 2>&1 && "$builder" info >/dev/null 2>&1; then
      printf '%s\n' "$builder"
      return
    fi
  done
  return 1
}

container() {
  local builder context format=()
  check_machine
  builder=$(first_builder) || [ -n "$DRY" ] || die "neither docker nor podman nor buildah works here" "install one, or start it"
  context=$ROOT/dist/container
  if [ -n "$DRY" ]; then
    printf 'would build the image edged:latest with %s\n' "${builder:-docker, podman or buildah}"
    return
  fi
  rm -rf "$context"
  mkdir -p "$context/models"
  ensure_built "$ROOT/dist"
  cp "$(package "$ROOT/dist" edged)" "$context/edged.deb"
  cp -r "$ROOT/models/$MODEL/bundle" "$context/models/$MODEL"
  configuration >"$context/edged.toml"
  cp "$HERE/container/Dockerfile" "$context/"
  [ "$builder" = docker ] || format=(--format docker) # the other one has no health check
  "$builder" build "${format[@]}" --tag edged:latest --file "$context/Dockerfile" "$context"
  say "start it: docker compose -f docker-compose.edge.yml up -d"
}
