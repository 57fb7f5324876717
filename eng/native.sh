#!/usr/bin/env bash
# Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
# Builds native parts into artifacts/native; does nothing where they are up to date.
#   ./eng/native.sh kernels    libPeftNative.so, the library's own kernels: whatever the packages are
#   ./eng/native.sh            that, and what the stand-ins need: libPeftImages.so, the image decoders, and libPeftTorch.so, the
#                              bridge over libtorch
# libtorch is looked for in $LIBTORCH, then in the PyTorch of python3, then in Debian's libtorch-dev.
set -euo pipefail
cd "$(dirname "$0")/.."
out=artifacts/native
generator=(); command -v ninja >/dev/null && generator=(-G Ninja)

# build NAME FOLDER STAMP [CMAKE ARGUMENTS...]: makes $out/libNAME.so; says how long it took.
build() {
    local name=$1 folder=$2 stamp=$3 started log=$out/$1.log; shift 3
    for tool in cmake g++; do
        command -v "$tool" >/dev/null || { echo "native: $tool is missing (./eng/setup.sh installs it on Debian)" >&2; exit 1; }
    done
    started=$(date +%s)
    mkdir -p "$out"
    rm -rf "$out/$name.build"
    {
        cmake "${generator[@]}" -S "$folder" -B "$out/$name.build" -DCMAKE_BUILD_TYPE=None "$@" &&
        cmake --build "$out/$name.build" --parallel 2
    } >"$log" 2>&1 || { tail -40 "$log" >&2; echo "native: the build of $name failed, see $log" >&2; exit 1; }
    # Renamed into place: a running process keeps the library that it has loaded.
    cp "$out/$name.build/lib$name.so" "$out/lib$name.so.new" && mv "$out/lib$name.so.new" "$out/lib$name.so"
    rm -rf "$out/$name.build"
    echo "$stamp" >"$out/$name.stamp"
    took=$(( $(date +%s) - started ))
}

is_current() { [ -e "$out/lib$1.so" ] && [ "$(cat "$out/$1.stamp" 2>/dev/null)" = "$2" ]; }

# ---- kernels ----

kernels=src/Microsoft.ML.Peft.Native
stamp="$(cat "$kernels"/*.cpp "$kernels"/*.h "$kernels"/kernels/* "$kernels"/CMakeLists.txt | sha256sum | cut -c1-16) $(g++ -dumpfullversion 2>/dev/null || true)"
if is_current PeftNative "$stamp"; then
    echo "native: kernels up to date"
else
    build PeftNative "$kernels" "$stamp"
    echo "native: kernels built in $took s"
fi
if [ "${1:-}" = kernels ]; then exit 0; fi

# ---- image decoders ----

images=ext/Microsoft.ML.ImageAnalytics/native
stamp=$(cat "$images"/*.c "$images"/*.h "$images"/CMakeLists.txt | sha256sum | cut -c1-16)
if is_current PeftImages "$stamp"; then
    echo "native: image decoders up to date"
else
    build PeftImages "$images" "$stamp"
    echo "native: image decoders built in $took s"
fi

# ---- the bridge over libtorch ----

source=ext/TorchSharp/native

torch_of_python() {
    "${1}" -c 'import importlib.util as u, os; s = u.find_spec("torch"); print(os.path.dirname(s.origin) if s and s.origin else "")' 2>/dev/null || true
}

include="" lib="" from=""
if [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch.so" ] || { echo "LIBTORCH=$LIBTORCH has no lib/libtorch.so" >&2; exit 1; }
    root=$LIBTORCH from="\$LIBTORCH"
else
    root=$(torch_of_python python3)
    from="the PyTorch of python3"
    # Debian's python3-torch has no headers of its own: its libtorch is the packaged one below.
    [ -n "$root" ] && [ -e "$root/lib/libtorch.so" ] && [ -d "$root/include/ATen" ] || root=""
fi
if [ -n "$root" ]; then
    include="$root/include;$root/include/torch/csrc/api/include"
    lib=$root/lib
else
    triplet=$(g++ -dumpmachine 2>/dev/null | sed 's/-pc-/-/' || true)
    for folder in "/usr/lib/${triplet:-x86_64-linux-gnu}" /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu; do
        if [ -e "$folder/libtorch.so" ] && [ -d /usr/include/ATen ]; then
            lib=$folder include="/usr/include;/usr/include/torch/csrc/api/include" from="Debian's libtorch-dev"
            break
        fi
    done
fi
[ -n "$lib" ] || { echo "No libtorch found: set LIBTORCH, or install PyTorch (pip install torch) or Debian's libtorch-dev (./eng/setup.sh does)." >&2; exit 1; }

stamp="$(cat "$source"/*.cpp "$source"/*.h "$source"/CMakeLists.txt | sha256sum | cut -c1-16) $(readlink -f "$lib/libtorch.so") $(stat -Lc '%s %Y' "$lib/libtorch.so")"
if is_current PeftTorch "$stamp"; then
    echo "native: up to date ($from, $lib)"
    exit 0
fi
build PeftTorch "$source" "$stamp" "-DTORCH_INCLUDE=$include" "-DTORCH_LIB=$lib"
echo "native: built in $took s over $(sed -n 's/^-- \(libtorch [0-9.]*\) in .*/\1/p' "$out/PeftTorch.log") of $from ($lib)"
