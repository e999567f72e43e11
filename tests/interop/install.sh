#!/usr/bin/env bash
# Other people's clients, in an environment of their own: tests/interop/install.sh FOLDER
# What cannot be had is left out, with a line; its tests skip and say so.
set -uo pipefail
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
uv=${UV:-uv}
version() { grep "^$1" "$here/versions.txt"; }
"$uv" venv --quiet --seed --allow-existing "$folder"
install() { "$uv" pip install --quiet --python "$folder/bin/python" "$1" || echo "cannot be had: $1"; }

install "$(version tritonclient | sed 's/==/[grpc,http]==/')"
install "$(version kserve)"
install "$(version openapi-python-client)"
install "$(version mlcommons-loadgen)"
install "$(version schemathesis)"
install "$(version nvidia-cuda-runtime-cu12)"  # perf_analyzer is linked against it, on a machine without a GPU too

# The last wheel of tritonclient that carries the program; later ones name a package of its own, which is empty.
if "$folder/bin/python" -m pip download --quiet --no-deps --only-binary :all: --dest "$folder/wheels" \
    "$(version perf-analyzer | sed 's/perf-analyzer/tritonclient/')"; then
    "$folder/bin/python" - "$folder" <<'PYTHON'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
for wheel in (folder / "wheels").glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith("/bin/perf_analyzer"):
                target = folder / "bin" / "perf_analyzer"
                target.write_bytes(archive.read(name))
                target.chmod(0o755)
PYTHON
else
    echo "no perf_analyzer"
fi

if command -v npm >/dev/null; then
    # shellcheck disable=SC2046  # four packages, four words
    npm install --silent --no-audit --no-fund --prefix "$folder/node" $(version @grpc) $(version axe-core) \
        "$(version swagger-ui-dist)" ||
        echo "no Node packages"
fi
