#!/bin/bash
# Fetches software Vulkan drivers and the validation layer for the tests.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/tools/common.sh"

usage() {
    cat <<'TEXT'
Usage: tools/drivers.sh [DIR] [PIECE...]

Unpacks drivers that run on the processor into DIR (default: build/drivers) without touching the
system. Debian 12 and 13. Pieces, all by default:

  lavapipe-26   Mesa from Debian 13's backports, with cooperative matrices
  lavapipe-25   Mesa of Debian 13 (only on Debian 12; on Debian 13 it is the system's)
  swiftshader   SwiftShader, a driver with few features, and the current validation layer

A piece that can't be had prints a line that begins with 'skipped'; its tests are skipped too.
TEXT
}
case ${1:-} in --help | -h) usage; exit 0 ;; esac
dir=${1:-$here/build/drivers}
if [ $# -gt 0 ]; then shift; fi
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
pieces=${*:-lavapipe-26 lavapipe-25 swiftshader}
have apt-get || die "no apt-get here"

fetch_lavapipe() { # NAME SUITES
    name=$1
    unpack_packages "$dir/$name" "$2" mesa-vulkan-drivers libvulkan1 || return 1
    icd=$(ls "$dir/$name"/root/usr/share/vulkan/icd.d/lvp_icd*.json | head -n 1)
    [ -n "$icd" ] && prefix_launcher "$dir/$name/root" >"$dir/$name/launcher"
    printf '%s\n' "$icd" >"$dir/$name/icd"
}

# Debian ships SwiftShader and a current validation layer inside its Chromium.
fetch_swiftshader() {
    rm -rf "$dir/swiftshader"
    mkdir -p "$dir/swiftshader/root"
    (cd "$dir/swiftshader" && apt-get -qq -o APT::Sandbox::User= download chromium-common \
        >log 2>&1) || { tail -n 3 "$dir/swiftshader/log" >&2; return 1; }
    dpkg-deb --fsys-tarfile "$dir"/swiftshader/chromium-common_*.deb |
        tar -x -C "$dir/swiftshader/root" --wildcards './usr/lib/chromium/*vk_swift*' \
            './usr/lib/chromium/libVkLayer*' || return 1
    rm -f "$dir"/swiftshader/*.deb
    lib=$dir/swiftshader/root/usr/lib/chromium
    [ -e "$lib/vk_swiftshader_icd.json" ] || return 1
    printf '%s\n' "$lib/vk_swiftshader_icd.json" >"$dir/swiftshader/icd"
    layer=$lib/libVkLayer_khronos_validation.so
    if [ -e "$layer" ]; then
        mkdir -p "$dir/validation"
        cat >"$dir/validation/VkLayer_khronos_validation.json" <<JSON
{"file_format_version": "1.2.0",
 "layer": {"name": "VK_LAYER_KHRONOS_validation", "type": "GLOBAL", "library_path": "$layer",
           "api_version": "1.4.350", "implementation_version": "1",
           "description": "Khronos validation layer",
           "instance_extensions": [{"name": "VK_EXT_debug_utils", "spec_version": "2"}]}}
JSON
    fi
}

status=0
for piece in $pieces; do
    if [ -e "$dir/$piece/complete" ]; then
        continue
    fi
    result=no
    case $piece in
    lavapipe-26) fetch_lavapipe $piece "trixie trixie-backports" && result=yes || true ;;
    lavapipe-25)
        if [ "$os_version" != 12 ]; then
            say "skipped lavapipe-25: it is the system's own driver here"
            continue
        fi
        fetch_lavapipe $piece trixie && result=yes || true ;;
    swiftshader)
        if [ -z "$(apt-cache -q show chromium-common 2>/dev/null)" ] && [ "$(id -u)" = 0 ]; then
            apt-get -qq update || true
        fi
        fetch_swiftshader && result=yes || true ;;
    *) die "unknown piece '$piece' (see --help)" ;;
    esac
    if [ $result = yes ]; then
        : >"$dir/$piece/complete"
        say "$piece is in $dir/$piece"
    else
        rm -rf "${dir:?}/$piece"
        say "skipped $piece: it could not be downloaded; tests on it are skipped"
    fi
done
exit $status
