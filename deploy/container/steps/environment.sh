#!/bin/sh
# Makes an environment for the kit beside NVIDIA's: it sees NVIDIA's packages and changes none of them.
#   environment.sh KIT LOCK
# KIT: where it goes. LOCK: the kit's lock file.
set -eu
kit=$1
lock=$2
python3 -m venv --without-pip "$kit"
# pytriton carries a Triton of its own; the one in the image serves here.
grep -v "^nvidia-pytriton==" "$lock" > "$kit/kit.lock"
python3 -m pip --python "$kit/bin/python" install --no-cache-dir --no-deps -r "$kit/kit.lock"
# NVIDIA's `python3` is in an environment itself. --system-site-packages would show the packages of the interpreter
# below it, so its own are named; behind the kit's, with what their .pth files add.
site=$("$kit/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
python3 -c 'import site
for path in site.getsitepackages():
    print(f"import site; site.addsitedir({path!r})")' > "$site/nvidia.pth"
