#!/usr/bin/env bash
# Builds libjrs and installs it for other programs:
#
#     ffi/install.sh PREFIX                 a release build (optimised, stripped, reproducible paths)
#     ffi/install.sh PREFIX --from FOLDER   what is built already in FOLDER (for instance target/debug)
#
# PREFIX gets include/ (jrs.h, jrs.hpp), lib/ (shared and static library, pkg-config, CMake) and share/jrs/ (manual,
# examples, licences, SBOM, SOUP list). It may be moved afterwards. Needs cargo, python3 and strip.
set -euo pipefail

usage() { sed -n '2,9p' "$0" >&2; exit 2; }
[[ $# == 1 || ($# == 3 && "$2" == --from) ]] || usage
root="$(cd "$(dirname "$0")/.." && pwd)"
mkdir -p "$1"
prefix="$(cd "$1" && pwd)"
cd "$root"

if [[ $# == 3 ]]; then
    built="$3"
else
    # A folder of its own, because the flags below make other artefacts than a plain release build.
    target="${CARGO_TARGET_DIR:-$root/target}/install"
    # The library must not tell where it was built.
    export CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$root=jrs"$'\x1f'"--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
    cargo build --locked --release -p jrs-ffi --lib --target-dir "$target"
    built="$target/release"
fi

version="$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -1)"
abi="$(sed -n 's/^#define JRS_ABI_VERSION \([0-9]*\)$/\1/p' ffi/include/jrs.h)"

install -d "$prefix"/{include,lib/pkgconfig,lib/cmake/jrs,share/jrs/licences}
install -m 644 ffi/include/jrs.h ffi/include/jrs.hpp "$prefix/include/"

strip --strip-unneeded -o "$prefix/lib/libjrs.so.$version.new" "$built/libjrs.so"
chmod 755 "$prefix/lib/libjrs.so.$version.new"
mv "$prefix/lib/libjrs.so.$version.new" "$prefix/lib/libjrs.so.$version"
ln -sf "libjrs.so.$version" "$prefix/lib/libjrs.so.$abi"
ln -sf "libjrs.so.$abi" "$prefix/lib/libjrs.so"
# Cargo leaves the static library in deps/ when it was only built along with tests.
static="$(find "$built" -maxdepth 2 -name "libjrs*.a" -printf "%T@ %p\n" | sort -rn | cut -d" " -f2- | sed -n 1p)"
strip --strip-debug -o "$prefix/lib/libjrs.a" "$static"
chmod 644 "$prefix/lib/libjrs.a"

fill() { sed -e "s/@VERSION@/$version/g" -e "s/@ABI@/$abi/g" "ffi/package/$1.in" >"$2"; }
fill jrs.pc "$prefix/lib/pkgconfig/jrs.pc"
fill jrsConfig.cmake "$prefix/lib/cmake/jrs/jrsConfig.cmake"
fill jrsConfigVersion.cmake "$prefix/lib/cmake/jrs/jrsConfigVersion.cmake"

cp -R ffi/examples "$prefix/share/jrs/"
install -m 644 docs/integrators.md "$prefix/share/jrs/"
install -m 644 LICENSE-MIT LICENSE-APACHE "$prefix/share/jrs/licences/"
python3 ffi/package/bill_of_materials.py "$prefix/share/jrs"

echo "libjrs $version (ABI $abi) is in $prefix: $(stat -c %s "$prefix/lib/libjrs.so.$version") bytes"
