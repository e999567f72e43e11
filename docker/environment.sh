#!/bin/sh
# Make /opt/alexnet, the virtual environment of one target: packages as docker/locks says, and our own wheel.
set -eu
target=$1
pip() { /opt/build/bin/python -m pip --python /opt/alexnet/bin/python "$@"; }

python -m venv --without-pip /opt/alexnet
pip install --quiet --require-hashes -r "docker/locks/$target.txt"
pip install --quiet --no-deps --no-index /wheels/*.whl
# The packages' own tests and their data: a tenth of the image, and never run.
cd /opt/alexnet/lib/python3*/site-packages
find numpy -type d -name tests -prune -exec rm -rf {} +
rm -rf onnx/backend/test
if [ "$target" = cpu ]; then
    # OpenVINO for the CPU and for ONNX files alone, and without what reports.
    rm -rf openvino_telemetry openvino/include openvino/tools
    cd openvino/libs
    rm -f cache.json libopenvino_intel_[gn]pu_plugin.so
    for frontend in gguf jax paddle pytorch tensorflow tensorflow_lite; do
        rm -f "libopenvino_${frontend}_frontend".so*
    done
fi
