#!/bin/sh
# Pin every package of every image by hash: docker/locks/*.txt from pyproject.toml. Run by `make lock`.
set -eu
cd "$(dirname "$0")/.."
compile() { # lock file, Python version, then uv's arguments
    output=docker/locks/$1.txt python=$2
    shift 2
    "${UV:-uv}" pip compile --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url \
        --no-emit-find-links --python-version "$python" --python-platform linux --output-file "$output" "$@"
}
for target in cpu gpu triton; do
    compile $target 3.11 pyproject.toml --extra $target --extra otel
done
# The torch that the tests ran with.
compile train 3.11 pyproject.toml --extra train --constraint docker/locks/train-constraints.in
compile build 3.11 docker/locks/build.in
# The Python of NVIDIA's image, which brings numpy itself.
compile tritonserver 3.12 docker/locks/tritonserver.in
