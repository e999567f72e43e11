#!/bin/sh
# Install the real Triton server (2.51) for CPUs into an environment of its own: tests/triton/install.sh [FOLDER]
#
# The wheel of nvidia-pytriton holds the server and the Python backend, but no ONNX Runtime backend; the folder
# backends/onnxruntime beside this script stands in for it. Ends with FOLDER/bin/tritonserver, ready to start.
# PYTHON chooses the interpreter (3.10, 3.11 or 3.12, with its shared libpython).
set -eu
prefix=${1:-.venv-triton}
here=$(cd "$(dirname "$0")" && pwd)

fail() { echo "install.sh: $1" >&2; exit 1; }

choose_python() {
    for candidate in ${PYTHON:-/usr/bin/python3 python3 python3.12 python3.11 python3.10}; do
        case $("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) in
            3.10 | 3.11 | 3.12) echo "$candidate"; return ;;
        esac
    done
    fail "Triton's Python backend needs Python 3.10, 3.11 or 3.12 here; name one in PYTHON"
}

python=$(choose_python)
[ -x "$prefix/bin/python" ] || "$python" -m venv "$prefix" || fail "on Debian: apt-get install python3-venv"
# numpy 2 silently corrupts the tensors of this server's Python backend (mended after 2.51).
"$prefix/bin/pip" install --quiet --disable-pip-version-check 'numpy>=1.26,<2' 'onnxruntime>=1.20' 'pillow>=11.3'
"$prefix/bin/pip" install --quiet --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0

prefix=$(cd "$prefix" && pwd)
eval "$("$prefix/bin/python" -c '
import sys, sysconfig
print(f"""version={sys.version_info[0]}.{sys.version_info[1]}
site={sysconfig.get_paths()["purelib"]}
library_folder={sysconfig.get_config_var("LIBDIR")}""")')"
triton=$site/pytriton/tritonserver
stub=$triton/python_backend_stubs/$version/triton_python_backend_stub

backends=$prefix/backends
mkdir -p "$backends/python" "$backends/onnxruntime"
# Triton refuses a linked libtriton_python.so, while the stub finds its libraries only from where it lies.
cp "$triton/backends/python/libtriton_python.so" "$triton/backends/python/triton_python_backend_utils.py" \
    "$backends/python/"
ln -sfn "$stub" "$backends/python/triton_python_backend_stub"
cp "$here/backends/onnxruntime/model.py" "$backends/onnxruntime/"

# Where libpython is not on the system's path (pyenv, conda), say where it is; a stub that cannot start hangs
# the server for ever, so look first.
chmod 755 "$stub"
libraries=
if ldd "$stub" | grep -q 'libpython.*not found'; then
    [ -e "$library_folder/libpython$version.so.1.0" ] ||
        fail "libpython$version.so.1.0 is missing; on Debian: apt-get install libpython$version"
    libraries=$library_folder
fi
missing=$(LD_LIBRARY_PATH=$libraries ldd "$stub" "$triton/bin/tritonserver" | grep 'not found' || true)
[ -z "$missing" ] || fail "missing libraries: $missing"

# The stub runs Python isolated: only the interpreter that comes first on PATH tells it where the packages are.
# Completing configs would start every stub twice, and ours are complete. On a busy machine importing onnxruntime
# can take longer than the 30 seconds after which Triton gives a stub up, and ends itself.
cat > "$prefix/bin/tritonserver" <<END
#!/bin/sh
export PATH="$prefix/bin:\$PATH" ORT_DISABLE_TELEMETRY=1
${libraries:+export LD_LIBRARY_PATH="$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH\}"}
exec "$triton/bin/tritonserver" --backend-directory "$backends" --allow-gpu-metrics=false \\
    --disable-auto-complete-config --backend-config=python,stub-timeout-seconds=300 \\
    --backend-config=onnxruntime,stub-timeout-seconds=300 "\$@"
END
chmod 755 "$prefix/bin/tritonserver"
echo "Triton 2.51 is at $prefix/bin/tritonserver"
