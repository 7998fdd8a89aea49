#!/bin/sh
# Fails, and says what is missing, if the server or one of its backends would not find a library when it starts.
#   check_libraries.sh TRITON
# TRITON: its directory. The driver's libraries come with the GPU, when the container runs.
set -eu
triton=$1
for part in bin/tritonserver lib backends/python; do
    if [ ! -e "$triton/$part" ]; then
        echo "$triton/$part is missing" >&2
        exit 1
    fi
done
missing=$(
    find "$triton/bin" "$triton/lib" "$triton/backends" -type f \( -perm -u+x -o -name "*.so*" \) |
        while read -r file; do
            ldd "$file" 2> /dev/null | grep "not found" | grep -v -e "libcuda\.so" -e "libnvidia-ml\.so" |
                sed "s|^[[:space:]]*|$file: |" || true
        done
)
if [ -n "$missing" ]; then
    echo "$missing" >&2
    exit 1
fi
