#!/usr/bin/env bash
# Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
# Makes a fresh clone ready to build: system packages, the bridge to libtorch, the image decoders, the package source. Run it as often as you like.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p artifacts

say() { echo "setup: $*"; }

# ---- system packages (Debian and its kin; elsewhere, and without root, it says what to install) ----

wanted=()
need() { # need PACKAGE TEST...: PACKAGE unless the test passes
    local package=$1; shift
    "$@" >/dev/null 2>&1 || wanted+=("$package")
}
has_libtorch() {
    [ -n "${LIBTORCH:-}" ] && [ -e "$LIBTORCH/lib/libtorch.so" ] && return 0
    compgen -G "/usr/lib/*-linux-gnu/libtorch.so" >/dev/null && [ -d /usr/include/ATen ] && return 0
    python3 -c 'import importlib.util as u, os, sys; s = u.find_spec("torch"); sys.exit(not (s and os.path.isdir(os.path.join(os.path.dirname(s.origin), "include", "ATen"))))'
}
uses_debian_libtorch() { [ -z "${LIBTORCH:-}" ] && ! python3 -c 'import importlib.util as u, os, sys; s = u.find_spec("torch"); sys.exit(not (s and os.path.isdir(os.path.join(os.path.dirname(s.origin), "include", "ATen"))))' 2>/dev/null; }

need libtorch-dev has_libtorch
if uses_debian_libtorch; then
    need libopenblas0-openmp compgen -G "/usr/lib/*-linux-gnu/openblas-openmp/libopenblas.so.0"
fi
need g++ command -v g++
need cmake command -v cmake
need make sh -c 'command -v make || command -v ninja'
need libpng-dev test -e /usr/include/png.h
need libjpeg62-turbo-dev test -e /usr/include/jpeglib.h
need libwebp-dev test -e /usr/include/webp/decode.h
need libgif-dev test -e /usr/include/gif_lib.h
# Optional: FLAC and Ogg sounds are read through it; without it they are refused in words.
need libsndfile1 sh -c 'ls /usr/lib/*-linux-gnu/libsndfile.so.1 || ldconfig -p | grep -q libsndfile\.so\.1'
need wordnet-base test -e /usr/share/wordnet/data.noun

if [ ${#wanted[@]} -gt 0 ]; then
    sudo=""
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null && sudo="sudo -n"; }
    if ! command -v apt-get >/dev/null; then
        say "not a Debian system: install what corresponds to ${wanted[*]} by hand"
    elif [ "$(id -u)" != 0 ] && [ -z "$sudo" ]; then
        say "no root here: run  sudo apt-get install --no-install-recommends ${wanted[*]}"
    else
        say "installing ${wanted[*]}"
        $sudo apt-get update -q >artifacts/apt.log 2>&1 || true
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${wanted[@]}" >>artifacts/apt.log 2>&1 ||
            { tail -5 artifacts/apt.log >&2; say "apt-get failed, see artifacts/apt.log"; }
    fi
fi

# ---- the package source: the real packages, or the stand-ins in ext/ ----

probe() {
    # Into an empty folder: packages built by hand may lie in the ordinary one, and say nothing of the registry.
    local folder; folder=$(mktemp -d)
    local ml torch tokens
    version() { sed -n "s/.*<$1 [^>]*>\(.*\)<\/$1>.*/\1/p" Directory.Packages.props; }
    ml=$(version MicrosoftMLVersion) torch=$(version TorchSharpVersion) tokens=$(version TokenizersVersion)
    cp NuGet.config global.json "$folder/"
    cat >"$folder/probe.csproj" <<PROBE
<Project Sdk="Microsoft.NET.Sdk">
  <PropertyGroup><TargetFramework>net10.0</TargetFramework></PropertyGroup>
  <ItemGroup>
    <PackageReference Include="Microsoft.ML" Version="[$ml]" />
    <PackageReference Include="Microsoft.ML.ImageAnalytics" Version="[$ml]" />
    <PackageReference Include="TorchSharp" Version="[$torch]" />
    <PackageReference Include="Microsoft.ML.Tokenizers" Version="[$tokens]" />
  </ItemGroup>
</Project>
PROBE
    local result=0
    dotnet restore "$folder/probe.csproj" --packages "$folder/packages" -p:RestoreFallbackFolders= --nologo -v q >artifacts/probe.log 2>&1 || result=1
    rm -rf "$folder"
    return $result
}

props=artifacts/package-source.props
stamp=$(cat Directory.Packages.props NuGet.config | sha256sum | cut -c1-16)
if [ -e "$props" ] && grep -q "$stamp" "$props"; then
    source=$(sed -n 's/.*>\(local\|nuget\)<.*/\1/p' "$props")
    say "package source: $source (probed before; delete $props to probe again)"
else
    if probe; then
        source=nuget why="the real packages restore from the registry"
    else
        source=local why="the registry lacks $(grep -o "Unable to find package [A-Za-z.]*[A-Za-z]" artifacts/probe.log | awk '{print $NF}' | sort -u | paste -sd, | sed 's/,/, /g')"
        grep -q "Unable to find package" artifacts/probe.log || why="the real packages do not restore, see artifacts/probe.log"
    fi
    printf '<Project>\n  <!-- %s: written by eng/setup.sh; -p:PeftPackages=local|nuget overrides it. -->\n  <PropertyGroup>\n    <PeftPackages Condition="'"'"'$(PeftPackages)'"'"' == '"''"'">%s</PeftPackages>\n  </PropertyGroup>\n</Project>\n' "$stamp" "$source" >"$props"
    say "package source: $source ($why)"
fi

# ---- native parts ----

# Without the kernels everything runs through libtorch, more slowly.
./eng/native.sh kernels || say "WARNING: no native kernels, so training and scoring on the CPU will be slower than they could be"

# The stand-ins for TorchSharp and ImageAnalytics need native parts; the real ones bring their own.
if [ "$source" = local ] || [ "${PeftPackages:-}" = local ]; then
    ./eng/native.sh
    if ! uses_debian_libtorch; then
        say "BLAS: libtorch's own"
    elif openblas=$(compgen -G "/usr/lib/*-linux-gnu/openblas-openmp/libopenblas.so.0"); then
        say "BLAS: OpenBLAS with OpenMP threads ($openblas)"
    else
        say "WARNING: no libopenblas0-openmp, so matrix products will be many times slower than they could be: install it"
    fi
fi
