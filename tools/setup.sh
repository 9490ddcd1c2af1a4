#!/bin/bash
# Installs what is missing, then configures and builds fulgur. tools/story and tools/test start here.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/tools/common.sh"

usage() {
    cat <<'TEXT'
Usage: tools/setup.sh [options] [-- CMAKE_ARGUMENTS]

Installs what is missing (Debian 12 and 13, as root), then configures and builds fulgur.

  --no-install        install and download nothing; works without root and package manager
  --build-dir DIR     build folder (default: build)
  --build-type TYPE   Debug, Release, RelWithDebInfo (default) or MinSizeRel
  --release, --debug  short for --build-type Release, Debug
  --system-vulkan     use the system's Vulkan headers, volk and glslang even if they are old; shader
                      variants they can't compile are left out and listed
  --cc COMPILER       C compiler (default: cc, or $CC)
  --sanitize LIST     build with sanitizers, for example address,undefined
  --werror            treat warnings as errors
  --shared            build a shared library
  --tests             build the tests too, and install what they need
  --target NAME       build this target only (may be repeated)
  --jobs N            parallel jobs (default: one a processor)
  --help              show this text

On Debian 12 current Vulkan headers, volk and glslang are unpacked into the build folder; the
system's own are not touched.
TEXT
}

install=yes build_dir=$here/build build_type="" system_vulkan=no tests=no jobs="" targets=""
cmake_args=()
while [ $# -gt 0 ]; do
    case $1 in
    --no-install) install=no ;;
    --build-dir) build_dir=${2:?--build-dir needs a folder}; shift ;;
    --build-type) build_type=${2:?--build-type needs a type}; shift ;;
    --release) build_type=Release ;;
    --debug) build_type=Debug ;;
    --system-vulkan) system_vulkan=yes ;;
    --cc) cmake_args+=("-DCMAKE_C_COMPILER=${2:?--cc needs a compiler}"); shift ;;
    --sanitize) cmake_args+=("-DFULGUR_SANITIZE=${2//,/;}"); shift ;;
    --werror) cmake_args+=("-DFULGUR_WERROR=ON") ;;
    --shared) cmake_args+=("-DBUILD_SHARED_LIBS=ON") ;;
    --tests) tests=yes ;;
    --target) targets="$targets ${2:?--target needs a name}"; shift ;;
    --jobs) jobs=${2:?--jobs needs a number}; shift ;;
    --help | -h) usage; exit 0 ;;
    --) shift; cmake_args+=("$@"); break ;;
    *) die "unknown option '$1' (see --help)" ;;
    esac
    shift
done
mkdir -p "$build_dir"
build_dir=$(cd "$build_dir" && pwd)
vulkan_prefix=$build_dir/vulkan

# Debian 12 has glslang 12 and headers of 2023, which know no cooperative matrices.
old_vulkan=no
if [ "$os_id" = debian ] && [ "$os_version" = 12 ]; then
    old_vulkan=yes
fi

if [ "$install" = yes ]; then
    have apt-get || die "no apt-get here: install a C compiler, CMake 3.20, Ninja or make, pkg-config,
jansson, PCRE2, utf8proc, the Vulkan headers, volk and glslang, then use --no-install."
    packages="gcc libc6-dev cmake ninja-build pkg-config libjansson-dev libpcre2-dev libutf8proc-dev
        libvulkan1 mesa-vulkan-drivers"
    if [ $old_vulkan = no ] || [ $system_vulkan = yes ]; then
        packages="$packages libvulkan-dev libvulkan-volk-dev glslang-tools"
    fi
    if [ $tests = yes ]; then
        packages="$packages g++ libcmocka-dev"
        if [ $old_vulkan = no ]; then packages="$packages spirv-tools"; fi
    fi
    # shellcheck disable=SC2086
    install_packages $packages
fi

# Current headers, volk and glslang for a system with old ones, in the build folder.
if [ $system_vulkan = no ] && [ $old_vulkan = yes ] && [ "$install" = yes ] &&
    [ ! -e "$vulkan_prefix/complete" ]; then
    say "unpacking current Vulkan headers, volk and glslang into ${vulkan_prefix#"$here"/}"
    # A bare image may be older than the keys of the next release.
    if ! grep -qs . /usr/share/keyrings/debian-archive-trixie-stable.*; then
        [ "$(id -u)" = 0 ] && apt-get -qq update &&
            apt-get -qq install -y debian-archive-keyring >/dev/null
    fi
    if unpack_packages "$vulkan_prefix" trixie \
        glslang-tools spirv-tools libvulkan-dev libvulkan-volk-dev; then
        root=$vulkan_prefix/root
        launcher=$(prefix_launcher "$root") || die "no dynamic linker in $root"
        mkdir -p "$vulkan_prefix/bin"
        for tool in glslang spirv-val; do
            # Their C library is newer than the system's.
            printf '#!/bin/sh\nexec %s %s "$@"\n' "$launcher" "$root/usr/bin/$tool" \
                >"$vulkan_prefix/bin/$tool"
            chmod +x "$vulkan_prefix/bin/$tool"
        done
        ln -sfn root/usr/include "$vulkan_prefix/include"
        "$vulkan_prefix/bin/glslang" --version >/dev/null || die "the unpacked glslang does not start"
        : >"$vulkan_prefix/complete"
    else
        rm -rf "$vulkan_prefix"
        say "skipped: no current Vulkan tools could be downloaded; using the system's"
        install_packages libvulkan-dev libvulkan-volk-dev glslang-tools
    fi
fi
if [ $system_vulkan = no ] && [ -e "$vulkan_prefix/complete" ]; then
    cmake_args=("-DFULGUR_VULKAN_PREFIX=$vulkan_prefix" "${cmake_args[@]}")
elif [ $system_vulkan = yes ]; then
    cmake_args=("-DFULGUR_VULKAN_PREFIX=" "${cmake_args[@]}")
fi

have cmake || die "cmake is missing"
if [ ! -e "$build_dir/CMakeCache.txt" ] && have ninja; then
    cmake_args=(-G Ninja "${cmake_args[@]}")
fi
if [ -n "$build_type" ]; then cmake_args+=("-DCMAKE_BUILD_TYPE=$build_type"); fi
if [ $tests = yes ]; then
    cmake_args+=(-DFULGUR_BUILD_TESTS=ON)
elif [ ! -e "$build_dir/CMakeCache.txt" ]; then
    cmake_args+=(-DFULGUR_BUILD_TESTS=OFF)
fi
say "configuring"
cmake -S "$here" -B "$build_dir" "${cmake_args[@]}" >"$build_dir/configure.log" 2>&1 || {
    cat "$build_dir/configure.log" >&2
    die "cmake failed"
}
grep -E "^-- (Vulkan headers|glslang )" "$build_dir/configure.log" || true
say "building"
build_args=(--build "$build_dir" --parallel)
[ -n "$jobs" ] || jobs=$(nproc 2>/dev/null || echo 2)
build_args+=("$jobs")
for target in $targets; do build_args+=(--target "$target"); done
cmake "${build_args[@]}" >"$build_dir/build.log" 2>&1 || {
    grep -E -A12 "error|FAILED|warning" "$build_dir/build.log" | head -n 60 >&2 || true
    die "the build failed; all of it is in $build_dir/build.log"
}
grep -E -A6 "warning:" "$build_dir/build.log" >&2 || true
