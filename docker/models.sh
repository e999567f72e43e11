#!/bin/sh
# Unpack the shipped model into /models, in one precision; an empty folder where the weights were left out.
set -eu
if [ -e model_repository/alexnet.weights ]; then
    /opt/alexnet/bin/alexnet-server unpack --precision "$1" /models
else
    mkdir /models
fi
