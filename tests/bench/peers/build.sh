#!/usr/bin/env bash
# Builds llama.cpp for this machine into .peers/COMMIT/build/bin: build.sh PYTHON. Needs cmake and a C++ compiler; 10 to 20 minutes on two cores.
set -euo pipefail

python=$1
here=$(cd "$(dirname "$0")" && pwd)
peers=$(cd "$here/../../.." && pwd)/.peers
programs=(llama-bench llama-batched-bench llama-server llama-perplexity llama-quantize)
version=$(sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' "$here/requirements.txt")
commit=$(sed -n 's/.*at commit \([0-9a-f]*\);.*/\1/p' "$here/requirements.txt")

for tool in cmake c++; do
    command -v "$tool" >/dev/null || { echo "$tool is needed to build llama.cpp, and is not there" >&2; exit 1; }
done
source=$peers/$commit/source
build=$peers/$commit/build
mkdir -p "$peers/package" "$source"
"$python" -m pip --disable-pip-version-check download --quiet --no-deps --no-binary llama-cpp-python --require-hashes --dest "$peers/package" --requirement "$here/requirements.txt"
tar --extract --gzip --file "$peers/package/llama_cpp_python-$version.tar.gz" --directory "$source" --strip-components=1
# Without the page it would download, and without git, which would tell the commit of the repository around it.
cmake -S "$source/vendor/llama.cpp" -B "$build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DGGML_CCACHE=OFF \
    -DLLAMA_BUILD_NUMBER=0 -DLLAMA_BUILD_COMMIT="$commit" >"$peers/$commit/cmake.log"
nice -n 19 cmake --build "$build" --parallel "$(nproc)" --target "${programs[@]}" >"$peers/$commit/build.log"
echo "llama.cpp is in $build/bin"
