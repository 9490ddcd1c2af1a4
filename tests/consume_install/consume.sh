#!/bin/sh
# Builds and runs a consumer of fulgur in WORK_DIR: consume.sh install|pkgconfig|subdir. The
# environment comes from tests/CMakeLists.txt.
set -eu
way=$1
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$WORK_DIR"
mkdir -p "$WORK_DIR"

install_copy() {
    "$CMAKE" --install "$BUILD_DIR" --prefix "$WORK_DIR/prefix" >"$WORK_DIR/install.log"
    # Found from another place than it was installed to: no path may be baked in.
    mv "$WORK_DIR/prefix" "$WORK_DIR/moved"
    LD_LIBRARY_PATH=$WORK_DIR/moved/$LIBDIR${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
}

configure() {
    "$CMAKE" -G "$GENERATOR" -DCMAKE_C_COMPILER="$CC" -DBUILD_SHARED_LIBS="$SHARED" "$@" \
        -B "$WORK_DIR/build"
    "$CMAKE" --build "$WORK_DIR/build" --parallel 2
}

case $way in
install)
    install_copy
    configure -S "$here" -DCMAKE_PREFIX_PATH="$WORK_DIR/moved"
    "$WORK_DIR/build/consumer"
    ;;
pkgconfig)
    install_copy
    PKG_CONFIG_PATH=$WORK_DIR/moved/$LIBDIR/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
    export PKG_CONFIG_PATH
    flags=$("$PKG_CONFIG" --cflags --libs fulgur)
    # shellcheck disable=SC2086
    "$CC" -std=c11 -Wall -Wextra -Wpedantic -Werror "$here/main.c" $flags -o "$WORK_DIR/consumer"
    "$WORK_DIR/consumer"
    ;;
subdir)
    configure -S "$here/../consume_subdir" -DFULGUR_SOURCE="$SOURCE_DIR" \
        -DFULGUR_VULKAN_PREFIX="$VULKAN_PREFIX" -DFULGUR_GLSLANG="$GLSLANG"
    "$WORK_DIR/build/consumer"
    ;;
*)
    echo "consume.sh: unknown way '$way'" >&2
    exit 2
    ;;
esac
