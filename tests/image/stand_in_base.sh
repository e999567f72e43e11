#!/bin/sh
# Make a stand-in for the Python base image out of Debian packages, where no registry can be reached:
#   tests/image/stand_in_base.sh IMAGE [MIRROR]
# Needs root, buildah and debootstrap. Does nothing when the image is there already.
set -eu
image=$1
# by default the one that this machine's apt uses
mirror=${2:-$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' | awk '$1 == "bookworm" {print $2; exit}')}
export BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}" STORAGE_DRIVER="${STORAGE_DRIVER:-vfs}"

! buildah inspect --type image "$image" >/dev/null 2>&1 || exit 0
folder=$(mktemp -d /var/tmp/stand-in-base.XXXXXX)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder/root" "$mirror" >&2
ln -s /usr/bin/python3 "$folder/root/usr/local/bin/python"
printf 'FROM scratch\nCOPY root/ /\nENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n' > "$folder/Dockerfile"
buildah bud --quiet --layers=false --tag "$image" "$folder" >&2
