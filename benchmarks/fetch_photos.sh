#!/bin/sh
# Unpack the photographs that benchmarks/photos.py crops, from Debian's packages, without installing them.
# usage: fetch_photos.sh FOLDER
set -e
folder=${1:?usage: fetch_photos.sh FOLDER}
mkdir -p "$folder/packages"
cd "$folder/packages"
for package in tuxpaint-stamps-default darknet opencv-doc mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 ukui-wallpapers \
    labelme-examples; do
    [ -d "../unpacked/$package" ] && continue
    apt-get download "$package"
    mkdir -p "../unpacked/$package.part"
    dpkg -x "$package"_*.deb "../unpacked/$package.part"
    mv "../unpacked/$package.part" "../unpacked/$package"
done
