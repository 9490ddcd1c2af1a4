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
  vendors       the drivers of AMD, NVIDIA, Qualcomm and Apple GPUs from Debian 13's backports, with
                shims that imagine the hardware: they compile, but compute nothing
  vendors-arm64 those of Mali and PowerVR GPUs, which exist for arm64 only (only where qemu-user is)
  intel-shim    the same for Intel's driver, built from Debian's source of Mesa (a minute)

A piece that can't be had prints a line that begins with 'skipped'; its tests are skipped too.
TEXT
}
case ${1:-} in --help | -h) usage; exit 0 ;; esac
dir=${1:-$here/build/drivers}
if [ $# -gt 0 ]; then shift; fi
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
emulated=""
if have qemu-aarch64-static || have qemu-aarch64; then emulated=vendors-arm64; fi
pieces=${*:-lavapipe-26 lavapipe-25 swiftshader vendors $emulated intel-shim}
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

fetch_vendors() {
    unpack_packages "$dir/vendors" "trixie trixie-backports" mesa-vulkan-drivers mesa-drm-shim \
        libvulkan1 || return 1
    prefix_launcher "$dir/vendors/root" >"$dir/vendors/launcher"
}

fetch_vendors_arm64() {
    package_arch=arm64
    arm64_result=0
    unpack_packages "$dir/vendors-arm64" "trixie trixie-backports" mesa-vulkan-drivers \
        mesa-drm-shim libvulkan1 vulkan-validationlayers || arm64_result=1
    package_arch=""
    return $arm64_result
}

# Debian packages no shim for Intel. It is built with the compiler of the system and with tools and
# libraries from Debian 13, because those of Debian 12 are too old for it.
build_intel_shim() {
    have gcc && have g++ && have ninja && have python3 && have dpkg-source ||
        { echo "gcc, g++, ninja, python3 or dpkg-dev is missing" >&2; return 1; }
    is=$dir/intel-shim
    unpack_packages "$is/tools" trixie meson python3-mako python3-yaml python3-packaging bison flex \
        m4 pkgconf libdrm-dev libexpat1-dev zlib1g-dev || return 1
    root=$is/tools/root
    libs=$(ls -d "$root"/usr/lib/*-linux-gnu | head -n 1)
    run=$(prefix_launcher "$root")
    # What would pull in the whole prefix, C library included, is copied apart.
    mkdir -p "$is/bin" "$is/python" "$is/include" "$is/lib" "$is/pc"
    for module in mesonbuild mako markupsafe packaging; do
        cp -R "$root/usr/lib/python3/dist-packages/$module" "$is/python/"
    done
    # The compiled part of yaml belongs to another Python; it works without.
    mkdir "$is/python/yaml" && cp "$root"/usr/lib/python3/dist-packages/yaml/*.py "$is/python/yaml/"
    cp -R "$root/usr/include/libdrm" "$root"/usr/include/xf86drm*.h "$root"/usr/include/zlib.h \
        "$root"/usr/include/expat*.h "$is/include/" || return 1
    for header in "$root"/usr/include/zconf.h "$root"/usr/include/*-linux-gnu/zconf.h \
        "$root"/usr/include/*-linux-gnu/expat*.h; do
        if [ -e "$header" ]; then cp "$header" "$is/include/"; fi
    done
    for library in drm z expat; do cp -a "$libs/lib$library".so* "$is/lib/"; done
    for package in libdrm zlib expat; do
        file=$(ls "$libs/pkgconfig/$package.pc" "$root/usr/share/pkgconfig/$package.pc" 2>/dev/null |
            head -n 1)
        sed -e "s,^prefix=.*,prefix=$is," -e "s,^libdir=.*,libdir=$is/lib," \
            -e "s,^includedir=.*,includedir=$is/include," "$file" >"$is/pc/$package.pc"
    done
    for tool in bison flex m4; do
        printf '#!/bin/sh\nexport BISON_PKGDATADIR=%s M4=%s\nexec %s %s "$@"\n' \
            "$root/usr/share/bison" "$is/bin/m4" "$run" "$root/usr/bin/$tool" >"$is/bin/$tool"
        chmod +x "$is/bin/$tool"
    done
    unpack_source "$is/source" trixie mesa || return 1
    (
        export PATH=$is/bin:/usr/bin:/bin PYTHONPATH=$is/python PKG_CONFIG_LIBDIR=$is/pc
        off=""
        for option in llvm glx egl gbm gles1 gles2 gallium-va gallium-vdpau xmlconfig libunwind \
            lmsensors valgrind zstd shader-cache; do
            off="$off -D$option=disabled"
        done
        # shellcheck disable=SC2086
        python3 -m mesonbuild.mesonmain setup "$is/build" "$is/source/mesa" \
            --wrap-mode=nofallback -Dbuildtype=plain -Dc_args=-O1 -Dcpp_args=-O1 \
            -Dvulkan-drivers= -Dgallium-drivers= -Dtools=drm-shim,intel -Dopengl=false \
            -Dplatforms= -Dvulkan-layers= -Dvideo-codecs= -Dbuild-tests=false $off &&
            ninja -C "$is/build" src/intel/tools/libintel_noop_drm_shim.so
    ) >"$is/log" 2>&1 || { tail -n 5 "$is/log" >&2; return 1; }
    cp "$is/build/src/intel/tools/libintel_noop_drm_shim.so" "$is/" || return 1
    rm -rf "$is/tools" "$is/bin" "$is/python" "$is/include" "$is/lib" "$is/pc" "$is/source" \
        "$is/build"
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
    vendors) fetch_vendors && result=yes || true ;;
    vendors-arm64) fetch_vendors_arm64 && result=yes || true ;;
    intel-shim) build_intel_shim && result=yes || true ;;
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
        say "skipped $piece: it could not be had; tests on it are skipped"
    fi
done
exit $status
