# Shared by the scripts beside it; sourced, not run.

say() { printf '== %s\n' "$*"; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Name and number of the distribution; empty where there is no os-release.
os_id=$(. /etc/os-release 2>/dev/null && echo "${ID:-}")
os_version=$(. /etc/os-release 2>/dev/null && echo "${VERSION_ID:-}")
os_codename=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}")

package_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]
}

# Installs those of the named packages that are missing; asks for root only if some are.
install_packages() {
    missing=""
    for package in "$@"; do
        package_installed "$package" || missing="$missing $package"
    done
    [ -z "$missing" ] && return 0
    [ "$(id -u)" = 0 ] || die "these packages are missing:$missing
Install them, or run this as root; --no-install skips this step."
    say "installing:$missing"
    export DEBIAN_FRONTEND=noninteractive
    if [ -z "${apt_updated:-}" ]; then
        apt-get -qq update || die "apt-get update failed"
        apt_updated=1
    fi
    # shellcheck disable=SC2086
    apt-get -qq install -y --no-install-recommends $missing >/dev/null ||
        die "apt-get install failed for:$missing"
}

# The mirror this machine takes Debian itself from.
debian_mirror() {
    targets=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 2>/dev/null)
    uri=$(printf '%s\n' "$targets" |
        awk -v c="$os_codename" '$1 == c || $1 == "stable" || $1 == "oldstable" { print $2; exit }')
    [ -n "$uri" ] || uri=$(printf '%s\n' "$targets" | awk '{ print $2; exit }')
    printf '%s\n' "$uri"
}

debian_keyring() {
    for f in /usr/share/keyrings/debian-archive-keyring.pgp \
        /usr/share/keyrings/debian-archive-keyring.gpg; do
        [ -e "$f" ] && printf '%s\n' "$f" && return 0
    done
    return 1
}

# private_apt DIR: settings in DIR/apt.conf for an apt of its own, whose sources are DIR/sources.list.
# Packages are for the architecture $package_arch, this machine's if it is not set.
private_apt() {
    pa_arch=${package_arch:-$(dpkg --print-architecture)} || return 1
    rm -rf "$1"
    mkdir -p "$1/lists/partial" "$1/debs/partial" "$1/root" || return 1
    : >"$1/status"
    : >"$1/preferences"
    cat >"$1/apt.conf" <<CONF
APT::Architecture "$pa_arch";
APT::Architectures "$pa_arch";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "2";
Dir::State::Lists "$1/lists";
Dir::State::status "$1/status";
Dir::Etc::sourcelist "$1/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "$1/preferences";
Dir::Etc::preferencesparts "/dev/null";
Dir::Cache::archives "$1/debs";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
CONF
}

# unpack_source DIR SUITE PACKAGE: the original source of a Debian package, in DIR/PACKAGE.
unpack_source() {
    us_mirror=$(debian_mirror)
    [ -n "$us_mirror" ] || return 1
    us_keys=$(debian_keyring) || return 1
    private_apt "$1" || return 1
    echo "deb-src [signed-by=$us_keys] $us_mirror $2 main" >"$1/sources.list"
    (
        export APT_CONFIG="$1/apt.conf"
        cd "$1" && apt-get -qq update && apt-get -qq source --download-only "$3" &&
            dpkg-source --skip-patches -x "$3"_*.dsc "$3"
    ) >"$1/log" 2>&1 || {
        tail -n 3 "$1/log" >&2
        return 1
    }
}

# unpack_packages DIR "SUITE..." PACKAGE...: downloads packages with their dependencies from other
# Debian suites and unpacks them into DIR/root. The system's own apt and dpkg are not touched.
unpack_packages() {
    up_dir=$1 up_suites=$2
    shift 2
    up_mirror=$(debian_mirror)
    [ -n "$up_mirror" ] || return 1
    up_keys=$(debian_keyring) || return 1
    private_apt "$up_dir" || return 1
    for up_suite in $up_suites; do
        echo "deb [arch=$pa_arch signed-by=$up_keys] $up_mirror $up_suite main"
    done >"$up_dir/sources.list"
    for up_suite in $up_suites; do up_last=$up_suite; done
    printf 'Package: *\nPin: release n=%s\nPin-Priority: 990\n' "$up_last" >"$up_dir/preferences"
    APT_CONFIG="$up_dir/apt.conf" apt-get -qq update >"$up_dir/log" 2>&1 &&
        APT_CONFIG="$up_dir/apt.conf" apt-get -qq install -y --no-install-recommends \
            --download-only "$@" >>"$up_dir/log" 2>&1 || {
        tail -n 3 "$up_dir/log" >&2
        return 1
    }
    for up_deb in "$up_dir"/debs/*.deb; do
        dpkg -x "$up_deb" "$up_dir/root" || return 1
    done
    [ -e "$up_dir/root/lib" ] || ln -s usr/lib "$up_dir/root/lib"
    [ -e "$up_dir/root/lib64" ] || [ ! -e "$up_dir/root/usr/lib64" ] || ln -s usr/lib64 "$up_dir/root/lib64"
    rm -rf "$up_dir/debs" "$up_dir/lists"
}

# Prints how to start a program with the C library in ROOT: its dynamic linker and where it looks.
prefix_launcher() {
    for pl_ld in "$1"/usr/lib64/ld-linux-*.so.* "$1"/usr/lib/ld-linux-*.so.* \
        "$1"/usr/lib/*/ld-linux-*.so.*; do
        [ -e "$pl_ld" ] || continue
        for pl_libs in "$1"/usr/lib/*-linux-gnu*; do
            [ -d "$pl_libs" ] || continue
            printf '%s --library-path %s\n' "$pl_ld" "$pl_libs"
            return 0
        done
    done
    return 1
}
