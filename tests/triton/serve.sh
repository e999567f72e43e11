#!/bin/sh
# Start the real Triton on ports 8000-8002 and the gateway before it: tests/triton/serve.sh REPOSITORY [FLAGS]
# FLAGS go to alexnet-server, which then serves HTTP on 8080 and gRPC on 8081. Ends both when either ends.
set -eu
repository=$1
shift
prefix=${TRITON_PREFIX:-.venv-triton}
"$prefix/bin/tritonserver" --model-repository="$repository" --model-config-name=cpu \
    --http-address=127.0.0.1 --grpc-address=127.0.0.1 --log-info=false --exit-timeout-secs=10 &
triton=$!
alexnet-server --engine triton --triton-url 127.0.0.1:8001 --model-repository "$repository" "$@" &
gateway=$!

# The gateway goes first: it finishes what it has, while Triton still answers.
stop() { kill "$gateway" 2>/dev/null || true; wait "$gateway" || true; kill "$triton" 2>/dev/null || true; wait "$triton" || true; }
trap 'stop; exit 0' INT TERM
while kill -0 "$triton" 2>/dev/null && kill -0 "$gateway" 2>/dev/null; do sleep 1; done
echo "serve.sh: one of the two has ended; stopping the other" >&2
stop
exit 1
